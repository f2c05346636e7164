//! The client against agents that are not ours.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::exec::VERSION;
use crate::exec::frame::{HEADER, MAX_DATA, header};

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&header(kind, payload.len())[..], payload].concat()
}

fn started() -> Vec<u8> {
    frame(Kind::Started, &VERSION.to_le_bytes())
}

fn end(end: End) -> Vec<u8> {
    frame(Kind::End, &end.payload())
}

/// Reads a frame of the client's.
fn next(stream: &mut UnixStream) -> (Kind, Vec<u8>) {
    let mut bytes = vec![0; HEADER];
    stream.read_exact(&mut bytes).unwrap();
    let length = u32::from_le_bytes(bytes[4..].try_into().unwrap());
    bytes.resize(HEADER + length as usize, 0);
    stream.read_exact(&mut bytes[HEADER..]).unwrap();
    let frame = super::super::frame::parse(&bytes).unwrap().unwrap();
    (frame.kind, frame.payload.to_vec())
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn start() -> Start {
    Start {
        words: vec!["true".into()],
        ..Start::default()
    }
}

/// Runs a command by an agent that `serve` is. Returns also what was written to standard output and error.
fn at(
    input: OwnedFd,
    signals: Signals,
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> (Result<End, Error>, [Vec<u8>; 2]) {
    let (client, agent) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(agent));
    let (output, errors) = (pipe(), pipe());
    let readers = [output.0, errors.0].map(|pipe| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            File::from(pipe).read_to_end(&mut bytes).unwrap();
            bytes
        })
    });
    let streams = Streams {
        input: input.as_fd(),
        output: output.1.as_fd(),
        errors: errors.1.as_fd(),
    };
    let result = run(client, &start(), streams, signals);
    drop((output.1, errors.1));
    server.join().unwrap();
    (result, readers.map(|reader| reader.join().unwrap()))
}

