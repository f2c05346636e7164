// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Negotiation, requests, resets.

use std::time::Duration;

use crate::layout::{EVENT_IDX, RING_FEATURES, VERSION_1};
use crate::queue::Virtq;
use crate::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use crate::testing::{Driver, Machine, Port};

use super::{Subject, Traffic, machine, works};

/// Whether the device accepts these features.
fn takes<P: Port>(machine: &mut Machine<P>, features: u64) -> bool {
    machine.set_status(0);
    machine.set_status(ACKNOWLEDGE);
    machine.set_status(ACKNOWLEDGE | DRIVER);
    machine.port.set_driver_features(0, features as u32);
    machine.port.set_driver_features(1, (features >> 32) as u32);
    machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    machine.port.status() & FEATURES_OK != 0
}

/// The device accepts what it offers and its own rules allow, and nothing else.
///
/// # Panics
/// If this doesn't hold.
pub fn negotiation<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let layout = machine.worker.device().layout();
    let port = &mut machine.port;
    let offered = u64::from(port.device_features(0)) | u64::from(port.device_features(1)) << 32;
    assert_eq!(offered, layout.features | VERSION_1);
    assert_eq!(
        [port.device_features(2), port.device_features(u32::MAX)],
        [0, 0]
    );
    assert!(takes(&mut machine, offered) && takes(&mut machine, VERSION_1));
    assert!(!takes(&mut machine, offered & !VERSION_1) && !takes(&mut machine, 0));
    for bit in 0..64 {
        let features = VERSION_1 | 1 << bit;
        let wanted = layout.accepts(features);
        assert_eq!(takes(&mut machine, features), wanted, "feature {bit}");
    }
    for (queue, size) in (0..).zip(&layout.queues) {
        assert_eq!(machine.port.max_queue_size(queue), *size);
    }
    let queues = layout.queues.len() as u16;
    assert_eq!(machine.port.max_queue_size(queues), 0);
    // A driver that was refused may want less.
    machine.port.set_driver_features(1, u32::MAX);
    assert!(!takes(&mut machine, u64::MAX) && takes(&mut machine, VERSION_1));
    works(subject, &mut machine);
}

/// The device answers requests with every ring feature, and interrupts when asked to.
///
/// # Panics
/// If this doesn't hold.
pub fn requests<P: Port, S: Subject>(subject: &S) {
    for wanted in [u64::MAX, !RING_FEATURES, !EVENT_IDX] {
        let mut machine = machine::<P, S>(subject);
        let mut traffic = Traffic::start(subject, &mut machine, wanted);
        machine.pump();
        for burst in [1, 2, 5, 1, 4] {
            for ring in &traffic.driver.rings {
                // After the next request.
                ring.set_used_event(ring.available());
            }
            machine.port.take_interrupts();
            traffic.send(&mut machine, burst);
            traffic.finish(&mut machine);
            assert!(machine.port.take_interrupts().queue, "an interrupt");
        }
        // No interrupt is wanted.
        let wants_none = traffic.driver.features() & EVENT_IDX == 0;
        if wants_none {
            traffic
                .driver
                .rings
                .iter()
                .for_each(|ring| ring.set_no_interrupt(true));
            traffic.send(&mut machine, 4);
            traffic.finish(&mut machine);
            assert!(!machine.port.take_interrupts().queue, "no interrupt");
        }
    }
}

/// Notifications of missing queues, or before the driver is ready, are ignored.
///
/// # Panics
/// If one has an effect.
pub fn notifications_of_no_queue<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let kick = |machine: &mut Machine<P>| {
        for queue in [0, 1, 2, 63, 0x7fff, u16::MAX] {
            machine.kick(queue);
        }
        machine.pump();
    };
    kick(&mut machine);
    let driver = Driver::prepare(&mut machine, u64::MAX);
    kick(&mut machine);
    assert!(!machine.worker.is_running());
    driver.finish(&mut machine);
    kick(&mut machine);
    assert!(machine.failures.is_empty());
    works(subject, &mut machine);
}

/// No write to a running device changes its queues.
///
/// # Panics
/// If one does.
pub fn frozen_parameters<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let mut traffic = Traffic::start(subject, &mut machine, u64::MAX);
    traffic.send(&mut machine, 3);
    traffic.finish(&mut machine);
    let before = machine.port.registers().clone();
    for queue in 0..traffic.driver.rings.len() as u16 {
        let mut state = traffic.driver.rings[usize::from(queue)].state();
        state.size /= 2;
        state.descriptors += 0x1_0000;
        state.available += 0x1_0000;
        state.used += 0x1_0000;
        machine.port.set_up_queue(queue, &state);
        assert!(machine.port.is_queue_ready(queue));
    }
    machine.port.set_driver_features(0, 0);
    machine.port.set_driver_features(1, 0);
    assert_eq!(machine.port.registers().parameters(), before.parameters());
    traffic.send(&mut machine, 5);
    traffic.finish(&mut machine);
}

/// A driver may reset and start again at any step.
///
/// # Panics
/// If the device doesn't work then.
pub fn reset_at_every_step<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let steps = [
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        ACKNOWLEDGE | DRIVER | FAILED,
        ACKNOWLEDGE | FAILED,
    ];
    for status in steps {
        machine.set_status(status & ACKNOWLEDGE);
        machine.set_status(status & !FAILED);
        machine.set_status(status);
        assert_eq!(machine.port.status(), status);
        machine.set_status(0);
        assert_eq!(machine.port.status(), 0);
        assert_eq!(
            machine.port.max_queue_size(0),
            machine.worker.device().layout().queues[0]
        );
    }
    Driver::prepare(&mut machine, u64::MAX);
    machine.set_status(0);
    assert_eq!(machine.port.status(), 0);
    assert!(!machine.port.is_queue_ready(0));
    for _ in 0..3 {
        Driver::start(&mut machine, u64::MAX);
        // Before and after the device has been told.
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
        Driver::start(&mut machine, u64::MAX);
        machine.pump();
        machine.set_status(0);
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
    }
    works(subject, &mut machine);
}

/// A reset while requests are in flight: when it is done, the device writes nothing for old requests, and works.
///
/// # Panics
/// If this doesn't hold.
pub fn reset_in_mid_io<P: Port, S: Subject>(subject: &S) {
    for turns in 0..4 {
        let mut machine = machine::<P, S>(subject);
        let mut traffic = Traffic::start(subject, &mut machine, u64::MAX);
        if turns > 0 {
            machine.pump();
        }
        traffic.send(&mut machine, 4);
        for _ in 1..turns {
            machine.step();
        }
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
        assert!(!machine.worker.is_running() && machine.poller.watched() == 0);
        let before = machine.image();
        machine.pump();
        std::thread::sleep(Duration::from_millis(1));
        machine.pump();
        assert!(
            machine.image() == before,
            "the device writes after its reset"
        );
        works(subject, &mut machine);
    }
}

/// Queues of states that the suite makes itself.
pub(super) fn can_run<P: Port>(machine: &Machine<P>, driver: &Driver) -> bool {
    let states = driver.rings.iter().map(|ring| ring.state());
    let mut queues = states.map(|state| Virtq::new(&state, 0, &*machine.memory));
    machine.port.registers().status() & DRIVER_OK != 0 && queues.all(|queue| queue.is_ok())
}
