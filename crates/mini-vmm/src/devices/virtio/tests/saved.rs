// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved states.

use super::*;
use crate::config::IoThreadName;
use crate::devices::{RestoreError, Saved};

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    let first = Rig::mmio(echo());
    let mut rings = first.start(2);
    send(&first.memory, &mut rings[1]);
    first.write(0x50, 1);
    answer(&mut rings[1]);
    first.set.pause().unwrap();
    send(&first.memory, &mut rings[1]);
    let saved = first.set.save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();

    let second = Rig::mmio(echo());
    let parsed: Vec<Saved> = serde_json::from_str(&text).unwrap();
    copy(&first, &second);
    second.set.restore(&parsed).unwrap();
    assert_eq!(second.set.save().unwrap(), saved);
    rings[1].move_to(&second.memory);
    second.set.resume();
    answer(&mut rings[1]);
    send(&second.memory, &mut rings[1]);
    second.write(0x50, 1);
    answer(&mut rings[1]);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let first = Rig::mmio(echo());
    let _rings = first.start(2);
    first.set.pause().unwrap();
    let saved = first.set.save().unwrap();
    let fresh = Rig::mmio(echo());
    let before = fresh.set.save().unwrap();
    let edits: [(&str, serde_json::Value); 4] = [
        ("/transport/registers/status", 4.into()),
        ("/transport/interrupt_status", 8.into()),
        ("/device/positions", serde_json::Value::Null),
        ("/device/device/kind", "block".into()),
    ];
    for (field, value) in edits {
        let mut bad = saved.clone();
        *bad[0].state.pointer_mut(field).unwrap() = value;
        let error = fresh.set.restore(&bad).unwrap_err();
        assert!(
            matches!(error, RestoreError::Virtio { .. }),
            "{field}: {error}"
        );
        assert_eq!(fresh.set.save().unwrap(), before, "{field}");
    }
    let mut bad = saved.clone();
    bad[0].version = 2;
    fresh.set.restore(&bad).unwrap_err();
    fresh.set.restore(&saved).unwrap();
    assert_eq!(fresh.set.save().unwrap(), saved);
}

#[test]
fn a_second_device_that_is_refused_leaves_the_first_as_it_was() {
    for thread in [None, IoThreadName::new("second")] {
        let rig = || Rig::several(vec![echo(), echo().on_thread(thread.clone())]);
        let mut first = rig();
        first.start_each();
        first.set.pause().unwrap();
        let saved = first.set.save().unwrap();
        let mut fresh = rig();
        let before = fresh.set.save().unwrap();
        let mut bad = saved.clone();
        *bad[1].state.pointer_mut("/device/device/kind").unwrap() = "block".into();
        fresh.set.restore(&bad).unwrap_err();
        assert_eq!(fresh.set.save().unwrap(), before);
        // It can be used by a driver, and restored.
        fresh.set.resume();
        let mut rings = fresh.start_each();
        send(&fresh.memory, &mut rings[1]);
        fresh.write(0x50, 0);
        answer(&mut rings[1]);
        fresh.set.pause().unwrap();
        fresh.set.restore(&saved).unwrap();
        assert_eq!(fresh.set.save().unwrap(), saved);
        fresh.set.resume();
    }
}
