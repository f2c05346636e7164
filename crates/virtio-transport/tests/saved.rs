// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! States that no driver can produce are refused, whatever else they contain.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use virtio_transport::testing::{
    Driver, Echo, MEMORY, Machine, MmioPort, PciPort, Port, Seen, memory,
};
use virtio_transport::worker::WorkerState;

/// The state of a running machine, as `[transport, device]`.
fn saved<P: Port>() -> Value {
    let mut machine = machine::<P>();
    Driver::start(&mut machine, u64::MAX);
    machine.pump();
    machine.pause().unwrap();
    serde_json::to_value(machine.save()).unwrap()
}

fn machine<P: Port>() -> Machine<P> {
    Machine::new(Box::new(Echo::new()), &memory(MEMORY))
}

/// Restores a state. After an error the machine must be unchanged.
fn restore<P: Port>(state: &Value) -> Result<(), String> {
    let state: (P::State, WorkerState) = serde_json::from_value(state.clone()).unwrap();
    let mut machine = machine::<P>();
    let before = machine.save();
    let restored = machine.restore(&state).map_err(|error| error.to_string());
    if restored.is_err() {
        assert!(
            machine.save() == before,
            "a refused state changed something"
        );
    }
    restored
}

const STATUS: &str =
    "the saved state can't be: the device status has bits that no driver sets together";
const FEATURES: &str =
    "the saved state can't be: the driver has features that this device doesn't offer";
const CONFIG: &str =
    "the saved state can't be: the configuration has another length than this device's";
const COUNT: &str = "the saved state can't be: the device has another number of queues";
const SIZE: &str = "the saved state can't be: a queue has a size that this device doesn't offer";
const READY: &str = "the saved state can't be: a queue is ready that can't be";
const RUNS: &str = "the saved state can't be: status and device don't agree on whether it runs";
const OTHERS: &str =
    "the saved state can't be: the device runs other queues than its driver set up";
const KIND: &str = "the saved state is that of a device of kind \"rng\", not \"echo\"";
const KEY: &str = "the saved state can't be: the echo's key is above 128";

fn both<P: Port>() {
    let good = saved::<P>();
    assert_eq!(restore::<P>(&good), Ok(()));
    let cases = [
        ("/0/registers/status", json!(14), STATUS),
        ("/0/registers/status", json!(4), STATUS),
        ("/0/registers/status", json!(31), STATUS),
        ("/0/registers/status", json!(0), READY),
        ("/0/registers/status", json!(3), READY),
        ("/0/registers/status", json!(11), RUNS),
        ("/0/registers/status", json!(15 | 64), RUNS),
        ("/0/registers/features", json!(0), FEATURES),
        ("/0/registers/features", json!(1_u64 << 32 | 2), FEATURES),
        ("/0/registers/features", json!(u64::MAX), FEATURES),
        ("/0/registers/config", json!([]), CONFIG),
        ("/0/registers/config", json!([0, 0, 0, 0, 0, 0, 0]), CONFIG),
        ("/0/registers/queues", json!([]), COUNT),
        ("/0/registers/queues/0/size", json!(0), SIZE),
        ("/0/registers/queues/0/size", json!(48), SIZE),
        ("/0/registers/queues/0/size", json!(128), SIZE),
        ("/0/registers/queues/0/descriptors", json!(8), READY),
        ("/0/registers/queues/0/available", json!(1), READY),
        ("/0/registers/queues/0/used", json!(2), READY),
        ("/0/registers/queues/0/ready", json!(false), OTHERS),
        ("/1/positions", Value::Null, RUNS),
        ("/1/positions", json!([]), COUNT),
        ("/1/positions/1", Value::Null, OTHERS),
        ("/1/device/kind", json!("rng"), KIND),
        ("/1/device/state/key", json!(129), KEY),
    ];
    for (place, value, wanted) in cases {
        let mut state = good.clone();
        *state.pointer_mut(place).unwrap() = value.clone();
        // The device refuses only after the transport has accepted its part.
        let found = if wanted == KIND || wanted == KEY {
            let state: (P::State, WorkerState) = serde_json::from_value(state).unwrap();
            machine::<P>()
                .restore(&state)
                .map_err(|error| error.to_string())
        } else {
            restore::<P>(&state)
        };
        assert_eq!(found, Err(wanted.to_owned()), "{place} = {value}");
    }
}

#[test]
fn what_both_transports_have_is_checked() {
    both::<MmioPort>();
    both::<PciPort>();
}

#[test]
fn what_one_transport_has_is_checked() {
    let mut state = saved::<MmioPort>();
    state[0]["interrupt_status"] = json!(4);
    let unknown = "the saved state can't be: the interrupt status has unknown bits";
    assert_eq!(restore::<MmioPort>(&state), Err(unknown.to_owned()));

    let vector = "the saved state can't be: the function has no such MSI-X vector";
    let cases = [
        (
            "/0/interrupt/isr",
            json!(4),
            "the saved state can't be: the ISR has unknown bits",
        ),
        ("/0/interrupt/config", json!(3), vector),
        ("/0/interrupt/queues/1", json!(0xfffe), vector),
        ("/0/interrupt/queues", json!([0]), COUNT),
    ];
    for (place, value, wanted) in cases {
        let mut state = saved::<PciPort>();
        *state.pointer_mut(place).unwrap() = value;
        assert_eq!(
            restore::<PciPort>(&state),
            Err(wanted.to_owned()),
            "{place}"
        );
    }
    // A driver may write anything to the window.
    let mut state = saved::<PciPort>();
    state[0]["window"] = json!({"bar": 255, "offset": u32::MAX, "length": u32::MAX});
    assert_eq!(restore::<PciPort>(&state), Ok(()));
}

/// Its driver has not seen the interrupt when the machine is saved, and a chip that is saved early lacks it.
#[test]
fn an_interrupt_that_was_on_its_way_comes_again() {
    let mut first = machine::<MmioPort>();
    let mut driver = Driver::start(&mut first, u64::MAX);
    first.pump();
    first.port.take_interrupts();
    driver.rings[0].set_available(100);
    first.kick(0);
    first.pump();
    assert!(first.port.status() & 64 != 0, "the device needs a reset");
    first.pause().unwrap();
    let state = first.save();
    let mut second = machine::<MmioPort>();
    second.restore(&state).unwrap();
    assert_eq!(second.port.take_interrupts(), Seen::default());
    second.resume();
    let seen = second.port.take_interrupts();
    assert!(seen.config && !seen.queue, "{seen:?}");
}
