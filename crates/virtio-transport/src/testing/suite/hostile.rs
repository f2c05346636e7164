// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings that violate the rules.

use crate::registers::{DRIVER_OK, NEEDS_RESET};
use crate::testing::{Driver, DriverRing, Flags, Port};

use super::{MEMORY, Subject, machine, works};

/// A name, whether the device must report [`Broken`](crate::Broken), and the change to a ring.
type Attack = (&'static str, bool, fn(&mut DriverRing));

/// An address without memory.
const HOLE: u64 = MEMORY as u64;
/// An address with memory that is otherwise unused.
const DATA: u64 = HOLE - 0x1_0000;

/// One chain of descriptors 0, 1, ...
fn chain(ring: &mut DriverRing, buffers: &[(u64, u32)], flags: &[Flags]) {
    for (i, (buffer, flags)) in (0..).zip(buffers.iter().zip(flags)) {
        ring.descriptor(i, *buffer, *flags, i + 1);
    }
    ring.offer(0);
}

const NONE: Flags = Flags(0);
const NEXT: Flags = Flags::NEXT;
const WRITE: Flags = Flags::WRITE;
const INDIRECT: Flags = Flags::INDIRECT;

/// An indirect table at `DATA` with a single entry.
fn indirect(ring: &mut DriverRing, len: u32, entry: (u64, u32), flags: Flags) {
    ring.descriptor_at(DATA, entry, flags, 0);
    chain(ring, &[(DATA, len)], &[INDIRECT]);
}

const ATTACKS: &[Attack] = &[
    ("an index far ahead", true, |ring| {
        ring.set_available(0x8000)
    }),
    ("a head outside", true, |ring| ring.offer(0x7fff)),
    ("a loop", true, |ring| {
        ring.descriptor(0, (DATA, 1), NEXT, 0);
        ring.offer(0);
    }),
    ("a loop of nothing", true, |ring| {
        ring.descriptor(0, (DATA, 0), NEXT.and(WRITE), 0);
        ring.offer(0);
    }),
    ("a next outside", true, |ring| {
        ring.descriptor(0, (DATA, 1), NEXT, 0xffff);
        ring.offer(0);
    }),
    ("readable behind writable", true, |ring| {
        let buffers = [(DATA, 16), (DATA, 16)];
        chain(ring, &buffers, &[NEXT.and(WRITE), NONE]);
    }),
    ("more than 4 GiB", true, |ring| {
        let buffers = [(0, u32::MAX), (0, u32::MAX)];
        chain(ring, &buffers, &[NEXT.and(WRITE), WRITE]);
    }),
    ("a buffer that wraps", true, |ring| {
        chain(ring, &[(u64::MAX - 3, 16)], &[WRITE]);
    }),
    ("an indirect table of indirect tables", true, |ring| {
        indirect(ring, 16, (DATA, 16), INDIRECT);
    }),
    ("an indirect table that loops", true, |ring| {
        indirect(ring, 16, (DATA, 16), NEXT);
    }),
    ("an indirect table of no descriptors", true, |ring| {
        indirect(ring, 15, (DATA, 16), NONE);
    }),
    ("an indirect table in a hole", true, |ring| {
        chain(ring, &[(HOLE, 16)], &[INDIRECT]);
    }),
    ("an indirect table that goes on", true, |ring| {
        chain(ring, &[(DATA, 16)], &[INDIRECT.and(NEXT)]);
    }),
    ("a head twice", false, |ring| {
        chain(ring, &[(DATA, 16), (DATA, 16)], &[NEXT, WRITE]);
        ring.offer(0);
        ring.offer(0);
    }),
    ("a readable buffer in a hole", false, |ring| {
        chain(ring, &[(HOLE - 8, 16), (DATA, 16)], &[NEXT, WRITE]);
    }),
    ("a writable buffer in a hole", false, |ring| {
        chain(ring, &[(DATA, 16), (HOLE - 8, 16)], &[NEXT, WRITE]);
    }),
    ("4 GiB of holes", false, |ring| {
        chain(ring, &[(HOLE, u32::MAX)], &[WRITE]);
    }),
    ("4 GiB of holes to read", false, |ring| {
        chain(ring, &[(HOLE, u32::MAX), (DATA, 1)], &[NEXT, WRITE]);
    }),
    ("nothing to write", false, |ring| {
        chain(ring, &[(DATA, 512)], &[NONE]);
    }),
    ("nothing to read", false, |ring| {
        chain(ring, &[(DATA, 512)], &[WRITE]);
    }),
    ("nothing", false, |ring| chain(ring, &[(DATA, 0)], &[NONE])),
    ("one byte each", false, |ring| {
        chain(ring, &[(DATA, 1), (DATA, 1)], &[NEXT, WRITE]);
    }),
    ("its own ring as a buffer", false, |ring| {
        let at = ring.state().descriptors;
        chain(ring, &[(DATA, 64), (at, 4096)], &[NEXT, WRITE]);
    }),
];

/// Whatever a driver writes to its rings, the device answers or needs a reset, and works after one. Other queues and
/// machines are unaffected.
///
/// # Panics
/// If this doesn't hold.
pub fn hostile_rings<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let queues = machine.worker.device().layout().queues.len();
    for wanted in [u64::MAX, !crate::layout::EVENT_IDX] {
        for queue in 0..queues {
            for (name, breaks, attack) in ATTACKS {
                machine.failures.clear();
                let mut driver = Driver::start(&mut machine, wanted);
                machine.pump();
                machine.port.take_interrupts();
                attack(&mut driver.rings[queue]);
                machine.kick(queue as u16);
                machine.pump();
                let status = machine.port.status();
                assert_ne!(status & DRIVER_OK, 0, "{name}");
                let broken = status & NEEDS_RESET != 0;
                assert_eq!(broken, !machine.failures.is_empty(), "{name}");
                if *breaks && takes_requests(subject, queue) {
                    assert!(broken, "{name}: the device goes on with queue {queue}");
                }
                if broken {
                    assert!(
                        machine.port.take_interrupts().config,
                        "{name}: an interrupt"
                    );
                    assert!(!machine.worker.is_running());
                }
                works(subject, &mut machine);
            }
        }
    }
}

/// Whether the subject has requests for this queue. The device may never look at others.
fn takes_requests<S: Subject>(subject: &S, queue: usize) -> bool {
    (0..16).any(|n| usize::from(subject.request(n).queue) == queue)
}
