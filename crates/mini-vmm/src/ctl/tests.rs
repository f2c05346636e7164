// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Orders to servers that are not ours. No KVM.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::*;
use crate::socket_file::close;

/// Carries out an action at a server that `serve` is, for the first connection. `serve` learns what was said.
fn at(
    action: Action,
    serve: impl FnOnce(UnixStream, Receiver<String>) + Send + 'static,
) -> Result<String, Error> {
    of(action, false, serve)
}

/// The same, also as JSON.
fn of(
    action: Action,
    json: bool,
    serve: impl FnOnce(UnixStream, Receiver<String>) + Send + 'static,
) -> Result<String, Error> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let listener = UnixListener::bind(&socket).unwrap();
    let (said, hears): (Sender<String>, _) = channel();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        close(listener);
        serve(stream, hears);
    });
    let order = Order {
        socket,
        action,
        dir: match action {
            Action::Snapshot => Some("snap".into()),
            Action::Add | Action::Remove | Action::Resize => Some("data".into()),
            _ => None,
        },
        device: (action == Action::Add).then(|| ("disk", "path=a b".to_owned())),
        force: action == Action::Remove,
        diff: false,
        keep_running: false,
        json,
    };
    let mut say = move |what: &str| said.send(what.to_owned()).unwrap();
    let result = run(&order, &mut say);
    drop(say);
    server.join().unwrap();
    result
}

/// Reads a request. Returns its first line and its body.
fn request(stream: &mut UnixStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(number) = line.strip_prefix("Content-Length: ") {
            length = number.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (first.trim().to_owned(), String::from_utf8(body).unwrap())
}

fn answer(stream: &mut UnixStream, status: &str, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).unwrap();
}

