// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kick, pause, save and stop, with scripted vCPUs on real threads.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vcpu_loop::script::{Call, RecordingIo, Reply, ScriptError, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{
    BoxError, Error, Exit, Incident, Kick, ManagedVcpu, MsrReply, Next, Request, Response,
    SaveVcpu, SpawnError, State, StateHooks, SystemEvent, Unchanged, Vcpu, VcpuBuilder, VcpuEvent,
    VcpuEvents, VcpuId, VcpuSet, occur, step, vcpu_events,
};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);

fn set() -> (VcpuSet<ScriptState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    (VcpuSet::new(sender), events)
}

fn expect_paused(events: &VcpuEvents) {
    let event = events.recv_timeout(SOON);
    assert!(matches!(event, Some(VcpuEvent::Paused { .. })), "{event:?}");
}

fn wrmsr(index: u32) -> Step {
    Step::Wrmsr { index, data: 1 }
}

#[test]
fn a_kick_before_run_interrupts_the_first_entry() {
    let mut vcpu = ScriptedVcpu::new([wrmsr(1)]);
    vcpu.kicker().request_exit();
    assert!(matches!(vcpu.run(), Ok(Exit::Interrupted)));
    // The kick is cleared: the guest runs now.
    assert!(matches!(vcpu.run(), Ok(Exit::Wrmsr { .. })));
}

#[test]
fn a_kick_during_run_interrupts_it() {
    let mut vcpu = ScriptedVcpu::new([Step::Spin]);
    let kick = vcpu.kicker();
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        kick.request_exit();
    });
    assert!(matches!(vcpu.run(), Ok(Exit::Interrupted)));
    kicker.join().unwrap();
}

#[test]
fn a_kick_after_run_completes_the_access_and_interrupts() {
    let mut vcpu = ScriptedVcpu::new([wrmsr(1), wrmsr(2)]);
    let replies = vcpu.replies();
    assert!(matches!(vcpu.run(), Ok(Exit::Wrmsr { index: 1, .. })));
    vcpu.kicker().request_exit();
    assert!(matches!(vcpu.run(), Ok(Exit::Interrupted)));
    assert_eq!(replies.get(), [Reply::Wrmsr(Some(()))]);
    assert!(matches!(vcpu.run(), Ok(Exit::Wrmsr { index: 2, .. })));
}

#[test]
fn completion_may_yield_two_more_exits_before_a_pause() {
    let (mut vcpus, events) = set();
    let mmio = |addr| Step::MmioRead { addr, len: 8 };
    let vcpu = ScriptedVcpu::new([mmio(0), mmio(8).then(), mmio(16).then(), wrmsr(1)]);
    let replies = vcpu.replies();
    // The first access asks for the pause; the two that follow belong to the same instruction.
    let io = RecordingIo::new(3, |call| {
        if *call == Call::MmioRead(0, 8) {
            Next::Pause
        } else {
            Next::Continue
        }
    });
    let calls = io.calls();
    vcpus.spawn(0, vcpu, io).unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Paused { .. })
    ));
    assert_eq!(
        calls.get(),
        [
            Call::MmioRead(0, 8),
            Call::MmioRead(8, 8),
            Call::MmioRead(16, 8)
        ]
    );
    assert_eq!(replies.get(), vec![Reply::MmioRead(vec![3; 8]); 3]);
    assert_eq!(vcpus.save(SOON).unwrap(), [ScriptState { retired: 1 }]);
}

