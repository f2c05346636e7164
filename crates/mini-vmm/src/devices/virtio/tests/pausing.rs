// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pauses.

use std::sync::{Barrier, Mutex};

use super::hooked::Hooks;
use super::*;
use crate::config::IoThreadName;
use crate::devices::SuspendError;
use crate::sync::lock;

#[test]
fn a_paused_device_touches_nothing_and_looks_at_its_queues_later() {
    let rig = Rig::mmio(echo());
    let mut rings = rig.start(2);
    for queue in [0, 1] {
        send(&rig.memory, &mut rings[queue]);
        rig.write(0x50, queue as u32);
        answer(&mut rings[queue]);
    }
    rig.set.pause().unwrap();
    for ring in &mut rings {
        send(&rig.memory, ring);
        rig.write(0x50, 0);
    }
    // Later requests to the thread are handled later.
    rig.set.save().unwrap();
    assert!(rings.iter_mut().all(|ring| ring.take().is_none()));
    rig.set.resume();
    for ring in &mut rings {
        answer(ring);
    }
}

/// A stop that only ends once the other device's stop has begun, so it never does if one device waits for the other.
#[test]
fn devices_on_two_threads_stop_at_the_same_time_with_one_deadline() {
    let deadlines = Arc::new(Mutex::new(Vec::new()));
    let both = Arc::new(Barrier::new(2));
    let hooks = Hooks::stop({
        let (deadlines, both) = (Arc::clone(&deadlines), Arc::clone(&both));
        move |by| {
            lock(&deadlines).push(by);
            both.wait();
            true
        }
    });
    let models = ["left", "right"].map(|name| hooks.model().on_thread(IoThreadName::new(name)));
    let mut rig = Rig::several(models.into());
    rig.start_each();
    rig.set.pause().unwrap();
    let deadlines = lock(&deadlines).clone();
    assert!(
        deadlines.len() == 2 && deadlines[0] == deadlines[1],
        "{deadlines:?}"
    );
    rig.set.resume();
}

#[test]
fn devices_on_one_thread_have_one_deadline() {
    let deadlines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&deadlines);
    let hooks = Hooks::stop(move |by| {
        lock(&kept).push(by);
        true
    });
    let mut rig = Rig::several(vec![hooks.model(); 2]);
    rig.start_each();
    rig.set.pause().unwrap();
    let deadlines = lock(&deadlines);
    assert!(
        deadlines.len() == 2 && deadlines[0] == deadlines[1],
        "{deadlines:?}"
    );
}

/// The other device, on whatever thread, goes on as well.
#[test]
fn a_device_that_does_not_stop_fails_the_pause_and_all_go_on() {
    for thread in [None, IoThreadName::new("other")] {
        let busy = Hooks::stop(|_| false).model();
        let mut rig = Rig::several(vec![busy, echo().on_thread(thread)]);
        let rings = rig.start_each();
        let error = rig.set.pause().unwrap_err();
        assert!(
            matches!(&error, SuspendError::Busy { device } if device == "hooked"),
            "{error}"
        );
        for (number, mut ring) in rings.into_iter().enumerate() {
            rig.select(number);
            send(&rig.memory, &mut ring);
            rig.write(0x50, 0);
            assert_eq!(answer(&mut ring).len, 4);
        }
        rig.set.save().unwrap_err();
    }
}
