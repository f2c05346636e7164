//! The agent of `mini-vmm ctl SOCKET exec`, and our client, over a pair of sockets. No KVM.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};

use mini_vmm::exec::agent::{MAX_COMMANDS, Slots};
use mini_vmm::exec::client::{self, Error, Signals, Streams};
use mini_vmm::exec::frame::{End, HEADER, Kind, MAX_DATA, Refusal, Start, header, parse};
use mini_vmm::exec::{VERSION, WINDOW};
use rustix::pipe::{PipeFlags, pipe_with};

fn start(words: &[&str]) -> Start {
    Start {
        words: words.iter().map(|word| word.into()).collect(),
        ..Start::default()
    }
}

fn shell(script: &str) -> Start {
    start(&["sh", "-c", script])
}

/// A connection to an agent.
fn agent(slots: &Slots) -> UnixStream {
    let (client, agent) = UnixStream::pair().unwrap();
    slots.serve(agent.into());
    client
}

fn reader(pipe: OwnedFd) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        File::from(pipe).read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Runs a command with this input. Returns how it ended, and its output and messages.
fn run(start: &Start, input: Vec<u8>) -> (Result<End, Error>, Vec<u8>, Vec<u8>) {
    let [input_pipe, output, errors] = [(); 3].map(|()| pipe_with(PipeFlags::CLOEXEC).unwrap());
    let mut input_writer = File::from(input_pipe.1);
    // A command may take less.
    let writer = thread::spawn(move || drop(input_writer.write_all(&input)));
    let readers = [reader(output.0), reader(errors.0)];
    let streams = Streams {
        input: input_pipe.0.as_fd(),
        output: output.1.as_fd(),
        errors: errors.1.as_fd(),
    };
    let result = client::run(agent(&Slots::default()), start, streams, Signals::default());
    drop((input_pipe.0, output.1, errors.1));
    writer.join().unwrap();
    let [output, errors] = readers.map(|reader| reader.join().unwrap());
    (result, output, errors)
}

/// A side that says what it likes.
struct Raw(UnixStream);

impl Raw {
    fn new(slots: &Slots) -> Self {
        Raw(agent(slots))
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        let bytes = [&header(kind, payload.len())[..], payload].concat();
        self.0.write_all(&bytes).unwrap();
    }

    fn start(slots: &Slots, start: &Start) -> Self {
        let mut raw = Raw::new(slots);
        raw.send(Kind::Start, &start.payload().unwrap());
        assert_eq!(
            raw.next(),
            Some((Kind::Started, VERSION.to_le_bytes().to_vec()))
        );
        raw
    }

    /// The next frame. `None` at the end.
    fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut bytes = vec![0; HEADER];
        self.0.read_exact(&mut bytes).ok()?;
        let length = u32::from_le_bytes(bytes[4..].try_into().unwrap()) as usize;
        bytes.resize(HEADER + length, 0);
        self.0.read_exact(&mut bytes[HEADER..]).unwrap();
        let frame = parse(&bytes).unwrap().unwrap();
        Some((frame.kind, frame.payload.to_vec()))
    }

    fn output(&mut self) -> String {
        let (kind, data) = self.next().unwrap();
        assert_eq!(kind, Kind::Output);
        String::from_utf8(data).unwrap()
    }
}

/// Waits until a process is gone. The test hangs if it never is.
fn until_gone(pid: &str) {
    while Path::new("/proc").join(pid.trim()).exists() {
        thread::yield_now();
    }
}

#[test]
fn a_command_has_its_words_environment_and_directory() {
    let start = Start {
        words: [
            "sh",
            "-c",
            "pwd; echo \"$1 $A\" >&2; exit 7",
            "sh",
            "two words",
        ]
        .map(Into::into)
        .into(),
        env: vec![("A".into(), "b=c".into())],
        directory: "/".into(),
    };
    let (result, output, errors) = run(&start, Vec::new());
    assert_eq!(result.unwrap(), End::Code(7));
    assert_eq!(output, b"/\n");
    assert_eq!(errors, b"two words b=c\n");
}

#[test]
fn much_data_is_whole_both_ways() {
    let mut seed = 1u64;
    let mut input = Vec::with_capacity(64 << 20);
    while input.len() < 64 << 20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        input.extend_from_slice(&seed.to_be_bytes());
    }
    let (result, output, errors) = run(&shell("tee /dev/stderr"), input.clone());
    assert_eq!(result.unwrap(), End::Code(0));
    assert!(output == input && errors == input);
}