#[test]
fn a_debug_exit_or_halt_during_completion_is_not_lost() {
    let debug = vcpu_loop::DebugExit {
        exception: 1,
        pc: 1,
        dr6: 1,
        dr7: 1,
    };
    let read = || Step::MmioRead { addr: 0, len: 8 };
    // Whichever comes first, the device's pause sends its event.
    for script in [
        [read(), Step::Debug(debug).then()],
        [Step::Debug(debug), read().then()],
    ] {
        let (mut vcpus, events) = set();
        vcpus
            .spawn(
                0,
                ScriptedVcpu::new(script),
                RecordingIo::new(0, |_| Next::Pause),
            )
            .unwrap();
        vcpus.resume(SOON).unwrap();
        expect_paused(&events);
        assert!(
            matches!(events.recv_timeout(SOON), Some(VcpuEvent::Debug { debug: seen, .. }) if seen == debug)
        );
        assert!(vcpus.save(SOON).is_ok());
        assert!(events.try_recv().is_none());
    }

    let (mut vcpus, events) = set();
    let vcpu = ScriptedVcpu::new([read(), Step::Hlt.then(), wrmsr(1)]);
    let io = RecordingIo::new(0, |_| Next::Pause);
    let calls = io.calls();
    vcpus.spawn(0, vcpu, io).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_paused(&events);
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Halted { .. })
    ));
    // Still in its hlt after a resume.
    vcpus.acknowledge(0, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    assert_eq!(calls.get().len(), 1);
}

/// A guest whose first exit is `first` and that then exits for ever, and the count of the later exits.
fn storm_behind(first: Step) -> (ScriptedVcpu, RecordingIo, Arc<AtomicU64>) {
    let after = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&after);
    let io = RecordingIo::new(0, move |call| match call {
        Call::PioWrite(0x604, _) => Next::Pause,
        _ => {
            count.fetch_add(1, Ordering::Relaxed);
            Next::Continue
        }
    });
    let script = std::iter::once(first).chain(std::iter::repeat_n(out(0x80), 100_000));
    (ScriptedVcpu::new(script), io, after)
}

fn out(port: u16) -> Step {
    let data = vec![0];
    Step::PioOut {
        port,
        size: 1,
        data,
    }
}

/// A power-off, a breakpoint and a full dirty ring, during a snapshot that pauses, saves and resumes all vCPUs.
#[test]
fn no_resume_undoes_that_a_vcpu_stopped_by_itself() {
    let debug = vcpu_loop::DebugExit {
        exception: 1,
        pc: 1,
        dr6: 1,
        dr7: 1,
    };
    for first in [out(0x604), Step::Debug(debug), Step::DirtyRingFull] {
        let (mut vcpus, events) = set();
        let (vcpu, io, after) = storm_behind(first);
        vcpus.spawn(0, vcpu, io).unwrap();
        vcpus
            .spawn(1, ScriptedVcpu::new([]), RecordingIo::unclaimed())
            .unwrap();
        vcpus.resume(SOON).unwrap();
        assert!(matches!(
            events.recv_timeout(SOON).unwrap(),
            VcpuEvent::Paused { id }
            | VcpuEvent::Debug { id, .. }
            | VcpuEvent::DirtyRingFull { id } if id == VcpuId(0)
        ));
        for _ in 0..20 {
            vcpus.pause(SOON).unwrap();
            assert_eq!(vcpus.save(SOON).unwrap().len(), 2);
            let refused = vcpus.resume(SOON);
            assert!(matches!(
                refused,
                Err(Error::Refused {
                    id: VcpuId(0),
                    state: State::SelfPaused,
                    ..
                })
            ));
            // The other one runs.
            let running = vcpus.acknowledge(1, SOON);
            assert!(matches!(
                running,
                Err(Error::Refused {
                    state: State::Running,
                    ..
                })
            ));
        }
        assert_eq!(after.load(Ordering::Relaxed), 0);
        vcpus.acknowledge(0, SOON).unwrap();
        vcpus.resume_vcpu(0, SOON).unwrap();
        while after.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        vcpus.stop(SOON).unwrap();
    }
}

/// MSRs whose accesses all ask for a pause: writes succeed, reads take #GP.
struct LastMsrs;

