// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes of the host that connect, or don't.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, getrlimit, setrlimit};
use virtio_models::vsock::{Host, MAX_CONNECTIONS, Notice, Vsock};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, memory};

use crate::support::*;

#[test]
fn half_a_command_costs_nothing() {
    let mut guest = Guest::new();
    let mut client = guest.place.client("CONNECT 10");
    // It would not rest.
    guest.machine.pump();
    guest.give(1, 64);
    assert!(guest.packets().is_empty());
    client.write_all(b"00\n").unwrap();
    assert_eq!(guest.packet().dst_port, 1000);
}

#[test]
fn clients_that_say_nothing_useful_are_closed() {
    let mut guest = Guest::new();
    guest.give(1, 64);
    for command in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT\n",
        "CONNECT 1 2\n",
        &"x".repeat(100),
    ] {
        let client = guest.place.client(command);
        guest.machine.pump();
        assert!(is_closed(&client), "{command}");
    }
    for command in ["", "CONNECT 1", "CONNECT 1000\n"] {
        drop(guest.place.client(command));
        guest.machine.pump();
    }
    // The last one was complete. It is closed when the guest answers.
    let request = guest.packet();
    guest.give(1, 64);
    guest.send(&request.answer(RESPONSE));
    assert_eq!(guest.ops(), [RST]);
    assert_eq!(guest.counters.added(), 1);
    assert_eq!(guest.counters.removed(), 1);
}

#[test]
fn a_client_that_says_nothing_is_closed_in_the_end() {
    let mut guest = Guest::on(Place::new(), SHORT);
    for command in ["", "CONNECT 1"] {
        let client = guest.place.client(command);
        guest.machine.pump_until(|_| is_closed(&client));
    }
    guest.give(1, 64);
    assert!(
        guest.packets().is_empty(),
        "the guest knows nothing of them"
    );
}

#[test]
fn a_guest_that_doesnt_answer_loses_the_connection() {
    let mut guest = Guest::on(Place::new(), SHORT);
    // Before it took the request: it never hears of it.
    let client = guest.place.client("CONNECT 5\n");
    guest.machine.pump_until(|_| is_closed(&client));
    // After.
    guest.give(2, 64);
    let client = guest.place.client("CONNECT 6\n");
    guest.machine.pump_until(|_| is_closed(&client));
    let packets = guest.packets();
    let seen: Vec<_> = packets
        .iter()
        .map(|packet| (packet.op, packet.dst_port))
        .collect();
    assert_eq!(seen, [(REQUEST, 6), (RST, 6)]);
    assert_eq!(guest.counters.killed(), 2);
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let mut guest = Guest::new();
    let client = guest.place.client("CONNECT 5\n");
    guest.give(2, 64);
    let request = guest.packet();
    guest.send(&request.answer(RST));
    assert_eq!(read(&client), (Vec::new(), true));
    assert!(guest.packets().is_empty(), "a reset has no answer");
}

#[test]
fn the_hosts_ports_differ() {
    let mut guest = Guest::new();
    let (mut ports, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let (client, request) = guest.accept();
        clients.push(client);
        ports.push(request.src_port);
    }
    let first = ports[0];
    assert_eq!(ports, (first..first + 20).collect::<Vec<_>>());
}

/// Every connection is the same socket.
struct One {
    ours: UnixStream,
    _peers: UnixStream,
    listener: UnixStream,
}

impl Host for One {
    fn source(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&self) -> std::io::Result<OwnedFd> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }

    fn connect(&self, _: u32) -> std::io::Result<OwnedFd> {
        Ok(self.ours.try_clone()?.into())
    }
}

#[test]
fn there_are_up_to_1023_connections() {
    assert_eq!(MAX_CONNECTIONS, 1023);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut place = Place::new();
    let (ours, peers) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let listener = peers.try_clone().unwrap();
    let one = One {
        ours,
        _peers: peers,
        listener,
    };
    place.host = Arc::new(one);
    let mut guest = Guest::on(place, LONG);
    let request = |port| Packet {
        src_port: port,
        ..packet(REQUEST)
    };
    for port in 0..1023 {
        guest.give(1, 64);
        assert!(guest.sends(&request(port)));
        assert_eq!(guest.ops(), [RESPONSE], "{port}");
    }
    guest.give(1, 64);
    assert!(guest.sends(&request(2000)));
    assert_eq!(guest.ops(), [RST]);
    // One that ends makes room.
    let reset = Packet {
        src_port: 77,
        ..packet(RST)
    };
    assert!(guest.sends(&reset));
    guest.give(1, 64);
    assert!(guest.sends(&request(2000)));
    assert_eq!(guest.ops(), [RESPONSE]);
}

#[test]
fn clients_beyond_the_limit_are_closed() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        clients.push(guest.place.client(""));
        guest.machine.pump();
    }
    let late = guest.place.client("CONNECT 1\n");
    guest.machine.pump();
    assert!(is_closed(&late));
    assert!(!is_closed(&clients[500]));
    clients.pop();
    guest.machine.pump();
    guest.accept();
}

/// A host that has no descriptors left for a while.
struct Short {
    place: Place,
    failures: AtomicUsize,
}

impl Short {
    fn fails(&self) -> std::io::Result<()> {
        let left = self.failures.load(Ordering::Relaxed);
        self.failures
            .store(left.saturating_sub(1), Ordering::Relaxed);
        match left {
            0 => Ok(()),
            _ => Err(std::io::Error::from_raw_os_error(libc::EMFILE)),
        }
    }
}

impl Host for Short {
    fn source(&self) -> BorrowedFd<'_> {
        self.place.host.source()
    }

    fn accept(&self) -> std::io::Result<OwnedFd> {
        self.fails()?;
        self.place.host.accept()
    }

    fn connect(&self, port: u32) -> std::io::Result<OwnedFd> {
        self.fails()?;
        self.place.host.connect(port)
    }
}

#[test]
fn a_host_without_descriptors_is_told_of_once_and_tried_again() {
    let short = Arc::new(Short {
        place: Place::new(),
        failures: AtomicUsize::new(3),
    });
    let notices = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&notices);
    let report = Box::new(move |notice: Notice| said.lock().unwrap().push(notice.to_string()));
    let host = Arc::clone(&short) as Arc<dyn Host>;
    let device = Vsock::<Memory>::new(CID as u32, host, report);
    let counters = device.counters();
    let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
    let _driver = Driver::start(&mut machine, u64::MAX);
    machine.pump();
    let _client = short.place.client("CONNECT 1000\n");
    // It rests, instead of looking at the same client for ever.
    machine.pump();
    machine.pump_until(|_| counters.added() == 1);
    let notices = notices.lock().unwrap();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("raise the limit on open files"));
}