fn nothing() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// How the client ends if an agent says these bytes, and then no more.
fn hears(bytes: Vec<u8>) -> Result<End, Error> {
    let serve = move |mut stream: UnixStream| {
        next(&mut stream);
        // A client that has heard enough ends the connection.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    };
    at(nothing(), Signals::default(), serve).0
}

#[test]
fn frames_at_the_wrong_time_are_not_an_agents() {
    let data = |kind| frame(kind, b"x");
    let taken = |count: u32| frame(Kind::Taken, &count.to_le_bytes());
    for bytes in [
        data(Kind::Output),
        taken(0),
        end(End::Code(0)),
        [started(), started()].concat(),
        [started(), taken(1)].concat(),
        [started(), taken(u32::MAX)].concat(),
        [
            started(),
            frame(Kind::Refused, &Refusal::Busy.payload("no")),
        ]
        .concat(),
        [started(), frame(Kind::Input, b"x")].concat(),
        frame(Kind::Start, &start().payload().unwrap()),
        [started(), frame(Kind::End, &[9; 8])].concat(),
        frame(Kind::Refused, &[9; 8]),
        b"SSH-2.0-OpenSSH_9\r\n".to_vec(),
        [&[18, 0, 0, 0][..], &u32::MAX.to_le_bytes()].concat(),
    ] {
        let result = hears(bytes.clone());
        assert!(
            matches!(result, Err(Error::Protocol(_))),
            "{bytes:?}: {result:?}"
        );
    }
}

#[test]
fn an_end_without_a_word_is_a_lost_agent() {
    let cut = [started(), end(End::Code(0))].concat();
    for length in [0, 1, HEADER, started().len(), cut.len() - 1] {
        let result = hears(cut[..length].to_vec());
        assert!(matches!(result, Err(Error::Lost)), "{length}: {result:?}");
    }
    assert_eq!(hears(cut).unwrap(), End::Code(0));
}

#[test]
fn a_refusal_is_one_harmless_line() {
    let reason = Refusal::Absent.payload("no\x1b[31m\nprogram");
    let error = hears(frame(Kind::Refused, &reason)).unwrap_err();
    assert_eq!(error.to_string(), "no\\u{1b}[31m\\nprogram");
    assert!(matches!(error, Error::Refused(Refusal::Absent, _)));
}

#[test]
fn the_last_words_of_an_agent_that_does_not_listen_are_heard() {
    let serve = |mut stream: UnixStream| {
        let reason = Refusal::Busy.payload("too many");
        stream.write_all(&frame(Kind::Refused, &reason)).unwrap();
    };
    let (result, _) = at(nothing(), Signals::default(), serve);
    assert!(
        matches!(result, Err(Error::Refused(Refusal::Busy, _))),
        "{result:?}"
    );
}

#[test]
fn output_and_messages_keep_apart() {
    let serve = |mut stream: UnixStream| {
        next(&mut stream);
        let mut bytes = started();
        for round in 0..100u8 {
            bytes.extend(frame(Kind::Output, &vec![round; MAX_DATA]));
            bytes.extend(frame(Kind::Errors, &[round]));
        }
        bytes.extend(end(End::Signal(9)));
        for byte in &bytes[..30] {
            stream.write_all(&[*byte]).unwrap();
        }
        stream.write_all(&bytes[30..]).unwrap();
    };
    let (result, [output, errors]) = at(nothing(), Signals::default(), serve);
    assert_eq!(result.unwrap(), End::Signal(9));
    let expected = (0..100).flat_map(|round| vec![round; MAX_DATA]);
    assert!(output.into_iter().eq(expected));
    assert!(errors.into_iter().eq(0..100));
}

#[test]
fn no_more_input_is_sent_than_the_agent_has_room_for() {
    let serve = |mut stream: UnixStream| {
        next(&mut stream);
        stream.write_all(&started()).unwrap();
        let mut sum = 0;
        while sum < WINDOW {
            let (kind, data) = next(&mut stream);
            assert_eq!(kind, Kind::Input);
            sum += data.len();
        }
        assert_eq!(sum, WINDOW);
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        // Exactly one more byte.
        stream
            .write_all(&frame(Kind::Taken, &1u32.to_le_bytes()))
            .unwrap();
        assert_eq!(next(&mut stream), (Kind::Input, vec![0]));
        stream.write_all(&end(End::Code(3))).unwrap();
    };
    let endless = File::open("/dev/zero").unwrap();
    let (result, _) = at(endless.into(), Signals::default(), serve);
    assert_eq!(result.unwrap(), End::Code(3));
}

#[test]
fn a_signal_is_passed_on_twice_and_then_obeyed() {
    let (signals, mut sender) = Signals::of(2);
    let serve = move |mut stream: UnixStream| {
        next(&mut stream);
        stream.write_all(&started()).unwrap();
        assert_eq!(next(&mut stream), (Kind::Input, Vec::new()));
        for _ in 0..2 {
            sender.write_all(&[0]).unwrap();
            assert_eq!(next(&mut stream), (Kind::Signal, vec![2, 0, 0, 0]));
        }
        sender.write_all(&[0]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    };
    let (result, _) = at(nothing(), signals, serve);
    assert!(matches!(result, Err(Error::Signal(2))), "{result:?}");
}

#[test]
fn a_signal_ends_the_wait_for_an_agent_that_says_nothing() {
    let (signals, mut sender) = Signals::of(15);
    let serve = move |mut stream: UnixStream| {
        next(&mut stream);
        sender.write_all(&[0]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    };
    let (result, _) = at(nothing(), signals, serve);
    assert!(matches!(result, Err(Error::Signal(15))), "{result:?}");
}

#[test]
fn output_that_nobody_reads_ends_it() {
    let (client, mut agent) = UnixStream::pair().unwrap();
    agent
        .write_all(&[started(), frame(Kind::Output, b"x")].concat())
        .unwrap();
    let (input, (reader, writer)) = (nothing(), pipe());
    drop(reader);
    let streams = Streams {
        input: input.as_fd(),
        output: writer.as_fd(),
        errors: writer.as_fd(),
    };
    let result = run(client, &start(), streams, Signals::default());
    assert!(matches!(result, Err(Error::Unread)), "{result:?}");
}

/// What `connect` makes of an answer.
fn answered(answer: &[u8]) -> Result<UnixStream, Error> {
    let (client, mut device) = UnixStream::pair().unwrap();
    device.write_all(answer).unwrap();
    device.shutdown(Shutdown::Write).unwrap();
    let result = connect(client, 1024, &mut || panic!("nothing to wait for"));
    let mut line = [0; 13];
    device.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"CONNECT 1024\n");
    result
}

#[test]
fn only_a_devices_answer_is_one() {
    let mut stream = answered(b"OK 1073741824\nmore").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "more", "it is the agent's");
    let error = answered(b"").unwrap_err();
    assert!(matches!(error, Error::NoAgent(1024)), "{error:?}");
    for bad in [
        &b"OK"[..],
        b"OK \n",
        b"OK 1x\n",
        b"ok 1\n",
        b"\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"OK 12345678901\n",
        &[b'O'; 4096],
    ] {
        let result = answered(bad);
        assert!(
            matches!(result, Err(Error::NotVsock)),
            "{bad:?}: {result:?}"
        );
    }
}

#[test]
fn a_slow_guest_is_awaited() {
    let (client, mut device) = UnixStream::pair().unwrap();
    let mut waits = 0;
    let result = connect(client, 7, &mut || {
        waits += 1;
        device.write_all(b"OK 1\n").unwrap();
    });
    assert!(result.is_ok());
    assert_eq!(waits, 1);
}
