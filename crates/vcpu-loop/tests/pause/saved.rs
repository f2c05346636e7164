// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved states.

use vcpu_loop::script::{RecordingIo, ScriptError, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{
    BoxError, Error, Next, Request, SaveVcpu, SpawnError, State, StateHooks, Unchanged,
    VcpuBuilder, VcpuEvent, VcpuId, VcpuSet, vcpu_events,
};

use crate::support::{SOON, expect_paused, idle, set, wrmsr};

#[test]
fn a_state_that_does_not_fit_leaves_a_vcpu_as_it_was() {
    let (mut vcpus, events) = set();
    let vcpu = ScriptedVcpu::new([wrmsr(1), Step::Shutdown]);
    let io = RecordingIo::claiming(0);
    let calls = io.calls();
    vcpus.spawn(0, vcpu, io).unwrap();
    let misfit = || vcpus.restore(vec![ScriptState::MISFIT], SOON);
    assert!(matches!(misfit(), Err(Error::Host { .. })));
    // Still paused.
    assert_eq!(vcpus.save(SOON).unwrap(), [ScriptState { retired: 0 }]);
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Shutdown { .. })
    ));
    assert_eq!(calls.get().len(), 1);
    // Still ended.
    assert!(matches!(misfit(), Err(Error::Host { .. })));
    let refused = vcpus.resume(SOON);
    assert!(matches!(
        refused,
        Err(Error::Refused {
            state: State::Ended,
            ..
        })
    ));
}

#[test]
fn any_other_failed_restore_ends_a_vcpu() {
    #[derive(Debug, thiserror::Error)]
    #[error("the hook fails")]
    struct Wrapped(#[source] Option<ScriptError>);
    for (source, ended) in [
        (None, true),
        (Some(ScriptError::Host), true),
        (Some(ScriptError::Misfit), false),
    ] {
        let (mut vcpus, _events) = set();
        let hooks = StateHooks::new(
            |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| vcpu.save().map_err(Into::into),
            move |_: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| {
                Err(BoxError::from(Wrapped(source)))
            },
        );
        vcpus
            .spawn_with(
                VcpuBuilder::new(0, ScriptedVcpu::new([]), RecordingIo::unclaimed())
                    .state_hooks(hooks),
            )
            .unwrap();
        let state = vcpus.save(SOON).unwrap();
        assert!(vcpus.restore(state, SOON).is_err());
        assert_eq!(vcpus.save(SOON).is_err(), ended, "{source:?}");
    }
}

#[test]
fn save_is_refused_while_running() {
    let (mut vcpus, _events) = set();
    idle(&mut vcpus, 0);
    assert!(vcpus.save(SOON).is_ok(), "threads start paused");
    vcpus.resume(SOON).unwrap();
    let refused = Error::Refused {
        id: VcpuId(0),
        request: Request::Save,
        state: State::Running,
    }
    .to_string();
    assert_eq!(vcpus.save(SOON).unwrap_err().to_string(), refused);
    assert!(vcpus.restore(vec![ScriptState::default()], SOON).is_err());
    assert!(vcpus.dump(0, SOON).is_err());
    vcpus.pause(SOON).unwrap();
    assert!(vcpus.save(SOON).is_ok());
    assert!(vcpus.dump(0, SOON).unwrap().is_some());
    assert!(matches!(
        vcpus.restore(Vec::new(), SOON),
        Err(Error::WrongStateCount { given: 0, vcpus: 1 })
    ));
}

#[test]
fn states_come_back_in_the_order_of_the_vcpus() {
    let (mut vcpus, _events) = set();
    for id in [3, 1, 2] {
        idle(&mut vcpus, id);
    }
    let again = vcpus.spawn(1, ScriptedVcpu::new([]), RecordingIo::unclaimed());
    assert!(matches!(
        again,
        Err(SpawnError {
            error: Error::DuplicateId { id: VcpuId(1) },
            ..
        })
    ));
    let states: Vec<_> = [30, 10, 20].map(|retired| ScriptState { retired }).into();
    vcpus.restore(states.clone(), SOON).unwrap();
    assert_eq!(vcpus.save(SOON).unwrap(), states);
    assert_eq!(
        vcpus.ids().collect::<Vec<_>>(),
        [VcpuId(3), VcpuId(1), VcpuId(2)]
    );
    assert!(matches!(
        vcpus.wake(9, SOON),
        Err(Error::NoSuchVcpu { id: VcpuId(9) })
    ));
}

#[test]
fn the_io_objects_state_is_part_of_the_saved_state() {
    let (sender, events) = vcpu_events().unwrap();
    let mut vcpus: VcpuSet<(ScriptState, usize)> = VcpuSet::new(sender);
    let hooks = StateHooks::new(
        |vcpu: &mut ScriptedVcpu, io: &mut RecordingIo| -> Result<_, BoxError> {
            Ok((SaveVcpu::save(vcpu)?, io.calls().get().len()))
        },
        |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo, (state, calls): (ScriptState, usize)| {
            if calls > 1000 {
                return Err(Unchanged("far too many calls".into()).into());
            }
            if calls > 100 {
                return Err("too many calls".into());
            }
            Ok(SaveVcpu::restore(vcpu, &state)?)
        },
    );
    let io = RecordingIo::new(0, |_| Next::Pause).with_msr(1, 0);
    let script = [Step::PioIn {
        port: 1,
        size: 1,
        count: 2,
    }];
    vcpus
        .spawn_with(VcpuBuilder::new(0, ScriptedVcpu::new(script), io).state_hooks(hooks))
        .unwrap();
    vcpus.resume(SOON).unwrap();
    expect_paused(&events);
    let saved = vcpus.save(SOON).unwrap();
    assert_eq!(saved, [(ScriptState { retired: 1 }, 2)]);
    // A restore that failed before its first change has no effect.
    vcpus.acknowledge(0, SOON).unwrap();
    let far_too_many = vec![(ScriptState::default(), 1001)];
    let error = vcpus.restore(far_too_many, SOON).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(cause.as_deref(), Some("far too many calls"));
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    // A failed restore leaves a vCPU that must not run, but can be restored again.
    let error = vcpus
        .restore(vec![(ScriptState::default(), 101)], SOON)
        .unwrap_err();
    assert_eq!(error.to_string(), "vCPU 0 could not restore");
    assert!(matches!(
        vcpus.resume(SOON),
        Err(Error::Refused {
            state: State::Ended,
            ..
        })
    ));
    vcpus.restore(saved, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
}
