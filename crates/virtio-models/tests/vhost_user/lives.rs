// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A backend that works, and one that ends.

use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_models::vhost_user::{Backend, Fault, VhostUser};
use virtio_transport::layout::EVENT_IDX;
use virtio_transport::registers::NEEDS_RESET;
use virtio_transport::testing::{
    Driver, Flags, MEMORY, Machine, MmioPort, PciPort, Port, Request, Subject, memory,
};

use super::Echoes;
use super::support::{CONFIG, Host, shape};

fn machine<P: Port>(backend: &Arc<Backend>) -> Machine<P> {
    let device = VhostUser::new(Arc::clone(backend));
    Machine::new(Box::new(device), &memory(MEMORY))
}

/// Sends a request and waits for its answer and its interrupt.
fn round<P: Port>(machine: &mut Machine<P>, driver: &mut Driver, n: u32) {
    let request: Request = Echoes(Host::new()).request(n);
    machine.port.take_interrupts();
    for ring in &driver.rings {
        ring.set_used_event(ring.available());
    }
    driver.send(machine, &request);
    machine.kick(request.queue);
    let mut has_interrupt = false;
    machine.pump_until(|machine| {
        for (_, reply) in driver.receive_all(machine) {
            Echoes(Host::new()).check(n, driver.features(), &reply);
        }
        has_interrupt |= machine.port.take_interrupts().queue;
        has_interrupt && driver.in_flight() == 0
    });
}

#[test]
fn answers_come_with_interrupts() {
    fn on<P: Port>() {
        for wanted in [u64::MAX, !EVENT_IDX] {
            let mut machine = machine::<P>(&Host::new().backend());
            let mut driver = Driver::start(&mut machine, wanted);
            machine.pump();
            (0..8).for_each(|n| round(&mut machine, &mut driver, n));
            assert!(machine.failures.is_empty());
        }
    }
    on::<MmioPort>();
    on::<PciPort>();
}

#[test]
fn a_backend_may_have_fewer_features_of_the_protocol() {
    let all = [
        VhostUserProtocolFeatures::CONFIG,
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ,
    ];
    for protocol in all {
        let mut machine = machine::<PciPort>(&Host::with(protocol).backend());
        let mut driver = Driver::start(&mut machine, u64::MAX);
        machine.pump();
        (0..4).for_each(|n| round(&mut machine, &mut driver, n));
    }
}

#[test]
fn a_backend_that_ends_costs_the_device_and_a_new_one_serves_it_again() {
    fn on<P: Port>() {
        let host = Host::new();
        let mut machine = machine::<P>(&host.backend());
        let mut driver = Driver::start(&mut machine, u64::MAX);
        machine.pump();
        (0..2).for_each(|n| round(&mut machine, &mut driver, n));
        host.kill();
        host.set_down(true);
        machine.pump_until(|machine| machine.port.status() & NEEDS_RESET != 0);
        let why = machine.failures[0].to_string();
        assert!(why.starts_with("its vhost-user backend has ended"), "{why}");
        assert_eq!((machine.failures.len(), machine.poller.watched()), (1, 0));
        machine.pause().expect("a device without a backend");
        machine.resume();
        // There is none yet.
        Driver::start(&mut machine, u64::MAX);
        machine.pump();
        let why = machine.failures[1].to_string();
        assert!(why.contains("can't be reached; start it"), "{why}");
        host.set_down(false);
        let mut driver = Driver::start(&mut machine, u64::MAX);
        machine.pump();
        (0..4).for_each(|n| round(&mut machine, &mut driver, n));
        assert_eq!(machine.failures.len(), 2);
    }
    on::<MmioPort>();
    on::<PciPort>();
}

#[test]
fn a_backend_that_ended_between_two_drivers_is_connected_to_again() {
    let host = Host::new();
    let mut machine = machine::<PciPort>(&host.backend());
    host.kill();
    let mut driver = Driver::start(&mut machine, u64::MAX);
    machine.pump();
    round(&mut machine, &mut driver, 1);
    assert!(machine.failures.is_empty());
}

#[test]
fn a_backend_serves_one_device_at_a_time() {
    let backend = Host::new().backend();
    let (mut first, mut second) = (machine::<PciPort>(&backend), machine::<PciPort>(&backend));
    Driver::start(&mut first, u64::MAX);
    first.pump();
    Driver::start(&mut second, u64::MAX);
    second.pump();
    let why = second.failures[0].to_string();
    assert!(why.contains("serves another device"), "{why}");
    first.set_status(0);
    first.pump_until(|machine| machine.port.status() == 0);
    second.failures.clear();
    let mut driver = Driver::start(&mut second, u64::MAX);
    second.pump();
    round(&mut second, &mut driver, 0);
    assert!(second.failures.is_empty());
}

#[test]
fn the_backend_is_told_of_what_the_driver_writes() {
    let host = Host::new();
    let mut machine = machine::<PciPort>(&host.backend());
    let read = |machine: &mut Machine<PciPort>| {
        let mut config = [0; 6];
        machine.port.read(PciPort::CONFIG, &mut config[..4]);
        machine.port.read(PciPort::CONFIG + 4, &mut config[4..]);
        config
    };
    assert_eq!(read(&mut machine), CONFIG);
    let driver = Driver::prepare(&mut machine, u64::MAX);
    machine.write(PciPort::CONFIG + 1, &[7]);
    driver.finish(&mut machine);
    machine.pump();
    machine.write(PciPort::CONFIG + 2, &[8]);
    assert_eq!(read(&mut machine), [1, 7, 8, 4, 5, 6]);
    assert!(machine.failures.is_empty());
}

#[test]
fn what_a_driver_breaks_it_repairs_by_a_reset() {
    let mut machine = machine::<PciPort>(&Host::new().backend());
    for queue in 0..2 {
        for attack in 0..3 {
            let mut driver = Driver::start(&mut machine, u64::MAX);
            machine.pump();
            let ring = &mut driver.rings[queue];
            match attack {
                0 => ring.set_available(0x8000),
                1 => ring.offer(0x7fff),
                _ => {
                    ring.descriptor(0, (MEMORY as u64, u32::MAX), Flags::NEXT, 0);
                    ring.offer(0);
                }
            }
            machine.kick(queue as u16);
            machine.pump();
            let mut driver = Driver::start(&mut machine, u64::MAX);
            machine.pump();
            (0..2).for_each(|n| round(&mut machine, &mut driver, n));
        }
    }
}

#[test]
fn private_memory_is_no_backends() {
    let private = vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), MEMORY)]);
    let private = Arc::new(private.unwrap());
    let device = VhostUser::new(Host::new().backend());
    let mut machine = Machine::<PciPort>::new(Box::new(device), &private);
    Driver::start(&mut machine, u64::MAX);
    machine.pump();
    let why = machine.failures[0].to_string();
    assert!(why.contains("private to this process"), "{why}");
}

#[test]
fn a_device_has_no_more_queues_than_its_backend() {
    let mut shape = shape();
    shape.queues = Some(3);
    let fault = Backend::open(shape, Host::new().connector()).unwrap_err();
    assert!(
        matches!(fault, Fault::Queues { has: 2, wanted: 3 }),
        "{fault}"
    );
}
