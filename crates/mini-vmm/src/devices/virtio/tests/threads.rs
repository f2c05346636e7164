// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads of devices.

use std::fs;
use std::sync::{Mutex, mpsc};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::hooked::Hooks;
use super::*;
use crate::config::IoThreadName;
use crate::devices::SuspendError;
use crate::outcome::Outcome;
use crate::sync::lock;

/// Whether this process has a thread of this name.
fn has_thread(name: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let mut names =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.any(|found| found.trim_end() == name)
}

#[test]
fn a_stuck_device_does_not_hold_one_on_another_thread() {
    let gate = Arc::new(Mutex::new(()));
    let (begun, stuck) = mpsc::channel();
    let behind = Arc::clone(&gate);
    let hooks = Hooks::process(move || {
        let _ = begun.send(());
        drop(lock(&behind));
    });
    let shut = lock(&gate);
    let models = vec![
        hooks.model().on_thread(IoThreadName::new("stuck")),
        echo().on_thread(IoThreadName::new("free")),
    ];
    let mut rig = Rig::several(models);
    assert!(!has_thread("io-stuck") && !has_thread("io-free"));
    let mut rings = rig.start_each();
    stuck.recv().unwrap();
    for _ in 0..3 {
        rig.select(1);
        send(&rig.memory, &mut rings[1]);
        rig.write(0x50, 0);
        answer(&mut rings[1]);
    }
    // A thread that runs has its name.
    assert!(has_thread("io-stuck") && has_thread("io-free"));
    drop(shut);
    rig.select(0);
    send(&rig.memory, &mut rings[0]);
    rig.write(0x50, 0);
    answer(&mut rings[0]);
    drop(rig);
    // The host removes a joined thread a moment later.
    while has_thread("io-stuck") || has_thread("io-free") {
        thread::yield_now();
    }
}

#[test]
fn devices_of_one_name_share_a_thread_which_their_first_driver_starts() {
    let name = || IoThreadName::new("shared");
    let models = vec![echo().on_thread(name()), echo().on_thread(name()), echo()];
    let mut rig = Rig::several(models);
    rig.select(1);
    rig.start(1);
    let threads = format!("{:?}", rig.set);
    assert_eq!(threads.matches("IoThread {").count(), 2, "{threads}");
    assert_eq!(threads.matches("is_running: true").count(), 1, "{threads}");
}

#[test]
fn a_panic_of_a_device_is_the_outcome() {
    let mut rig = Rig::several(vec![
        Hooks::process(|| panic!("as the test wants it")).model(),
        echo().on_thread(IoThreadName::new("well")),
    ]);
    let mut rings = rig.start_each();
    // Comes with the outcome.
    while rig.latch.get().is_none() {
        thread::yield_now();
    }
    assert_eq!(rig.latch.get(), Some(Outcome::DeviceFailure));
    send(&rig.memory, &mut rings[1]);
    rig.write(0x50, 0);
    answer(&mut rings[1]);
    // Nothing waits for the dead thread.
    let error = rig.set.pause().unwrap_err();
    assert!(
        matches!(&error, SuspendError::Thread { thread } if thread == "io"),
        "{error}"
    );
}

/// What a thread inherited from the vCPU that started it.
#[test]
fn a_thread_runs_where_the_machine_was_made_and_takes_no_signals() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let hooks = Hooks::process(move || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
        let cpus = sched_getaffinity(None).unwrap().count();
        lock(&sender).send((cpus, blocked)).unwrap();
    });
    let rig = Rig::mmio(hooks.model());
    let whole = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| whole.is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).unwrap();
    let _rings = rig.start(1);
    let (cpus, blocked) = seen.recv().unwrap();
    assert_eq!(cpus, whole.count());
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, 64] {
        assert_ne!(blocked & 1 << (signal - 1), 0, "signal {signal}");
    }
}