#[test]
fn an_end_by_a_signal_is_told() {
    let (result, ..) = run(&shell("kill -9 $$"), Vec::new());
    assert_eq!(result.unwrap(), End::Signal(9));
    // It does not ignore what our own process ignores.
    let (result, ..) = run(&shell("kill -s PIPE $$"), Vec::new());
    assert_eq!(result.unwrap(), End::Signal(13));
}

#[test]
fn what_cannot_be_started_is_refused_with_a_reason() {
    let at = |directory: &str| Start {
        directory: directory.into(),
        ..start(&["true"])
    };
    for (start, refusal, why) in [
        (
            start(&["/nonexistent/x"]),
            Refusal::Absent,
            "/nonexistent/x: the guest has no such program",
        ),
        (
            start(&["/dev/null"]),
            Refusal::Failed,
            "/dev/null: the guest can't start it",
        ),
        (
            at("/nonexistent"),
            Refusal::Absent,
            "/nonexistent: the guest has no such directory",
        ),
        (at("/dev/null"), Refusal::Absent, "no such directory"),
    ] {
        match run(&start, Vec::new()).0 {
            Err(Error::Refused(found, reason)) => {
                assert_eq!(found, refusal);
                assert!(reason.starts_with(why) || reason.contains(why), "{reason}");
            }
            other => panic!("{start:?}: {other:?}"),
        }
    }
}

#[test]
fn output_after_the_end_is_whole_and_the_rest_is_not_awaited() {
    // A process that goes on has the pipes, too.
    let script = "head -c 60000 /dev/zero; sleep 1000 & echo $! >&2";
    let (result, output, errors) = run(&shell(script), Vec::new());
    assert_eq!(result.unwrap(), End::Code(0));
    assert_eq!(output.len(), 60_000);
    let pid = String::from_utf8(errors).unwrap();
    assert!(
        Path::new("/proc").join(pid.trim()).exists(),
        "it was left alone"
    );
    std::process::Command::new("kill")
        .arg(pid.trim())
        .status()
        .unwrap();
}

#[test]
fn a_command_that_takes_no_input_does_not_stop_its_output() {
    let script = "exec <&-; head -c 1000000 /dev/zero; echo end >&2";
    let (result, output, errors) = run(&shell(script), vec![1; 4 * WINDOW]);
    assert_eq!(result.unwrap(), End::Code(0));
    assert_eq!((output.len(), &*errors), (1_000_000, &b"end\n"[..]));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let slots = Slots::default();
    // A shell that is told before it waits would wait to the end of a long command.
    let script = "trap 'echo heard; exit 3' INT; echo ready; while :; do sleep 0.01; done";
    let mut raw = Raw::start(&slots, &shell(script));
    assert_eq!(raw.output(), "ready\n");
    raw.send(Kind::Signal, &2u32.to_le_bytes());
    assert_eq!(raw.output(), "heard\n");
    assert_eq!(
        raw.next(),
        Some((Kind::End, End::Code(3).payload().to_vec()))
    );
    assert_eq!(raw.next(), None);
}

