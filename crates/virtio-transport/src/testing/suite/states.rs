// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pause, save, restore, and forged states.

use serde_json::Value;

use crate::testing::{Driver, Machine, Port};
use crate::worker::WorkerState;

use super::{MEMORY, Subject, Traffic, machine, memory, works};

/// A device that is paused and resumed answers each request once, as without a pause.
///
/// # Panics
/// If this doesn't hold.
pub fn stop_and_start<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    // Nothing runs yet.
    machine.pause().expect("an idle device");
    machine.resume();
    let mut traffic = Traffic::start(subject, &mut machine, u64::MAX);
    machine.pump();
    for round in 0..12 {
        traffic.send(&mut machine, 1 + round % 4);
        for _ in 0..round % 3 {
            machine.step();
        }
        machine.pause().expect("a device that drains");
        machine.pause().expect("a device that is paused");
        assert!(!machine.worker.is_running() && machine.poller.watched() == 0);
        let before = machine.image();
        machine.pump();
        assert!(machine.image() == before, "a paused device writes");
        traffic.receive(&machine);
        machine.port.take_interrupts();
        machine.resume();
        machine.resume();
        assert!(
            machine.port.take_interrupts().queue,
            "an interrupt after a resume"
        );
        if round % 2 == 0 {
            traffic.finish(&mut machine);
        }
    }
    traffic.finish(&mut machine);
    // A driver may also reset a paused device.
    machine.pause().expect("a device that drains");
    machine.set_status(0);
    machine.pump_until(|machine| machine.port.status() == 0);
    machine.resume();
    works(subject, &mut machine);
}

/// A machine that is saved, and restored as another one through JSON, continues.
///
/// # Panics
/// If this doesn't hold.
pub fn save_and_restore<P: Port, S: Subject>(subject: &S) {
    // One before its driver's first access.
    let mut first = machine::<P, S>(subject);
    first.pause().expect("an idle device");
    let mut other = again(subject, &mut first);
    other.resume();
    works(subject, &mut other);
    // One half set up.
    let mut first = machine::<P, S>(subject);
    let driver = Driver::prepare(&mut first, u64::MAX);
    first.pause().expect("an idle device");
    let mut other = again(subject, &mut first);
    other.resume();
    driver.finish(&mut other);
    other.pump();
    assert!(other.worker.is_running() && super::running::can_run(&other, &driver));
    // One that runs, again and again.
    let mut running = machine::<P, S>(subject);
    let mut traffic = Traffic::start(subject, &mut running, u64::MAX);
    for round in 0..4 {
        traffic.send(&mut running, 3);
        if round % 2 == 0 {
            running.pump();
        }
        // Commands from vCPUs are done before these are paused.
        running.settle();
        running.pause().expect("a device that drains");
        running = again(subject, &mut running);
        for ring in &mut traffic.driver.rings {
            ring.move_to(&running.memory);
        }
        running.resume();
        traffic.finish(&mut running);
    }
}

/// A new machine from the saved state.
fn again<P: Port, S: Subject>(subject: &S, machine: &mut Machine<P>) -> Machine<P> {
    let saved = machine.save();
    let json = serde_json::to_string(&saved).expect("a state as JSON");
    let read: (P::State, WorkerState) = serde_json::from_str(&json).expect("the same state");
    assert_eq!(read, saved);
    let memory = memory(MEMORY);
    machine.copy_memory(&memory);
    let mut other = Machine::<P>::new(Box::new(subject.device()), &memory);
    other.restore(&read).expect("a state of the same device");
    assert_eq!(other.save(), saved, "it is saved again as it was");
    other
}

/// Replaces the `nth` number, string, boolean or list of a state. Returns `false` if there are fewer.
fn forge(value: &mut Value, nth: &mut usize, with: &Value) -> bool {
    let is_leaf = !matches!(value, Value::Array(_) | Value::Object(_));
    if is_leaf || matches!(value, Value::Array(_)) {
        if *nth == 0 {
            *value = with.clone();
            return true;
        }
        *nth -= 1;
    }
    match value {
        Value::Array(list) => list.iter_mut().any(|value| forge(value, nth, with)),
        Value::Object(map) => map.values_mut().any(|value| forge(value, nth, with)),
        _ => false,
    }
}

/// A forged state is either refused, or is one that a driver could have produced. Then the device continues or breaks,
/// and works after a reset.
///
/// # Panics
/// If the device or its transport panics, or doesn't work afterwards.
pub fn forged_states<P: Port, S: Subject>(subject: &S) {
    let mut first = machine::<P, S>(subject);
    let mut traffic = Traffic::start(subject, &mut first, u64::MAX);
    traffic.send(&mut first, 3);
    traffic.finish(&mut first);
    first.pause().expect("a device that drains");
    let saved = first.save();
    let saved = serde_json::to_value(&saved).expect("a state as JSON");
    let values = [
        Value::from(0),
        Value::from(1),
        Value::from(0x7f),
        Value::from(0xff),
        Value::from(0xffff_u32),
        Value::from(0xffff_fff0_u32),
        Value::from(u64::MAX),
        Value::from(-1),
        Value::from("x"),
        Value::Null,
        Value::Bool(true),
        Value::Array(Vec::new()),
    ];
    let (mut forged, mut refused) = (0, 0);
    for with in &values {
        for nth in 0.. {
            let mut state = saved.clone();
            if !forge(&mut state, &mut nth.clone(), with) {
                break;
            }
            forged += 1;
            refused += u32::from(!survives::<P, S>(subject, &first, state));
        }
    }
    assert!(refused > 0 && refused < forged, "{refused} of {forged}");
}

/// Whether the state is accepted.
fn survives<P: Port, S: Subject>(subject: &S, first: &Machine<P>, state: Value) -> bool {
    let Ok(state) = serde_json::from_value::<(P::State, WorkerState)>(state) else {
        return false;
    };
    let memory = memory(MEMORY);
    first.copy_memory(&memory);
    let mut other = Machine::<P>::new(Box::new(subject.device()), &memory);
    if let Err(error) = other.restore(&state) {
        assert!(!error.to_string().is_empty());
        return false;
    }
    other.resume();
    other.pump();
    works(subject, &mut other);
    true
}
