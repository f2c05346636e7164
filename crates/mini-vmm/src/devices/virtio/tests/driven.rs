// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers of devices on MMIO.

use super::*;

#[test]
fn a_thread_is_made_by_the_first_driver() {
    let rig = Rig::mmio(echo());
    assert_eq!(rig.read(0), u32::from_le_bytes(*b"virt"));
    rig.set.pause().unwrap();
    rig.set.save().unwrap();
    rig.set.resume();
    assert!(!rig.has_thread());
    let mut rings = rig.start(1);
    assert!(rig.has_thread());
    send(&rig.memory, &mut rings[0]);
    rig.write(0x50, 0);
    assert_eq!(answer(&mut rings[0]).len, 4);
    while rig.read(0x60) & 1 == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_device_that_pauses_between_requests_gets_its_turn_again() {
    let rig = Rig::mmio(echo());
    let mut rings = rig.start(1);
    let request = Buffers {
        readable: Vec::new(),
        writable: vec![(WRITABLE, 4)],
    };
    // The echo takes 16 at a time.
    for _ in 0..32 {
        rings[0].send(&request);
    }
    rig.write(0x50, 0);
    for _ in 0..32 {
        answer(&mut rings[0]);
    }
}

#[test]
fn a_reset_is_done_when_its_write_returns() {
    let rig = Rig::mmio(echo());
    for _ in 0..3 {
        let mut rings = rig.start(2);
        assert_eq!(rig.read(0x70), 15);
        send(&rig.memory, &mut rings[1]);
        rig.write(0x50, 1);
        rig.write(0x70, 0);
        assert_eq!((rig.read(0x70), rig.read(0x60)), (0, 0));
    }
}
#[test]
fn a_write_to_the_configuration_is_done_when_it_returns() {
    let rig = Rig::mmio(echo());
    rig.negotiate();
    assert_eq!(
        rig.bus.mmio_write(VIRTIO_MMIO + 0x104, &[9]),
        vcpu_loop::Next::Continue
    );
    assert_eq!(rig.read(0x104) & 0xff, 9);
    assert!(!rig.has_thread(), "an idle device needs none");
    let _rings = rig.start(1);
    let _ = rig.bus.mmio_write(VIRTIO_MMIO + 0x104, &[11]);
    assert_eq!(rig.read(0x104) & 0xff, 11);
}

#[test]
fn a_driver_that_breaks_a_rule_is_told_and_can_begin_anew() {
    let rig = Rig::mmio(echo());
    let mut ring = rig.start(1).remove(0);
    ring.set_available(100);
    rig.write(0x50, 0);
    while rig.read(0x70) & 64 == 0 {
        std::thread::yield_now();
    }
    let mut ring = rig.start(1).remove(0);
    assert_eq!(rig.read(0x70), 15);
    send(&rig.memory, &mut ring);
    rig.write(0x50, 0);
    answer(&mut ring);
}