impl vcpu_loop::VcpuIo for LastMsrs {
    fn rdmsr(&mut self, _: u32) -> MsrReply<u64> {
        MsrReply::Fault.and_pause()
    }
    fn wrmsr(&mut self, _: u32, _: u64) -> MsrReply<()> {
        MsrReply::Value(()).and_pause()
    }
}

#[test]
fn an_msr_access_may_end_in_a_pause() {
    let (mut vcpus, events) = set();
    let vcpu = ScriptedVcpu::new([wrmsr(1), Step::Rdmsr { index: 1 }, wrmsr(1)]);
    let replies = vcpu.replies();
    vcpus.spawn(0, vcpu, LastMsrs).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_paused(&events);
    assert_eq!(replies.get(), [Reply::Wrmsr(Some(()))]);
    assert!(vcpus.resume(SOON).is_err());
    vcpus.acknowledge(0, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_paused(&events);
    assert_eq!(replies.get(), [Reply::Wrmsr(Some(())), Reply::Rdmsr(None)]);
    assert_eq!(vcpus.save(SOON).unwrap(), [ScriptState { retired: 2 }]);
}

#[test]
fn one_vcpu_is_paused_and_resumed_beside_the_others() {
    let (mut vcpus, _events) = set();
    for id in 0..2 {
        vcpus
            .spawn(id, ScriptedVcpu::new([]), RecordingIo::unclaimed())
            .unwrap();
    }
    let states = |vcpus: &VcpuSet<ScriptState>| [0, 1].map(|id| vcpus.dump(id, SOON).is_ok());
    vcpus.resume(SOON).unwrap();
    vcpus.pause_vcpu(1, SOON).unwrap();
    assert_eq!(states(&vcpus), [false, true], "only 1 is paused");
    vcpus.resume_vcpu(1, SOON).unwrap();
    assert_eq!(states(&vcpus), [false, false]);
    let nobody = vcpus.pause_vcpu(7, SOON);
    assert!(matches!(nobody, Err(Error::NoSuchVcpu { id: VcpuId(7) })));
}

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
fn a_closure_runs_on_a_paused_vcpu_on_its_thread() {
    let (mut vcpus, _events) = set();
    vcpus
        .spawn(3, ScriptedVcpu::new([]), RecordingIo::unclaimed())
        .unwrap();
    let act = |vcpu: &mut ScriptedVcpu| {
        vcpu.restore(&ScriptState { retired: 7 }).unwrap();
        thread::current().name().map(str::to_owned)
    };
    let name = vcpus.with_vcpu(3, act, SOON).unwrap();
    assert_eq!(name.as_deref(), Some("vcpu3"));
    assert_eq!(vcpus.save(SOON).unwrap(), [ScriptState { retired: 7 }]);
    let wrong = vcpus.with_vcpu(3, |_: &mut u8| (), SOON);
    assert!(matches!(wrong, Err(Error::WrongType { .. })));
    vcpus.resume(SOON).unwrap();
    let running = vcpus.with_vcpu(3, act, SOON);
    assert!(matches!(running, Err(Error::Refused { .. })));
    vcpus.pause(SOON).unwrap();
    let panicked = vcpus.with_vcpu(3, |_: &mut ScriptedVcpu| panic!("in a closure"), SOON);
    assert!(matches!(
        panicked,
        Err(Error::Refused {
            state: State::Failed,
            ..
        })
    ));
}

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

/// A device that stays in its handler until the test releases it.
fn held(
    step: Step,
) -> (
    ScriptedVcpu,
    RecordingIo,
    std::sync::mpsc::Receiver<()>,
    Sender<()>,
) {
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel();
    let wait_leave = Mutex::new(wait_leave);
    let io = RecordingIo::new(0, move |_| {
        entered.send(()).unwrap();
        let _ = wait_leave.lock().unwrap().recv();
        Next::Continue
    });
    (
        ScriptedVcpu::new([step]),
        io.with_msr(7, 0),
        wait_entered,
        leave,
    )
}

#[test]
fn a_pause_while_a_wrmsr_is_pending_completes_it_first() {
    let (mut vcpus, _events) = set();
    let (vcpu, io, entered, leave) = held(wrmsr(7));
    let replies = vcpu.replies();
    vcpus.spawn(0, vcpu, io).unwrap();
    vcpus.resume(SOON).unwrap();
    entered.recv_timeout(SOON).unwrap();
    // The exit is being answered, so a pause can't be granted yet.
    let error = vcpus.pause(Duration::from_millis(30)).unwrap_err();
    assert!(
        matches!(&error, Error::Deadline { request: Request::Pause, missed, .. } if *missed == [VcpuId(0)])
    );
    assert!(
        error
            .to_string()
            .starts_with("vCPU 0 did not answer the pause request within 30ms")
    );
    assert_eq!(replies.get(), []);
    leave.send(()).unwrap();
    vcpus.pause(SOON).unwrap();
    // ScriptedVcpu panics if it is saved while the write is incomplete.
    assert_eq!(replies.get(), [Reply::Wrmsr(Some(()))]);
    assert_eq!(vcpus.save(SOON).unwrap(), [ScriptState { retired: 1 }]);
}

#[test]
fn save_is_refused_while_running() {
    let (mut vcpus, _events) = set();
    vcpus
        .spawn(0, ScriptedVcpu::new([]), RecordingIo::unclaimed())
        .unwrap();
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
        vcpus
            .spawn(id, ScriptedVcpu::new([]), RecordingIo::unclaimed())
            .unwrap();
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
            Ok((vcpu_loop::SaveVcpu::save(vcpu)?, io.calls().get().len()))
        },
        |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo, (state, calls): (ScriptState, usize)| {
            if calls > 1000 {
                return Err(Unchanged("far too many calls".into()).into());
            }
            if calls > 100 {
                return Err("too many calls".into());
            }
            Ok(vcpu_loop::SaveVcpu::restore(vcpu, &state)?)
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

#[test]
fn sixty_four_pauses_of_an_exit_storm_on_four_vcpus() {
    let (mut vcpus, _events) = set();
    let exits: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    for (id, exits) in exits.iter().enumerate() {
        let exits = Arc::clone(exits);
        let io = Counting(exits);
        let storm = Step::PioOut {
            port: 1,
            size: 1,
            data: vec![0],
        };
        vcpus
            .spawn(id as u32, ScriptedVcpu::endless(storm), io)
            .unwrap();
    }
    let total = || exits.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>();
    for _ in 0..64 {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
        let before = total();
        let states = vcpus.save(SOON).unwrap();
        // Every exit that the VMM saw has completed, and no vCPU runs.
        for (state, exits) in states.iter().zip(&exits) {
            assert_eq!(state.retired, exits.load(Ordering::Relaxed));
        }
        assert_eq!(total(), before);
    }
    vcpus.stop(SOON).unwrap();
    assert_eq!(vcpus.ids().count(), 0);
}

struct Counting(Arc<AtomicU64>);

impl vcpu_loop::VcpuIo for Counting {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        self.0.fetch_add(1, Ordering::Relaxed);
        Next::Continue
    }
}

#[test]
fn all_are_asked_before_any_is_waited_for() {
    let (mut vcpus, _events) = set();
    let (first, io, entered, leave) = held(wrmsr(7));
    vcpus.spawn(0, first, io).unwrap();
    vcpus
        .spawn(1, ScriptedVcpu::new([]), RecordingIo::unclaimed())
        .unwrap();
    vcpus.resume(SOON).unwrap();
    entered.recv_timeout(SOON).unwrap();
    // vCPU 0 misses the deadline; vCPU 1 has paused nevertheless.
    let error = vcpus.pause(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Deadline { missed, .. } if missed.contains(&VcpuId(0))));
    assert!(vcpus.dump(1, SOON).is_ok(), "a dump needs a paused vCPU");
    // The late answer to the old request doesn't disturb later ones.
    leave.send(()).unwrap();
    assert!(vcpus.pause(SOON).is_ok());
    assert_eq!(vcpus.save(SOON).unwrap().len(), 2);
}

