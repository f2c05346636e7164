// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several pairs of queues, the control queue, interrupts, saved states.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_models::net::{Mac, Net, NetConfig, NetState};
use virtio_transport::Device;
use virtio_transport::device::{Active, Event, Interrupt, Io};
use virtio_transport::layout::EVENT_IDX;
use virtio_transport::queue::Virtq;
use virtio_transport::testing::{Buffers, DriverRing, Memory, TestPoller, memory};

use crate::support::*;

const PLAIN: [u8; HEADER] = [0; HEADER];
const OK: u8 = 0;
const ERR: u8 = 1;

/// The command to use this many pairs.
fn pairs(count: u16) -> Vec<u8> {
    [&[4, 0], &count.to_le_bytes()[..]].concat()
}

fn wires(count: usize) -> Vec<Wire> {
    (0..count).map(|_| Wire::new()).collect()
}

/// Whether the pair receives and sends.
fn works(guest: &mut Guest, wires: &[Wire], pair: u16) -> (bool, bool) {
    let wire = &wires[usize::from(pair)];
    let before = wire.line().sent.len();
    guest.give(2 * pair, &[200]);
    wire.deliver(PLAIN, frame(100));
    guest.queue(2 * pair + 1, &[&PLAIN[..], &frame(50)].concat(), &[], 0);
    guest.machine.kick(2 * pair + 1);
    guest.machine.pump();
    let sends = wire.line().sent.len() > before;
    (!guest.used(2 * pair).is_empty(), sends)
}

#[test]
fn a_driver_says_how_many_pairs_it_uses() {
    let wires = wires(3);
    let mut guest = Guest::new(&wires, u64::MAX);
    let on = |wires: &[Wire]| -> Vec<_> {
        wires
            .iter()
            .map(|wire| wire.line().active == Some(true))
            .collect()
    };
    assert_eq!(on(&wires), [true, false, false]);
    assert_eq!(works(&mut guest, &wires, 0), (true, true));
    assert_eq!(works(&mut guest, &wires, 1), (false, false));
    for wrong in [0, 4, 0x8000, u16::MAX] {
        assert_eq!(guest.command(6, &pairs(wrong)), ERR);
    }
    assert_eq!(on(&wires), [true, false, false]);
    assert_eq!(guest.command(6, &pairs(3)), OK);
    assert_eq!(on(&wires), [true; 3]);
    // What waited is served now.
    assert_eq!(wires[1].line().sent.len(), 1);
    assert_eq!(guest.used(2).len(), 1);
    guest.used(3);
    for pair in 0..3 {
        assert_eq!(works(&mut guest, &wires, pair), (true, true), "{pair}");
    }
    guest.give(4, &[200]);
    assert_eq!(guest.command(6, &pairs(2)), OK);
    assert_eq!(on(&wires), [true, true, false]);
    assert_eq!(works(&mut guest, &wires, 2), (false, false));
    // A reset leaves one.
    guest.restart(u64::MAX);
    assert_eq!(on(&wires), [true, false, false]);
    assert!(guest.machine.failures.is_empty());
}

#[test]
fn without_multiqueue_the_control_queue_is_the_third() {
    let wires = wires(3);
    let mut guest = Guest::new(&wires, !MQ);
    assert_eq!(guest.command(2, &pairs(1)), ERR);
    assert_eq!(guest.command(2, &[1, 0, 1]), ERR);
    assert_eq!(works(&mut guest, &wires, 0), (true, true));
}

#[test]
fn commands_that_make_no_sense_are_answered() {
    let mut guest = Guest::new(&wires(2), u64::MAX);
    // Receive modes, MAC filters, VLANs, announcements, offloads, RSS: none is offered.
    for class in 0..=255 {
        for command in [0, 1, 2, 255] {
            if (class, command) != (4, 0) {
                assert_eq!(guest.command(4, &[class, command, 1, 0]), ERR, "{class}");
            }
        }
    }
    assert_eq!(guest.command(4, &[4, 0, 1]), ERR);
    assert_eq!(guest.command(4, &[4]), ERR);
    assert_eq!(guest.command(4, &[]), ERR);
    // One without space for an answer.
    guest.queue(4, &pairs(1), &[], 0);
    guest.machine.kick(4);
    guest.machine.pump();
    assert_eq!(guest.used(4), [Vec::<u8>::new()]);
    assert_eq!(guest.command(4, &pairs(2)), OK);
}

