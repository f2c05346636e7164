// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules for rings and chains, on a running device.

use virtio_transport::layout::{EVENT_IDX, INDIRECT_DESC};
use virtio_transport::testing::{Buffers, DriverRing, Flags, Machine, PciPort, Port, Request};
use vm_memory::{Bytes, GuestAddress};

use crate::support::{breaks, is_live, serve, started, works};

const DATA: u64 = 0x8_0000;
const TABLE: u64 = 0x9_0000;

/// Checks that a change to ring 0 breaks the device.
fn broken_by(wanted: u64, attack: impl Fn(&mut DriverRing)) {
    let (mut machine, mut driver) = started::<PciPort>(wanted);
    attack(&mut driver.rings[0]);
    breaks(&mut machine);
}

pub fn a_readable_buffer_follows_a_writable_one() {
    broken_by(u64::MAX, |ring| {
        ring.descriptor(0, (DATA, 8), Flags::WRITE.and(Flags::NEXT), 1);
        ring.descriptor(1, (DATA, 8), Flags::default(), 0);
        ring.offer(0);
    });
}

pub fn a_chain_is_longer_than_4_gib() {
    broken_by(u64::MAX, |ring| {
        ring.descriptor(0, (DATA, u32::MAX), Flags::NEXT, 1);
        ring.descriptor(1, (DATA, 2), Flags::default(), 0);
        ring.offer(0);
    });
}

pub fn a_chain_is_a_loop() {
    broken_by(u64::MAX, |ring| {
        ring.descriptor(0, (DATA, 8), Flags::NEXT, 1);
        ring.descriptor(1, (DATA, 8), Flags::NEXT, 0);
        ring.offer(0);
    });
}

pub fn an_indirect_table_was_not_negotiated() {
    let table = |ring: &mut DriverRing| {
        ring.descriptor_at(TABLE, (DATA, 8), Flags::default(), 0);
        ring.descriptor(0, (TABLE, 16), Flags::INDIRECT, 0);
        ring.offer(0);
    };
    broken_by(!INDIRECT_DESC, table);
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    table(&mut driver.rings[0]);
    machine.kick(0);
    assert!(is_live(&mut machine), "it is no fault where it was");
}

pub fn an_indirect_table_is_in_another() {
    broken_by(u64::MAX, |ring| {
        ring.descriptor_at(TABLE, (TABLE + 64, 16), Flags::INDIRECT, 0);
        ring.descriptor_at(TABLE + 64, (DATA, 8), Flags::default(), 0);
        ring.descriptor(0, (TABLE, 16), Flags::INDIRECT, 0);
        ring.offer(0);
    });
}

pub fn a_chain_is_longer_than_its_queue() {
    // Linux makes such chains, so they are accepted up to a limit.
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    let mut request = Buffers::default();
    request.readable.resize(65, (DATA, 1));
    request.writable.resize(65, (DATA, 1));
    driver.rings[0].send_indirect(TABLE, &request);
    machine.kick(0);
    assert!(is_live(&mut machine));
    assert_eq!(driver.rings[0].take().map(|used| used.len), Some(65));
    broken_by(u64::MAX, |ring| {
        let mut request = Buffers::default();
        request.writable.resize(1025, (DATA, 1));
        ring.send_indirect(TABLE, &request);
    });
}

pub fn an_indirect_table_goes_on() {
    broken_by(u64::MAX, |ring| {
        ring.descriptor_at(TABLE, (DATA, 8), Flags::default(), 0);
        ring.descriptor(0, (TABLE, 16), Flags::INDIRECT.and(Flags::NEXT), 1);
        ring.descriptor(1, (DATA, 8), Flags::default(), 0);
        ring.offer(0);
    });
}

pub fn the_available_index_is_decremented() {
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    serve(&mut machine, &mut driver);
    driver.rings[0].set_available(0);
    breaks(&mut machine);
}

pub fn the_available_flags_are_neither_0_nor_1() {
    // Only the lowest bit has a meaning.
    for (flags, interrupts) in [(0xfffe, true), (0xffff, false)] {
        let (mut machine, mut driver) = started::<PciPort>(!EVENT_IDX);
        write(&machine, driver.rings[0].state().available, flags);
        machine.port.take_interrupts();
        serve(&mut machine, &mut driver);
        assert_eq!(machine.port.take_interrupts().queue, interrupts);
    }
}

pub fn the_available_flags_are_not_0_with_event_idx() {
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    write(&machine, driver.rings[0].state().available, 0xffff);
    machine.port.take_interrupts();
    serve(&mut machine, &mut driver);
    assert!(machine.port.take_interrupts().queue, "they mean nothing");
}

pub fn the_used_flags_are_not_initialized() {
    for wanted in [u64::MAX, !EVENT_IDX] {
        let (mut machine, mut driver) = started::<PciPort>(wanted);
        write(&machine, driver.rings[0].state().used, 0xffff);
        serve(&mut machine, &mut driver);
        let expected = if wanted & EVENT_IDX == 0 { 0 } else { 0xffff };
        assert_eq!(
            driver.rings[0].used_flags(),
            expected,
            "they are the device's to write"
        );
    }
}

pub fn a_notification_is_left_out() {
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    let request = Request {
        queue: 0,
        readable: vec![1],
        writable: 1,
    };
    driver.send(&machine, &request);
    machine.pump();
    assert!(driver.receive(&machine, 0).is_none(), "nobody looks");
    // The next notification finds both.
    serve_second(&mut machine, &mut driver);
}

fn serve_second<P: Port>(machine: &mut Machine<P>, driver: &mut virtio_transport::testing::Driver) {
    machine.kick(0);
    machine.pump();
    assert!(driver.receive(machine, 0).is_some());
    serve(machine, driver);
}

pub fn a_chain_is_made_available_twice() {
    // Queue 1 is answered later, so the device still has the chain.
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    driver.rings[1].descriptor(0, (DATA, 8), Flags::WRITE, 0);
    driver.rings[1].offer(0);
    driver.rings[1].offer(0);
    machine.port.take_interrupts();
    machine.kick(1);
    machine.pump();
    assert!(!is_live(&mut machine));
    assert_eq!(machine.failures.len(), 1);
    works(&mut machine);
}

pub fn a_ring_is_taken_from_a_running_device() {
    // The data that replaces the rings is checked like any ring.
    let (mut machine, driver) = started::<PciPort>(u64::MAX);
    let at = GuestAddress(driver.rings[0].state().descriptors);
    let bytes = vec![0xff; DriverRing::bytes(64) as usize];
    machine.memory.write_slice(&bytes, at).unwrap();
    machine.kick(0);
    machine.pump();
    assert!(!is_live(&mut machine));
    works(&mut machine);
}

fn write<P: Port>(machine: &Machine<P>, at: u64, value: u16) {
    machine.memory.write_obj(value, GuestAddress(at)).unwrap();
}