/// An agent that a shell started in the background ignores SIGINT. Its commands don't.
#[test]
fn a_signal_that_the_agent_ignores_reaches_its_commands() {
    let script = "trap '' INT QUIT; exec \"$0\" --exact a_signal_reaches_the_whole_group";
    let mut again = std::process::Command::new("sh");
    let again = again
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap());
    let output = again.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_signal_overtakes_input_that_is_not_taken() {
    let mut raw = Raw::start(&Slots::default(), &start(&["sleep", "1000"]));
    for _ in 0..WINDOW / MAX_DATA {
        raw.send(Kind::Input, &[0; MAX_DATA]);
    }
    raw.send(Kind::Signal, &15u32.to_le_bytes());
    loop {
        match raw.next().unwrap() {
            (Kind::Taken, _) => {}
            (Kind::End, end) => {
                assert_eq!(End::parse(&end), Ok(End::Signal(15)));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_command_ends_when_its_client_goes() {
    let slots = Slots::default();
    for script in [
        "echo $$; exec sleep 1000",
        // It has no time for the end.
        "trap '' TERM HUP; echo $$; while :; do sleep 1000; done",
        // It is busy with what nobody reads.
        "echo $$; exec yes",
    ] {
        let mut raw = Raw::start(&slots, &shell(script));
        let pid = raw.output();
        drop(raw);
        until_gone(pid.lines().next().unwrap());
    }
}

#[test]
fn a_host_that_breaks_the_protocol_loses_its_command() {
    let slots = Slots::default();
    let breaks: [fn(&mut Raw); 7] = [
        |raw| raw.send(Kind::Start, &shell("true").payload().unwrap()),
        |raw| raw.send(Kind::Taken, &[0; 4]),
        |raw| raw.send(Kind::Signal, &[0; 4]),
        |raw| raw.send(Kind::Signal, &[0xff; 4]),
        |raw| {
            raw.send(Kind::Input, &[]);
            raw.send(Kind::Input, &[]);
        },
        // More than the window, of which the command takes less than a pipe has room for.
        |raw| {
            for _ in 0..WINDOW / MAX_DATA + 2 {
                let bytes = [&header(Kind::Input, MAX_DATA)[..], &[0; MAX_DATA]].concat();
                // It may be refused meanwhile.
                let _ = raw.0.write_all(&bytes);
            }
        },
        |raw| raw.0.write_all(&[0xff; 64]).unwrap(),
    ];
    for break_it in breaks {
        let mut raw = Raw::start(&slots, &shell("echo $$; exec sleep 1000"));
        let pid = raw.output();
        break_it(&mut raw);
        until_gone(pid.trim());
        while raw.next().is_some_and(|(kind, _)| kind == Kind::Taken) {}
    }
}

#[test]
fn no_command_comes_from_nonsense() {
    let slots = Slots::default();
    let start = shell("true").payload().unwrap();
    let frame = |kind, payload: &[u8]| [&header(kind, payload.len())[..], payload].concat();
    for bytes in [
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(Kind::Input, b"x"),
        frame(Kind::Start, &start[..start.len() - 1]),
        [&[Kind::Start as u8, 0, 0, 0][..], &u32::MAX.to_le_bytes()].concat(),
    ] {
        let mut raw = Raw::new(&slots);
        raw.0.write_all(&bytes).unwrap();
        raw.0.shutdown(Shutdown::Write).unwrap();
        assert_eq!(raw.next(), None, "{bytes:?}");
    }
    let mut raw = Raw::new(&slots);
    raw.send(
        Kind::Start,
        &[&9u32.to_le_bytes()[..], &start[4..]].concat(),
    );
    let (kind, payload) = raw.next().unwrap();
    assert_eq!(kind, Kind::Refused);
    let (refusal, reason) = Refusal::parse(&payload).unwrap();
    assert_eq!(refusal, Refusal::Version);
    assert!(
        reason.contains("version 1 of the protocol, not 9"),
        "{reason}"
    );
}

#[test]
fn many_run_at_once_and_no_more() {
    let slots = Slots::default();
    let mut all: Vec<Raw> = Vec::new();
    for _ in 0..MAX_COMMANDS {
        all.push(Raw::start(&slots, &start(&["cat"])));
    }
    let mut late = Raw::new(&slots);
    let (kind, payload) = late.next().unwrap();
    assert_eq!(kind, Kind::Refused);
    let (refusal, reason) = Refusal::parse(&payload).unwrap();
    assert_eq!(refusal, Refusal::Busy);
    assert!(reason.contains("64 commands"), "{reason}");
    for (number, raw) in all.iter_mut().enumerate() {
        raw.send(Kind::Input, number.to_string().as_bytes());
        raw.send(Kind::Input, &[]);
    }
    for (number, raw) in all.iter_mut().enumerate() {
        let mut output = Vec::new();
        let end = loop {
            match raw.next().unwrap() {
                (Kind::Output, data) => output.extend(data),
                (Kind::Taken, _) => {}
                (kind, payload) => break (kind, payload),
            }
        };
        assert_eq!(output, number.to_string().as_bytes());
        assert_eq!(end, (Kind::End, End::Code(0).payload().to_vec()));
    }
    // A place is free once a connection has ended.
    drop(all);
    loop {
        let mut raw = Raw::new(&slots);
        raw.send(Kind::Start, &start(&["true"]).payload().unwrap());
        match raw.next().unwrap().0 {
            Kind::Started => break,
            Kind::Refused => {}
            kind => panic!("{kind:?}"),
        }
    }
}
