// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest is told, and when.

use std::fs::File;

use virtio_models::console::{Peer, Size, Sources, Stream};
use virtio_transport::testing::Port as _;

use crate::support::*;

/// A terminal of any size.
struct Terminal(Size);

impl Peer for Terminal {
    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // What is typed on it is its new size.
        self.0.cols = bytes.len() as u16;
        Ok(bytes.len())
    }

    fn sources(&self) -> Sources<'_> {
        Sources::default()
    }

    fn size(&self) -> Option<Size> {
        Some(self.0)
    }
}

#[test]
fn ports_are_announced_with_their_names() {
    let terminal = Terminal(Size { cols: 80, rows: 24 });
    let ports = vec![
        port("first", silent()),
        port("second", Place::new().server()),
    ];
    let mut guest = Guest::new(device(Some(shared(terminal)), ports));
    assert!(guest.messages().is_empty(), "the driver is not ready");
    guest.tell(0, DEVICE_READY, 1);
    let added: Vec<_> = (0..3).map(|id| (id, DEVICE_ADD, 0, vec![])).collect();
    assert_eq!(guest.messages(), added);
    guest.tell(0, DEVICE_READY, 1);
    assert!(guest.messages().is_empty(), "a port is added once");
    guest.tell(0, PORT_READY, 1);
    assert_eq!(
        guest.messages(),
        [
            (0, CONSOLE_PORT, 1, vec![]),
            (0, RESIZE, 0, vec![80, 0, 24, 0]),
            (0, PORT_OPEN, 1, vec![]),
        ]
    );
    guest.tell(2, PORT_READY, 0);
    assert!(
        guest.messages().is_empty(),
        "a port that the guest can't have"
    );
    guest.tell(2, PORT_READY, 1);
    assert_eq!(guest.messages(), [(2, PORT_NAME, 1, b"second".to_vec())]);
    guest.queue(1, vec![b'x'; 132], 0);
    assert_eq!(guest.messages(), [(0, RESIZE, 0, vec![132, 0, 24, 0])]);
}

#[test]
fn the_size_is_in_the_configuration() {
    let terminal = Terminal(Size {
        cols: 0x150,
        rows: 24,
    });
    let mut guest = Guest::new(device(Some(shared(terminal)), Vec::new()));
    let config = |guest: &Guest| guest.machine.worker.device().config();
    assert_eq!(config(&guest), [0x50, 1, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    guest.machine.port.take_interrupts();
    guest.queue(1, vec![b'x'; 132], 0);
    assert_eq!(config(&guest)[..4], [132, 0, 24, 0]);
    assert!(guest.machine.port.take_interrupts().config);
}

#[test]
fn messages_wait_for_buffers_and_are_cut_to_them() {
    let mut guest = Guest::new(device(None, vec![port("a-long-name", silent())]));
    guest.tell(0, DEVICE_READY, 1);
    guest.tell(1, PORT_READY, 1);
    // The driver was not told of the port yet.
    guest.queue(TO_DRIVER, Vec::new(), 64);
    assert_eq!(guest.replies(TO_DRIVER)[0].bytes[..6], [1, 0, 0, 0, 1, 0]);
    guest.tell(1, PORT_READY, 1);
    guest.queue(TO_DRIVER, Vec::new(), 10);
    let reply = &guest.replies(TO_DRIVER)[0];
    assert_eq!(reply.bytes, [1, 0, 0, 0, 7, 0, 1, 0, b'a', b'-']);
}

#[test]
fn the_host_waits_until_a_process_opens_the_port() {
    let place = Place::new();
    let mut guest = Guest::new(device(None, vec![port("x", place.server())]));
    guest.tell(0, DEVICE_READY, 1);
    guest.messages();
    guest.tell(1, PORT_READY, 1);
    guest.messages();
    guest.queue(RX, Vec::new(), 64);
    let client = place.client();
    write(&client, b"early");
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    assert!(guest.data(RX).is_empty());
    guest.tell(1, PORT_OPEN, 1);
    assert_eq!(guest.data(RX), b"early");
    guest.tell(1, PORT_OPEN, 0);
    guest.queue(RX, Vec::new(), 64);
    write(&client, b"late");
    assert!(guest.data(RX).is_empty());
    guest.tell(1, PORT_OPEN, 1);
    assert_eq!(guest.data(RX), b"late");
}

#[test]
fn emergency_writes_need_no_driver() {
    use virtio_transport::device::Io;
    use virtio_transport::testing::TestPoller;
    let (reader, writer) = small_pipe();
    let console = shared(Stream::new(None, Some(writer.into())));
    let mut device: Box<dyn virtio_transport::AnyDevice<_>> =
        Box::new(device(Some(console), Vec::new()));
    let mut poller = TestPoller::default();
    for (at, data) in [(8, &b"!xxx"[..]), (9, b"x"), (0, b"xx"), (8, b"?")] {
        device.set_config(&mut Io::new(&mut poller), at, data);
    }
    assert_eq!(read(&reader).0, b"!?");
}

#[test]
fn a_driver_without_ports_has_the_console() {
    let (reader, writer) = small_pipe();
    let zeros = File::open("/dev/zero").expect("zeros");
    let console = shared(Stream::new(Some(zeros.into()), Some(writer.into())));
    let mut guest = Guest::wanting(device(Some(console), vec![port("x", silent())]), !2);
    guest.queue(1, b"hello".to_vec(), 0);
    assert_eq!(read(&reader).0, b"hello");
    guest.queue(0, Vec::new(), 3);
    assert_eq!(guest.data(0), [0, 0, 0]);
    // The other queues do nothing.
    guest.queue(FROM_DRIVER, message(0, DEVICE_READY, 1), 0);
    guest.queue(TX, b"x".to_vec(), 0);
    assert!(guest.replies(FROM_DRIVER).is_empty() && guest.replies(TX).is_empty());
}
