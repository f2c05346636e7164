//! `mini-vmm ctl SOCKET exec` as a process, at a machine that is not there: its API and its vsock socket are the test's.
//! No KVM.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use mini_vmm::exec::agent::Slots;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A machine with an API at `api` and a vsock socket at `v`, in a directory of its own.
struct Machine(TempDir);

impl Machine {
    /// A machine whose API answers this.
    fn new(state: &str, options: impl FnOnce(&Path) -> Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = UnixListener::bind(dir.path().join("api")).unwrap();
        let (state, options) = (json!({ "state": state }), options(dir.path()));
        thread::spawn(move || {
            for stream in api.incoming().flatten() {
                let (state, options) = (state.clone(), options.clone());
                thread::spawn(move || answer(stream, &state, &options));
            }
        });
        Machine(dir)
    }

    /// A machine that runs.
    fn running() -> Self {
        Machine::new(
            "Running",
            |dir| json!({ "vsock": { "cid": 3, "socket": dir.join("v") } }),
        )
    }

    /// The same with an agent in its guest.
    fn whole() -> Self {
        let machine = Machine::running();
        let listener = UnixListener::bind(machine.0.path().join("v")).unwrap();
        thread::spawn(move || {
            let slots = Slots::default();
            for mut stream in listener.incoming().flatten() {
                let mut line = String::new();
                while !line.ends_with('\n') {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    line.push(byte[0].into());
                }
                // Nobody listens on other ports.
                if line == "CONNECT 1024\n" {
                    stream.write_all(b"OK 1073741824\n").unwrap();
                    slots.serve(stream.into());
                }
            }
        });
        machine
    }

    fn exec(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
        let api = self.0.path().join("api");
        command.arg("ctl").arg(api).arg("exec").args(words);
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, why: &str) {
        let Output { status, stderr, .. } = self.exec(words).output().unwrap();
        let text = String::from_utf8_lossy(&stderr);
        assert!(text.contains(why), "{text}");
        assert_eq!(status.code(), Some(code), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

/// Answers a client of the API.
fn answer(stream: UnixStream, state: &Value, options: &Value) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        if !matches!(reader.read_line(&mut first), Ok(1..)) {
            return;
        }
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        let body = match first.starts_with("GET / ") {
            true => state.to_string(),
            false => options.to_string(),
        };
        let length = body.len();
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        reader.get_mut().write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn output_messages_and_status_are_the_commands() {
    let machine = Machine::whole();
    let script = "pwd; echo \"$A\" >&2; exit 9";
    let words = ["--env", "A=b c", "--cwd", "/", "--", "sh", "-c", script];
    let output = machine.exec(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        (&*output.stdout, &*output.stderr),
        (&b"/\n"[..], &b"b c\n"[..])
    );
    let killed = machine.exec(&["--", "sh", "-c", "kill -9 $$"]);
    assert_eq!({ killed }.status().unwrap().code(), Some(137));
}

#[test]
fn input_is_the_commands() {
    let machine = Machine::whole();
    let mut cat = machine.exec(&["--", "cat"]);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    // A word each way, and then the end.
    for word in [b"one", b"two"] {
        let mut back = [0; 3];
        input.write_all(word).unwrap();
        output.read_exact(&mut back).unwrap();
        assert_eq!(&back, word);
    }
    drop(input);
    assert_eq!(output.read(&mut [0]).unwrap(), 0);
    assert_eq!(cat.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_is_the_commands() {
    let machine = Machine::whole();
    // A shell that is told before it waits would wait to the end of a long command.
    let script = "trap 'echo heard; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = machine.exec(&["--", "sh", "-c", script]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            // Tests that a shell started in the background ignore SIGINT, and `ctl` leaves an ignored one alone.
            .args(["-s", "TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\nheard\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_reader_that_stops_is_no_error() {
    let machine = Machine::whole();
    let mut child = machine.exec(&["--", "yes"]);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr),
        (Some(141), Vec::new())
    );
}

#[test]
fn each_lack_is_a_sentence_with_its_code() {
    let machine = Machine::whole();
    machine.fails(&["--", "/nonexistent"], 127, "no such program");
    machine.fails(&["--", "/dev/null"], 126, "can't start it");
    machine.fails(
        &["--cwd", "/nonexistent", "--", "ls"],
        127,
        "no such directory",
    );
    machine.fails(
        &["--port", "7", "--", "ls"],
        255,
        "no agent listens on vsock port 7 of the guest; run `mini-vmm agent` there",
    );
    Machine::running().fails(
        &["--", "ls"],
        255,
        "can't connect to the machine's vsock socket",
    );
    let none = |_: &Path| json!({ "vsock": null });
    Machine::new("Running", none).fails(
        &["--", "ls"],
        255,
        "start it with --vsock cid=3,socket=PATH",
    );
    Machine::new("Paused", none).fails(
        &["--", "ls"],
        255,
        "the machine is paused; let it go on with",
    );
    Machine::new("Not started", none).fails(
        &["--", "ls"],
        255,
        "the machine has not started; start it with",
    );
    let gone = Machine::running();
    std::fs::remove_file(gone.0.path().join("api")).unwrap();
    gone.fails(&["--", "ls"], 255, "is mini-vmm running with --api-sock?");
}

#[test]
fn the_end_of_the_agent_is_told_from_that_of_the_machine() {
    // The machine lives, its socket is gone, or it no longer answers.
    for (ends, why) in [
        (0, "the agent in the guest ended"),
        (1, "the machine ended"),
        (2, "the machine ended"),
    ] {
        let machine = Machine::running();
        let listener = UnixListener::bind(machine.0.path().join("v")).unwrap();
        let api = machine.0.path().join("api");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"OK 1\n").unwrap();
            stream.read_exact(&mut [0; 20]).unwrap();
            if ends > 0 {
                std::fs::remove_file(&api).unwrap();
            }
            let last = (ends == 2).then(|| UnixListener::bind(&api).unwrap());
            drop(stream);
            if let Some(last) = last {
                drop(last.accept().unwrap());
            }
        });
        machine.fails(&["--", "ls"], 255, why);
        server.join().unwrap();
    }
}

#[test]
fn a_relative_socket_is_where_the_machines_process_is() {
    // This process is the machine's. The client has another directory.
    let here = std::env::current_dir().unwrap();
    let dir = tempfile::tempdir_in(&here).unwrap();
    let name = dir.path().strip_prefix(&here).unwrap().join("v");
    let listener = UnixListener::bind(&name).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 13]).unwrap();
        stream.write_all(b"OK 1\n").unwrap();
        Slots::default().serve(stream.into());
    });
    let machine = Machine::new("Running", |_| json!({ "vsock": { "socket": name } }));
    let output = machine
        .exec(&["--", "echo", "here"])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"here\n", "{output:?}");
}