/// A restore may clear the flag of a later request's kick. That request must still be obeyed before the guest runs,
/// because nothing else will interrupt the guest.
#[test]
fn a_kick_that_a_restore_swallows_is_not_lost() {
    let (sender, _events) = vcpu_events().unwrap();
    let mut vcpus: VcpuSet<ScriptState> = VcpuSet::new(sender);
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel::<()>();
    let hooks = StateHooks::new(
        |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| Ok(vcpu_loop::SaveVcpu::save(vcpu)?),
        move |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| {
            entered.send(())?;
            let _ = wait_leave.recv();
            // As KvmVcpu does when an access is incomplete: clears the flag.
            assert!(matches!(vcpu.complete(), Ok(Exit::Interrupted)));
            Ok(())
        },
    );
    vcpus
        .spawn_with(
            VcpuBuilder::new(0, ScriptedVcpu::new([]), RecordingIo::unclaimed()).state_hooks(hooks),
        )
        .unwrap();
    let vcpus = &vcpus;
    thread::scope(|scope| {
        let restore = scope.spawn(move || vcpus.restore(vec![ScriptState::default()], SOON));
        wait_entered.recv_timeout(SOON).unwrap();
        let resume = scope.spawn(move || vcpus.resume(SOON));
        thread::sleep(Duration::from_millis(50));
        let pause = scope.spawn(move || vcpus.pause(SOON));
        thread::sleep(Duration::from_millis(50));
        leave.send(()).unwrap();
        restore.join().unwrap().unwrap();
        resume.join().unwrap().unwrap();
        pause.join().unwrap().unwrap();
    });
}

