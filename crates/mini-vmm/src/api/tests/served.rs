// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server with real sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;

/// A server at a socket, with the end that would run its machine.
fn serve() -> (Api, Orders, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let (remote, orders) = deaf();
    let api = Api::serve(
        Settings::new(&path),
        Model::new(VmSpec::new(""), ""),
        remote,
    )
    .unwrap();
    (api, orders, path, dir)
}

/// Reads one answer. Its body, if any, is JSON.
fn read_answer(client: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

const VERSION: &[u8] = b"GET /version HTTP/1.0\r\n\r\n";

#[test]
fn clients_do_not_disturb_each_other() {
    let (api, _orders, path, _dir) = serve();
    let connect = || UnixStream::connect(&path).unwrap();
    // One is silent, one stops within its request, one reads nothing, one is gone, one sends garbage.
    let _silent = connect();
    let mut stuck = connect();
    stuck
        .write_all(b"PUT /boot-source HTTP/1.1\r\nContent-Len")
        .unwrap();
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(&VERSION.repeat(100)).is_ok() {}
    connect()
        .write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    let mut garbage = connect();
    garbage.write_all(&[0xff; 100_000]).unwrap_or_default();
    let mut client = connect();
    for _ in 0..10 {
        client.write_all(VERSION).unwrap();
        let answer = read_answer(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(API_VERSION));
    }
    let mut rest = String::new();
    let _ = garbage.read_to_string(&mut rest);
    assert!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 400 "),
        "{rest}"
    );
    drop(api);
    assert!(!path.exists(), "the socket is removed at the end");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn idle_clients_make_room_for_new_ones() {
    let (_api, _orders, path, _dir) = serve();
    let mut clients: Vec<_> = (0..300)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let last = clients.last_mut().unwrap();
    last.write_all(VERSION).unwrap();
    assert!(read_answer(last).contains(API_VERSION));
    assert_eq!(
        clients[0].read(&mut [0]).unwrap_or(0),
        0,
        "the first made room"
    );
}

#[test]
fn a_path_that_is_taken_is_refused_with_the_next_step() {
    let (_api, _orders, path, _dir) = serve();
    let at = |path: &Path| {
        let (remote, _orders) = deaf();
        let api = Api::serve(Settings::new(path), Model::new(VmSpec::new(""), ""), remote);
        api.unwrap_err().to_string()
    };
    assert!(at(&path).contains("another process listens"));
    let stale = path.with_file_name("stale");
    crate::socket_file::close(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(at(&stale).contains("remove it"));
    assert!(stale.exists(), "a stale socket is left alone");
    assert!(at(&path.with_file_name("no/such")).contains("choose another path"));
}

#[test]
fn a_stop_ends_a_process_that_waits() {
    let (_api, orders, path, _dir) = serve();
    let run = thread::spawn(move || orders.run().unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    let stop = b"PUT /actions HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"action_type\":\"Stop\"}";
    client.write_all(stop).unwrap();
    assert!(read_answer(&mut client).starts_with("HTTP/1.1 204 No Content"));
    assert_eq!(run.join().unwrap(), crate::outcome::Outcome::Stopped);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_answer(&mut client).contains("has ended"));
}
