// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the console's socket.

use super::super::InputTarget;
use super::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;

struct Fixture {
    socket: Socket,
    path: PathBuf,
    queue: Arc<InputQueue>,
    _dir: tempfile::TempDir,
}

fn open() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let queue = Arc::new(InputQueue::new().unwrap());
    Fixture {
        socket: Socket::open(&path, &queue).unwrap(),
        path,
        queue,
        _dir: dir,
    }
}

fn listen_error(path: &Path) -> Error {
    listen(path).map(|_| ()).unwrap_err()
}

fn read_until(client: &mut UnixStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        assert_eq!(client.read(&mut byte).unwrap(), 1, "{text:?}");
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn recent_output_is_replayed_and_then_goes_on() {
    let fixture = open();
    let mut output = fixture.socket.output.handle();
    output.write_all(b"early\n").unwrap();
    thread::sleep(Duration::from_millis(20));
    for _ in 0..2 {
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        assert!(read_until(&mut client, "early\n").starts_with("early\n"));
    }
    let mut client = UnixStream::connect(&fixture.path).unwrap();
    read_until(&mut client, "early\n");
    output.write_all(b"late\n").unwrap();
    assert_eq!(read_until(&mut client, "late\n"), "late\n");
}

#[test]
fn history_is_the_newest_64_kib() {
    let mut shared = Shared::default();
    for i in 0..20_000u32 {
        shared.remember(format!("{i:05}\n").as_bytes());
    }
    assert_eq!(shared.history.len(), REPLAY);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    shared.attach(ours).unwrap();
    shared.detach(&shared.client.clone().unwrap());
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text.len(), REPLAY);
    assert!(text.ends_with("19999\n"));
}

#[test]
fn second_client_is_refused_and_may_come_later() {
    let fixture = open();
    let mut first = UnixStream::connect(&fixture.path).unwrap();
    first.write_all(b"1").unwrap();
    wait_for(|| fixture.queue.room() == READ_AHEAD - 1);
    let mut second = UnixStream::connect(&fixture.path).unwrap();
    let mut text = Vec::new();
    second.read_to_end(&mut text).unwrap();
    assert_eq!(text, BUSY);
    drop(first);
    let mut third = UnixStream::connect(&fixture.path).unwrap();
    third.write_all(b"3").unwrap();
    wait_for(|| fixture.queue.room() == READ_AHEAD - 2);
}

#[test]
fn half_closed_client_still_reads() {
    let fixture = open();
    let mut client = UnixStream::connect(&fixture.path).unwrap();
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_for(|| fixture.queue.room() == READ_AHEAD - 1);
    thread::sleep(Duration::from_millis(20));
    fixture
        .socket
        .output
        .handle()
        .write_all(b"answer\n")
        .unwrap();
    assert_eq!(read_until(&mut client, "\n"), "answer\n");
}

#[test]
fn client_can_leave_while_the_guest_reads_nothing() {
    let fixture = open();
    let mut client = UnixStream::connect(&fixture.path).unwrap();
    client.write_all(&[b'x'; 3 * READ_AHEAD]).unwrap();
    wait_for(|| fixture.queue.room() == 0);
    drop(client);
    fixture.socket.output.handle().write_all(b"hung\n").unwrap();
    wait_for(|| {
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let mut text = [0; 5];
        client.read_exact(&mut text).is_ok() && text == *b"hung\n"
    });
}

/// Takes 64 bytes at every second offer.
struct SlowGuest {
    received: Mutex<(Vec<u8>, bool)>,
    room: vmm_sys_util::eventfd::EventFd,
}

impl InputTarget for SlowGuest {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut received = self.received.lock().unwrap();
        received.1 = !received.1;
        if !received.1 {
            return 0;
        }
        received.0.extend(bytes);
        bytes.len()
    }

    fn input_room(&self) -> &vmm_sys_util::eventfd::EventFd {
        &self.room
    }
}

#[test]
fn input_of_a_client_that_left_arrives_whole() {
    let fixture = open();
    let sent: Vec<u8> = (0..64u32 << 10).map(|i| (i % 251) as u8).collect();
    let mut client = UnixStream::connect(&fixture.path).unwrap();
    client.write_all(&sent).unwrap();
    drop(client);
    wait_for(|| fixture.queue.room() == 0);
    // The next client finds the console free, and its input comes afterwards.
    let mut next = UnixStream::connect(&fixture.path).unwrap();
    next.write_all(b"next").unwrap();
    let guest = SlowGuest {
        received: Mutex::default(),
        room: vmm_sys_util::eventfd::EventFd::new(0).unwrap(),
    };
    wait_for(|| {
        fixture.queue.pump(&guest);
        guest.received.lock().unwrap().0.len() >= sent.len() + 4
    });
    let received = std::mem::take(&mut guest.received.lock().unwrap().0);
    assert!(received[..sent.len()] == sent);
    assert_eq!(received[sent.len()..], *b"next");
}

#[test]
fn client_with_a_small_buffer_gets_what_fits() {
    let mut shared = Shared::default();
    shared.remember(&[b'x'; REPLAY]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
    let client = shared.attach(ours).expect("attached all the same");
    shared.detach(&client);
    let mut text = Vec::new();
    (&theirs).read_to_end(&mut text).unwrap();
    assert!(!text.is_empty() && text.len() < REPLAY, "{}", text.len());
}

#[test]
fn client_that_does_not_read_is_left_after_a_while() {
    let fixture = open();
    let client = UnixStream::connect(&fixture.path).unwrap();
    let output = fixture.socket.output.handle();
    thread::spawn({
        let mut output = output.clone();
        move || output.write_all(&[b'x'; 1 << 20]).unwrap()
    })
    .join()
    .unwrap();
    thread::sleep(Duration::from_millis(50));
    drop(fixture);
    drop(client);
}

#[test]
fn file_is_private_and_goes_with_the_console() {
    let fixture = open();
    let metadata = fs::symlink_metadata(&fixture.path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let Fixture { socket, path, .. } = fixture;
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn replaced_file_is_left_alone() {
    let Fixture {
        socket,
        path,
        _dir: dir,
        ..
    } = open();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "someone else's").unwrap();
    drop(socket);
    assert_eq!(fs::read_to_string(&path).unwrap(), "someone else's");
    drop(dir);
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    fs::write(&path, "precious").unwrap();
    let says = |why: &str| {
        let error = listen_error(&path).to_string();
        assert!(error.contains(why), "{error}");
    };
    says("this is no socket and is left alone");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    let alive = UnixListener::bind(&path).unwrap();
    says("another process listens on this socket");
    drop(alive);
    assert!(path.exists(), "the socket of a process that died");
    let (file, _listener) = listen(&path).unwrap();
    drop(file);

    let _datagram = UnixDatagram::bind(&path).unwrap();
    says("another process listens on this socket");
}

#[test]
fn bad_paths_are_errors() {
    let long = "x".repeat(200);
    for path in ["/nonexistent/console", "/proc/console", "", &long] {
        let text = listen_error(Path::new(path)).to_string();
        assert!(text.contains("choose another path"), "{text}");
    }
}