#[test]
fn many_commands_are_answered_in_turns() {
    let mut guest = Guest::new(&wires(2), u64::MAX);
    for round in 0..40 {
        for _ in 0..8 {
            guest.queue(4, &pairs(1 + round % 2), &[], 1);
        }
        guest.machine.kick(4);
        guest.machine.pump();
        assert_eq!(guest.used(4), vec![[OK]; 8]);
    }
}

#[test]
fn the_configuration_tells_what_is_offered() {
    let config = NetConfig {
        mtu: Some(9000),
        ..config()
    };
    let guest = Guest::with(config, &wires(2), u64::MAX, (None, None));
    let told = guest.machine.worker.device().config();
    assert_eq!(told, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x28, 0x23]);
    let offered = |wires: &[Wire], mtu| {
        let links = wires.iter().map(Wire::link).collect();
        let config = NetConfig {
            mtu,
            ..crate::support::config()
        };
        let net = Net::<Memory>::new(config, links, Box::new(|_| ()));
        Device::layout(&net).features & !virtio_transport::layout::RING_FEATURES
    };
    let (mac, merge, status) = (1 << 5, 1 << 15, 1 << 16);
    let basic = mac | merge | status;
    let offloads = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | 1 << 11 | 1 << 12;
    assert_eq!(offered(&wires(1), None), basic | offloads);
    assert_eq!(
        offered(&wires(2), Some(68)),
        basic | offloads | MQ | 1 << 17 | 1 << 3
    );
    let bare = Wire::new();
    bare.line().has_no_headers = true;
    assert_eq!(offered(&[bare], None), basic);
}

#[test]
fn a_state_is_restored_to_a_device_of_the_same_kind_only() {
    let net = |count, mtu| {
        let links = wires(count).iter().map(Wire::link).collect();
        let config = NetConfig { mtu, ..config() };
        Net::<Memory>::new(config, links, Box::new(|_| ()))
    };
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let state = NetState {
        mac,
        mtu: None,
        pairs: 2,
    };
    let mut device = net(2, None);
    assert_eq!(device.restore(1, state), Ok(()));
    assert_eq!(device.save(), state);
    let mut config = Vec::new();
    Device::config(&device, &mut config);
    assert_eq!(config[..6], mac.0);
    let mtu = Some(1500);
    for (mut device, state) in [
        (net(1, None), state),
        (net(2, Some(1500)), state),
        (net(2, None), NetState { mtu, ..state }),
        (
            net(2, Some(1500)),
            NetState {
                mtu: Some(67),
                ..state
            },
        ),
        (net(2, None), NetState { pairs: 0, ..state }),
        (
            net(2, None),
            NetState {
                mac: Mac([1; 6]),
                ..state
            },
        ),
    ] {
        let before = device.save();
        assert!(device.restore(1, state).is_err(), "{state:?}");
        assert_eq!(device.save(), before);
    }
}

/// Counts interrupts.
#[derive(Default)]
struct Bell(AtomicU32);

impl Interrupt for Bell {
    fn queue(&self, _: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {}
}

#[test]
fn a_burst_of_frames_is_one_interrupt() {
    for features in [MRG_RXBUF, MRG_RXBUF | EVENT_IDX] {
        let wire = Wire::new();
        let mut net = Net::new(config(), vec![wire.link()], Box::new(|_| ()));
        let memory = memory(1 << 20);
        let mut rings = [0, 0x1_0000].map(|base| DriverRing::new(&memory, base, 64));
        let queue = |ring: &DriverRing| Virtq::new(&ring.state(), features, &*memory).ok();
        let bell = Arc::new(Bell::default());
        let active = Active {
            features,
            memory: memory.clone(),
            queues: rings.iter().map(queue).collect(),
            interrupt: Arc::clone(&bell) as Arc<dyn Interrupt>,
        };
        let mut poller = TestPoller::default();
        let mut io = Io::new(&mut poller);
        net.start(&mut io, active).expect("a device that starts");
        for i in 0..20 {
            let buffer = vec![(0x2_0000 + 0x1000 * i, 200)];
            let (readable, writable) = (buffer.clone(), buffer);
            rings[0].send(&Buffers {
                readable: Vec::new(),
                writable,
            });
            rings[1].send(&Buffers {
                readable,
                writable: Vec::new(),
            });
            wire.deliver(PLAIN, frame(100));
        }
        for queue in [0, 1] {
            net.process(&mut io, Event::Queue(queue)).expect("a queue");
            let used = std::iter::from_fn(|| rings[usize::from(queue)].take());
            assert_eq!(used.count(), 20);
            assert_eq!(bell.0.swap(0, Ordering::Relaxed), 1);
        }
        assert!(!io.wants_again());
    }
}