#[track_caller]
fn fails(result: Result<String, Error>, why: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_slow_answer_is_awaited_and_that_is_said_once() {
    let result = at(Action::Pause, |mut stream, said| {
        let (line, body) = request(&mut stream);
        assert_eq!(line, "PATCH /vm HTTP/1.1");
        assert_eq!(body, r#"{"state":"Paused"}"#);
        assert!(
            said.recv()
                .unwrap()
                .contains("until the vCPUs have stopped")
        );
        for byte in b"HTTP/1.1 204 No Content\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
        }
        assert!(said.recv().is_err(), "once");
    });
    assert_eq!(result.unwrap(), "Paused");
}

#[test]
fn a_snapshot_is_named_by_its_whole_path() {
    let result = at(Action::Snapshot, |mut stream, _said| {
        let (line, body) = request(&mut stream);
        assert_eq!(line, "PUT /snapshot HTTP/1.1");
        let body: Value = serde_json::from_str(&body).unwrap();
        let here = std::env::current_dir().unwrap().join("snap");
        assert_eq!(
            body,
            json!({ "directory": here, "diff": false, "keep_running": false })
        );
        answer(&mut stream, "204 No Content", "");
        assert_eq!(request(&mut stream).0, "GET / HTTP/1.1");
        answer(&mut stream, "200 OK", r#"{"state": "Paused"}"#);
    });
    assert_eq!(result.unwrap(), "Paused");
}

#[test]
fn a_button_is_awaited_until_the_process_is_gone() {
    let result = at(Action::PowerButton, |mut stream, said| {
        let (line, body) = request(&mut stream);
        assert_eq!(line, "PUT /actions HTTP/1.1");
        assert_eq!(body, r#"{"action_type":"SendCtrlAltDel"}"#);
        answer(&mut stream, "204 No Content", "");
        assert!(
            said.recv()
                .unwrap()
                .contains("until the guest has powered off")
        );
    });
    assert_eq!(result.unwrap(), "Ended");
}

#[test]
fn a_server_that_only_closed_the_connection_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let listener = UnixListener::bind(&socket).unwrap();
    let order = Order {
        socket,
        action: Action::Stop,
        dir: None,
        device: None,
        force: false,
        diff: false,
        keep_running: false,
        json: true,
    };
    let client = thread::spawn(move || run(&order, &mut |_| {}));
    let (mut first, _) = listener.accept().unwrap();
    request(&mut first);
    answer(&mut first, "204 No Content", "");
    drop(first);
    let (second, _) = listener.accept().unwrap();
    close(listener);
    drop(second);
    assert_eq!(client.join().unwrap().unwrap(), r#"{"state":"Ended"}"#);
}

#[test]
fn servers_that_are_not_ours_are_told_from_ours() {
    let garbage = |bytes: &'static [u8]| {
        at(Action::Info, move |mut stream, _| {
            request(&mut stream);
            stream.write_all(bytes).unwrap();
        })
    };
    fails(garbage(b"\0\0\0\0"), "not one of the API");
    fails(
        garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
        "not one of the API",
    );
    fails(
        garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{"),
        "not one of the API",
    );
    fails(
        garbage(b"HTTP/1.1 204 No Content\r\n\r\n"),
        "not one of the API",
    );
    fails(
        garbage(b"HTTP/1.1 200 OK\r\nContent-"),
        "the connection ended before the answer",
    );
    fails(garbage(b""), "the connection ended before the answer");
    fails(garbage(b"HTTP/1.1 500 Oh\r\n\r\n"), "HTTP status 500");
    fails(at(Action::Start, |stream, _| drop(stream)), "/api: ");
}

#[test]
fn a_refusal_is_one_harmless_sentence() {
    let result = at(Action::Start, |mut stream, _| {
        let (_, body) = request(&mut stream);
        assert_eq!(body, r#"{"action_type":"InstanceStart"}"#);
        let message = format!("no\\u001b[31m\\n{}", "x".repeat(2000));
        answer(
            &mut stream,
            "400 Bad Request",
            &format!(r#"{{"fault_message": "{message}"}}"#),
        );
    });
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with("no\\u{1b}[31m\\nxx"), "{text}");
    assert!(text.chars().count() <= MAX_MESSAGE + 1);
}

#[test]
fn info_is_what_three_paths_say() {
    let result = at(Action::Info, |mut stream, _| {
        for (target, body) in [
            ("/", r#"{"id": "vm-1", "state": "Running"}"#),
            ("/machine-config", r#"{"vcpu_count": 2}"#),
            ("/vm", r#"{"exits": [1, 2], "state": "Running"}"#),
        ] {
            let (line, body_sent) = request(&mut stream);
            assert_eq!(line, format!("GET {target} HTTP/1.1"));
            assert_eq!(body_sent, "");
            answer(&mut stream, "200 OK", body);
        }
    });
    assert_eq!(
        result.unwrap(),
        "exits: [1,2]\nid: vm-1\nstate: Running\nvcpu_count: 2"
    );
}

#[test]
fn metrics_are_text_or_an_object() {
    let counters = "# HELP a_total It.\na_total{vcpu=\"0 1\"} 3\nb_seconds 0.5\n";
    for (json, expected) in [
        (false, counters.trim_end()),
        (true, r#"{"a_total{vcpu=\"0 1\"}":3,"b_seconds":0.5}"#),
    ] {
        let result = of(Action::Metrics, json, |mut stream, _| {
            let (line, _) = request(&mut stream);
            assert_eq!(line, "GET /metrics HTTP/1.1");
            answer(&mut stream, "200 OK", counters);
        });
        assert_eq!(result.unwrap(), expected);
    }
}

#[test]
fn a_missing_server_is_a_question_to_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let order = |socket: &Path| Order {
        socket: socket.to_owned(),
        action: Action::Info,
        dir: None,
        device: None,
        force: false,
        diff: false,
        keep_running: false,
        json: false,
    };
    let at = |socket: &Path| run(&order(socket), &mut |_| {});
    fails(at(&socket), "is mini-vmm running with --api-sock?");
    close(UnixListener::bind(&socket).unwrap());
    fails(at(&socket), "is mini-vmm running with --api-sock?");
    fails(
        at(&dir.path().join("x".repeat(200))),
        "give the path of --api-sock",
    );
}

#[test]
fn devices_are_named_in_the_path_and_told_of() {
    for (action, line, body, text) in [
        (
            Action::Add,
            "PUT /devices/data",
            r#"{"disk":"path=a b"}"#,
            "data: added",
        ),
        (
            Action::Remove,
            "DELETE /devices/data",
            r#"{"force":true}"#,
            "data: removed",
        ),
        (
            Action::Resize,
            "PATCH /drives/data",
            r#"{"drive_id":"data"}"#,
            "data: told",
        ),
    ] {
        let result = at(action, move |mut stream, _| {
            let (first, said) = request(&mut stream);
            assert!(first.starts_with(line), "{first}");
            assert_eq!(said, body);
            answer(&mut stream, "204 No Content", "");
        });
        assert_eq!(result.unwrap(), text);
    }
}