#[test]
fn stop_names_the_vcpu_that_hangs_and_works_later() {
    let (mut vcpus, _events) = set();
    let (vcpu, io, entered, leave) = held(wrmsr(7));
    vcpus.spawn(4, vcpu, io).unwrap();
    vcpus
        .spawn(5, ScriptedVcpu::new([]), RecordingIo::unclaimed())
        .unwrap();
    vcpus.resume(SOON).unwrap();
    entered.recv_timeout(SOON).unwrap();
    // The other vCPU stops eventually.
    loop {
        let Err(Error::Deadline {
            request: Request::Stop,
            missed,
            ..
        }) = vcpus.stop(Duration::from_millis(20))
        else {
            panic!("a vCPU that is held has stopped");
        };
        if missed == [VcpuId(4)] {
            break;
        }
    }
    assert_eq!(vcpus.ids().collect::<Vec<_>>(), [VcpuId(4)]);
    leave.send(()).unwrap();
    vcpus.stop(SOON).unwrap();
}

#[test]
fn dropping_the_set_stops_and_joins() {
    struct Gone(Arc<AtomicU64>);
    impl vcpu_loop::VcpuIo for Gone {}
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (mut vcpus, _events) = set();
    let dropped = Arc::new(AtomicU64::new(0));
    for id in 0..3 {
        vcpus
            .spawn(id, ScriptedVcpu::new([]), Gone(Arc::clone(&dropped)))
            .unwrap();
    }
    vcpus.resume(SOON).unwrap();
    drop(vcpus);
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
}

#[test]
fn a_missed_deadline_is_kept() {
    let (mut vcpus, _events) = set();
    let (vcpu, io, entered, leave) = held(wrmsr(7));
    vcpus.spawn(0, vcpu, io).unwrap();
    vcpus.resume(SOON).unwrap();
    entered.recv_timeout(SOON).unwrap();
    let start = Instant::now();
    assert!(vcpus.save(Duration::from_millis(100)).is_err());
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(100) && waited < SOON,
        "{waited:?}"
    );
    leave.send(()).unwrap();
}

