// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine with an echo device, and its drivers.

use virtio_transport::registers::{DRIVER_OK, NEEDS_RESET};
use virtio_transport::testing::{Driver, Echo, MEMORY, Machine, Port, Request, memory};

/// The status of a driver that is ready.
pub const READY: u8 = 15;

/// A machine before its driver's first access.
pub fn machine<P: Port>() -> Machine<P> {
    Machine::new(Box::new(Echo::new()), &memory(MEMORY))
}

/// A machine whose driver has set `FEATURES_OK` and set up its queues.
pub fn prepared<P: Port>() -> (Machine<P>, Driver) {
    let mut machine = machine();
    let driver = Driver::prepare(&mut machine, u64::MAX);
    (machine, driver)
}

/// A running machine. Its driver accepted the offered features of `wanted`.
pub fn started<P: Port>(wanted: u64) -> (Machine<P>, Driver) {
    let mut machine = machine();
    let driver = Driver::start(&mut machine, wanted);
    machine.pump();
    (machine, driver)
}

/// Sends a request and checks its answer.
pub fn serve<P: Port>(machine: &mut Machine<P>, driver: &mut Driver) {
    let request = Request {
        queue: 0,
        readable: b"virtio".to_vec(),
        writable: 6,
    };
    let number = driver.send(machine, &request);
    machine.kick(0);
    machine.pump();
    let (found, reply) = driver.receive(machine, 0).expect("an answer");
    assert_eq!((found, reply.len), (number, 6));
    assert!(machine.failures.is_empty());
}

/// Whether the device is live.
pub fn is_live<P: Port>(machine: &mut Machine<P>) -> bool {
    machine.pump();
    let live = machine.port.status() & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
    assert_eq!(machine.worker.is_running(), live);
    live
}

/// Checks that the device needs a reset and has interrupted for it, and that it works after one.
pub fn breaks<P: Port>(machine: &mut Machine<P>) {
    machine.port.take_interrupts();
    machine.kick(0);
    machine.pump();
    assert_eq!(machine.port.status(), READY | NEEDS_RESET);
    assert!(machine.port.take_interrupts().config);
    assert_eq!(machine.failures.len(), 1);
    works(machine);
}

/// Checks that the device works after a reset.
pub fn works<P: Port>(machine: &mut Machine<P>) {
    machine.failures.clear();
    let mut driver = Driver::start(machine, u64::MAX);
    serve(machine, &mut driver);
}

/// 32 bits at an offset.
pub fn get_32<P: Port>(machine: &mut Machine<P>, offset: u64) -> u32 {
    let mut data = [0; 4];
    machine.port.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// 16 bits at an offset.
pub fn get_16<P: Port>(machine: &mut Machine<P>, offset: u64) -> u16 {
    let mut data = [0; 2];
    machine.port.read(offset, &mut data);
    u16::from_le_bytes(data)
}
