// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved states.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use virtio_transport::device::{RestoreError, Saved};
use virtio_transport::queue::Position;
use virtio_transport::worker::{SaveError, WorkerState};

use crate::bench::{Bench, RUNS};

#[test]
fn only_a_stopped_device_is_saved_and_what_it_completed_is_stored_first() {
    let mut bench = Bench::new();
    bench.start(0);
    let by = Instant::now();
    assert!(matches!(bench.worker.save(by), Err(SaveError::Running)));
    bench.pause().unwrap();
    bench.calls();
    let plan = Arc::clone(&bench.plan);
    plan.lock().unwrap().stored_at = Some(by + Duration::from_nanos(1));
    let late = bench.worker.save(by).unwrap_err();
    assert!(matches!(late, SaveError::Flush(_)), "{late}");
    assert_eq!(bench.calls(), "flush");
    (plan.lock().unwrap().stored_at, plan.lock().unwrap().key) = (Some(by), 9);
    let saved = bench.worker.save(by).unwrap();
    assert_eq!(bench.calls(), "flush, save");
    assert_eq!(saved.positions, Some(vec![None, Some(Position::default())]));
    let Saved {
        kind,
        version,
        state,
    } = &saved.device;
    assert_eq!((kind.as_str(), *version, state), ("puppet", 3, &json!(9)));

    let mut other = Bench::new();
    let activation = other.activation(0);
    other
        .worker
        .restore(&saved, Some(activation.clone()))
        .unwrap();
    assert_eq!(
        (other.calls().as_str(), other.worker.is_running()),
        ("restore 3", false)
    );
    assert_eq!(other.resume(), "config [9, 0]");
    let used = other.worker.restore(&saved, Some(activation));
    assert!(matches!(used, Err(RestoreError::Value(_))));
}

#[test]
fn a_restore_can_be_undone_before_the_device_runs() {
    let mut bench = Bench::new();
    let by = Instant::now();
    let before = bench.worker.save(by).unwrap();
    let activation = bench.activation(0);
    let running = WorkerState {
        positions: Some(activation.positions()),
        ..before.clone()
    };
    bench.worker.restore(&running, Some(activation)).unwrap();
    assert_eq!(bench.worker.save(by).unwrap(), running);
    bench.worker.restore(&before, None).unwrap();
    assert_eq!(bench.worker.save(by).unwrap(), before);
    bench.calls();
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, "")
    );
    assert_eq!(bench.start(0), RUNS);
}

#[test]
fn states_of_others_are_refused() {
    let bad = |change: fn(&mut Saved)| {
        let mut bench = Bench::new();
        let mut device = Saved {
            kind: "puppet".to_owned(),
            version: 3,
            state: json!(1),
        };
        change(&mut device);
        let state = WorkerState {
            positions: None,
            device,
        };
        let restored = bench.worker.restore(&state, None);
        assert_eq!(bench.calls().is_empty(), restored.is_err());
        restored.map_err(|error| error.to_string())
    };
    assert_eq!(bad(|_| {}), Ok(()));
    assert_eq!(
        bad(|saved| saved.version = 2),
        Ok(()),
        "an older form is the device's to judge"
    );
    let kind = bad(|saved| saved.kind = "rng".to_owned()).unwrap_err();
    assert_eq!(
        kind,
        "the saved state is that of a device of kind \"rng\", not \"puppet\""
    );
    assert!(
        bad(|saved| saved.version = 4)
            .unwrap_err()
            .contains("version 4, and 3 is the newest")
    );
    assert!(
        bad(|saved| saved.state = json!(256))
            .unwrap_err()
            .contains("can't be read")
    );
}
