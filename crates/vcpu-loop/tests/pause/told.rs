// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vCPU is told of pauses, and of what it leaves undone.

use std::sync::{Arc, Mutex};

use vcpu_loop::script::{RecordingIo, ScriptError, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{Error, Exit, Kick, ManagedVcpu, SaveVcpu, State, SystemEvent, Vcpu, VcpuEvent};

use crate::support::{SOON, set};

/// A vCPU that records what it is told.
struct Told(ScriptedVcpu, Arc<Mutex<Vec<&'static str>>>);

impl Vcpu for Told {
    type Error = ScriptError;
    fn run(&mut self) -> Result<Exit<'_>, ScriptError> {
        self.0.run()
    }
    fn complete(&mut self) -> Result<Exit<'_>, ScriptError> {
        self.0.complete()
    }
}

impl SaveVcpu for Told {
    type State = ScriptState;
    fn save(&mut self) -> Result<ScriptState, ScriptError> {
        self.0.save()
    }
    fn abandon(&mut self) -> Result<(), ScriptError> {
        self.1.lock().unwrap().push("abandoned");
        self.0.abandon()
    }
    fn restore(&mut self, state: &ScriptState) -> Result<(), ScriptError> {
        self.0.restore(state)
    }
}

impl ManagedVcpu for Told {
    fn kicker(&self) -> Arc<dyn Kick> {
        self.0.kicker()
    }
    fn paused(&mut self) -> Result<(), ScriptError> {
        self.1.lock().unwrap().push("paused");
        self.0.paused()
    }
    fn resuming(&mut self) -> Result<(), ScriptError> {
        let mut told = self.1.lock().unwrap();
        told.push("resuming");
        if told.len() > 4 {
            return Err(ScriptError::Host);
        }
        Ok(())
    }
}

#[test]
fn a_vcpu_is_told_once_of_each_pause_and_resume() {
    let (mut vcpus, events) = set();
    let told = Arc::default();
    let vcpu = Told(ScriptedVcpu::new([]), Arc::clone(&told));
    vcpus.spawn(0, vcpu, RecordingIo::unclaimed()).unwrap();
    vcpus.pause(SOON).unwrap();
    for _ in 0..2 {
        vcpus.resume(SOON).unwrap();
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
    let log = ["resuming", "paused", "resuming", "paused"];
    assert_eq!(*told.lock().unwrap(), log);
    // One that can't resume fails.
    let refused = vcpus.resume(SOON);
    assert!(matches!(
        refused,
        Err(Error::Refused {
            state: State::Failed,
            ..
        })
    ));
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Fatal { .. })
    ));
}

/// It may be spawned again after hours; then the guest's clock must report the pause.
#[test]
fn a_vcpu_that_is_stopped_while_it_runs_is_told_of_a_pause() {
    let told = Arc::default();
    let spawned = || {
        let (mut vcpus, events) = set();
        let vcpu = Told(ScriptedVcpu::new([]), Arc::clone(&told));
        vcpus.spawn(0, vcpu, RecordingIo::unclaimed()).unwrap();
        vcpus.resume(SOON).unwrap();
        (vcpus, events)
    };
    let (mut vcpus, _events) = spawned();
    vcpus.stop(SOON).unwrap();
    assert_eq!(*told.lock().unwrap(), ["resuming", "paused"]);
    let (vcpus, _events) = spawned();
    drop(vcpus);
    assert_eq!(told.lock().unwrap()[2..], ["resuming", "paused"]);
    // Told already, or never run.
    told.lock().unwrap().clear();
    let (mut vcpus, _events) = spawned();
    vcpus.pause(SOON).unwrap();
    vcpus.stop(SOON).unwrap();
    assert_eq!(*told.lock().unwrap(), ["resuming", "paused"]);
}

#[test]
fn what_is_pending_at_a_fatal_exit_is_abandoned_before_anybody_hears_of_it() {
    let unknown = Step::Other {
        reason: 99,
        data: vec![0; 256],
    };
    let reset = SystemEvent {
        kind: 2,
        count: 0,
        data: [0; 16],
    };
    for step in [unknown, Step::Shutdown, Step::SystemEvent(reset)] {
        let (mut vcpus, events) = set();
        let told = Arc::default();
        let vcpu = Told(ScriptedVcpu::new([step.clone()]), Arc::clone(&told));
        vcpus.spawn(0, vcpu, RecordingIo::unclaimed()).unwrap();
        vcpus.resume(SOON).unwrap();
        assert!(events.recv_timeout(SOON).is_some());
        assert_eq!(*told.lock().unwrap(), ["resuming", "abandoned"], "{step:?}");
        // The scripted vCPU would panic at a pending access.
        let state = ScriptState { retired: 5 };
        vcpus.restore(vec![state], SOON).unwrap();
        assert_eq!(vcpus.save(SOON).unwrap(), [state]);
    }
}