/// An exit storm whose device asks for a pause when the test wants one.
struct Storm(Arc<AtomicBool>);

impl vcpu_loop::VcpuIo for Storm {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        match self.0.swap(false, Ordering::Relaxed) {
            true => Next::Pause,
            false => Next::Continue,
        }
    }
}

/// Applies a request to all vCPUs, or to one, in the model. Returns whether all of them grant it.
fn model(states: &mut [State], request: Request, one: Option<usize>) -> bool {
    let mut granted = true;
    for (at, state) in states.iter_mut().enumerate() {
        if one.is_none_or(|one| one == at) {
            let (next, response) = step(*state, request);
            *state = next;
            granted &= response == Response::Done;
        }
    }
    granted
}

/// Makes a request by the set's methods. A request that has no method for one vCPU goes to all, and vice versa.
fn ask(
    vcpus: &VcpuSet<ScriptState>,
    request: Request,
    one: &mut Option<usize>,
) -> Result<(), Error> {
    let states = vec![ScriptState::default(); vcpus.ids().count()];
    *one = match request {
        Request::Save | Request::Restore => None,
        Request::Resume | Request::Pause => *one,
        _ => Some(one.unwrap_or(0)),
    };
    let id = one.unwrap_or(0) as u32;
    match (request, one.is_some()) {
        (Request::Resume, false) => vcpus.resume(SOON),
        (Request::Resume, true) => vcpus.resume_vcpu(id, SOON),
        (Request::Pause, false) => vcpus.pause(SOON),
        (Request::Pause, true) => vcpus.pause_vcpu(id, SOON),
        (Request::Acknowledge, _) => vcpus.acknowledge(id, SOON),
        (Request::Save, _) => vcpus.save(SOON).map(drop),
        (Request::Restore, _) => vcpus.restore(states, SOON),
        (Request::Wake, _) => vcpus.wake(id, SOON),
        (Request::Access, _) => vcpus.with_vcpu(id, |_: &mut ScriptedVcpu| (), SOON),
        (Request::Call, _) => vcpus.call(id, |_: &mut ScriptedVcpu| (), SOON),
        (Request::Dump, _) => vcpus.dump(id, SOON).map(drop),
        (other, _) => panic!("no request for {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Two threads on exit storms behave like the pure state machine, for any sequence of requests to one or both, and
    /// of pauses by their devices.
    #[test]
    fn threads_agree_with_the_state_machine(
        steps in prop::collection::vec((0..13usize, prop::option::of(0..2usize)), 1..32),
    ) {
        let (mut vcpus, events) = set();
        let pauses: [Arc<AtomicBool>; 2] = Default::default();
        for (id, pause) in (0..).zip(&pauses) {
            let storm = ScriptedVcpu::endless(out(1));
            vcpus.spawn(id, storm, Storm(Arc::clone(pause))).unwrap();
        }
        let mut states = [State::Paused; 2];
        for (number, mut one) in steps {
            let requests = [
                Request::Resume, Request::Pause, Request::Acknowledge, Request::Save, Request::Restore,
                Request::Wake, Request::Access, Request::Call, Request::Dump,
            ];
            let Some(request) = requests.get(number).copied() else {
                // A device asks for a pause, which only a running vCPU notices.
                let at = one.unwrap_or(0);
                if states[at] == State::Running {
                    pauses[at].store(true, Ordering::Relaxed);
                    expect_paused(&events);
                }
                states[at] = occur(states[at], Incident::SelfPause);
                continue;
            };
            let before = states;
            let asked = ask(&vcpus, request, &mut one);
            let granted = model(&mut states, request, one);
            prop_assert_eq!(asked.is_ok(), granted, "{} to {:?} while {:?}: {:?}", request, one, before, asked);
        }
        prop_assert!(vcpus.stop(SOON).is_ok());
        prop_assert!(events.try_recv().is_none());
    }
}
