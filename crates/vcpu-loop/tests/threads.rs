// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads: how they start, what they return, and what the caller's code may do on them. The vCPUs are scripted.
#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vcpu_loop::script::{RecordingIo, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{
    BoxError, Error, ExitKind, FailureReason, KickSignal, SaveVcpu, SpawnError, State, StateHooks,
    Stopped, VcpuBuilder, VcpuEvent, VcpuEvents, VcpuId, VcpuSet, vcpu_events,
};
use vmm_sys_util::signal::{block_signal, get_blocked_signals, register_signal_handler};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);

fn set() -> (VcpuSet<ScriptState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    (VcpuSet::new(sender), events)
}

/// A vCPU that spins, so that only a signal and a flag take it out of the guest.
fn spinning(id: u32) -> VcpuBuilder<ScriptedVcpu, RecordingIo, ScriptState> {
    VcpuBuilder::new(id, ScriptedVcpu::new([]), RecordingIo::unclaimed())
}

#[test]
fn a_thread_has_the_name_stack_and_hook_of_the_callers_choice() {
    let (mut vcpus, _events) = set();
    let (told, names) = channel();
    let say = move || {
        told.send(thread::current().name().map(str::to_owned))
            .unwrap()
    };
    let other = say.clone();
    vcpus
        .spawn_with(spinning(12).on_start(move |_, _| {
            say();
            Ok(())
        }))
        .unwrap();
    let name = names.recv_timeout(SOON).unwrap();
    assert_eq!(name.as_deref(), Some("vcpu12"));
    // More than the standard library's two MiB.
    let deep = spinning(1).thread_name("cpu 1 of 2").stack_size(64 << 20);
    let hook = move |_: &mut ScriptedVcpu, _: &mut RecordingIo| {
        assert!(depth(0, 4 << 20) > 0);
        other();
        Ok(())
    };
    vcpus.spawn_with(deep.on_start(hook)).unwrap();
    let name = names.recv_timeout(SOON).unwrap();
    assert_eq!(name.as_deref(), Some("cpu 1 of 2"));
}

/// Uses this many bytes of stack.
fn depth(level: u32, bytes: usize) -> u32 {
    let page = std::hint::black_box([1u8; 4096]);
    match bytes.checked_sub(page.len()) {
        Some(rest) => depth(level + 1, rest) + u32::from(page[0]),
        None => level,
    }
}

/// A hook that blocks all signals, as for a signalfd, delays no pause and no stop.
#[test]
fn a_hook_that_blocks_the_kick_signal_loses_no_kick() {
    let signal = KickSignal::default().number();
    let (mut vcpus, _events) = set();
    let block = move |_: &mut ScriptedVcpu, _: &mut RecordingIo| {
        block_signal(signal).unwrap();
        Ok(())
    };
    vcpus.spawn_with(spinning(0).on_start(block)).unwrap();
    // The same goes for other code of the caller.
    let hooks = StateHooks::new(
        move |_: &mut ScriptedVcpu, _: &mut RecordingIo| {
            block_signal(signal).unwrap();
            Ok(ScriptState::default())
        },
        |_: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| Ok(()),
    );
    vcpus.spawn_with(spinning(1).state_hooks(hooks)).unwrap();
    vcpus.save(SOON).unwrap();
    let blocked = |vcpus: &VcpuSet<ScriptState>, id: u32| {
        let look = |_: &mut ScriptedVcpu| get_blocked_signals().unwrap();
        vcpus.with_vcpu(id, look, SOON).unwrap().contains(&signal)
    };
    assert!(!blocked(&vcpus, 0) && !blocked(&vcpus, 1));
    for _ in 0..20 {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
}

#[test]
fn a_vcpu_whose_hook_fails_never_runs_and_says_why() {
    let (mut vcpus, events) = set();
    let vcpu = ScriptedVcpu::new([Step::Rdmsr { index: 1 }]);
    let io = RecordingIo::unclaimed();
    let calls = io.calls();
    let fails = |_: &mut ScriptedVcpu, _: &mut RecordingIo| {
        Err(BoxError::from(io::Error::from_raw_os_error(1)))
    };
    vcpus
        .spawn_with(VcpuBuilder::new(3, vcpu, io).on_start(fails))
        .unwrap();
    for _ in 0..2 {
        let error = vcpus.resume(SOON).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vCPU 3 could not start, the cause below says why"
        );
        let hook = error.source().unwrap();
        let cause = hook.source().unwrap().downcast_ref::<io::Error>();
        assert_eq!(cause.unwrap().raw_os_error(), Some(1));
    }
    let Some(VcpuEvent::Fatal { report }) = events.recv_timeout(SOON) else {
        panic!("no event");
    };
    assert!(matches!(report.reason, FailureReason::Start(_)));
    let text = report.to_string();
    assert!(text.contains("its start hook failed: "), "{text}");
    assert_eq!(calls.get(), []);
    let stopped = vcpus.stop(SOON).unwrap();
    assert_eq!(stopped[0].state(), State::Failed);
    assert!(events.try_recv().is_none(), "one failure, one event");
}

/// The new vCPU has another flag: a kick of the old one would have no effect.
#[test]
fn no_kick_is_lost_when_the_callers_code_replaces_the_vcpu() {
    type Spares = Arc<Mutex<Vec<ScriptedVcpu>>>;
    let replace = |vcpu: &mut ScriptedVcpu, old: &Spares| {
        let fresh = ScriptedVcpu::new([]);
        // Kept alive, so that the new one has another address.
        old.lock().unwrap().push(std::mem::replace(vcpu, fresh));
    };
    let old = Spares::default();
    let (mut vcpus, _events) = set();
    let kept = [(); 4].map(|()| Arc::clone(&old));
    let [on_start, on_save, on_restore, on_call] = kept;
    let hooks = StateHooks::new(
        move |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| {
            replace(vcpu, &on_save);
            Ok(ScriptState::default())
        },
        move |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| {
            replace(vcpu, &on_restore);
            Ok(())
        },
    );
    let hook = move |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| {
        replace(vcpu, &on_start);
        Ok(())
    };
    vcpus
        .spawn_with(spinning(0).state_hooks(hooks).on_start(hook))
        .unwrap();
    let run_and_kick = |vcpus: &VcpuSet<ScriptState>| {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    };
    run_and_kick(&vcpus);
    for _ in 0..50 {
        let on_call = Arc::clone(&on_call);
        let call = move |vcpu: &mut ScriptedVcpu| replace(vcpu, &on_call);
        vcpus.with_vcpu(0, call, SOON).unwrap();
        run_and_kick(&vcpus);
        let states = vcpus.save(SOON).unwrap();
        run_and_kick(&vcpus);
        vcpus.restore(states, SOON).unwrap();
        run_and_kick(&vcpus);
    }
    assert_eq!(old.lock().unwrap().len(), 1 + 50 * 3);
}

#[test]
fn stopped_vcpus_come_back_and_run_again() {
    let (mut vcpus, events) = set();
    let rdmsr = |index| Step::Rdmsr { index };
    let script = [rdmsr(1), Step::Shutdown];
    vcpus
        .spawn(0, ScriptedVcpu::new(script), RecordingIo::unclaimed())
        .unwrap();
    vcpus.spawn_with(spinning(1)).unwrap();
    vcpus.spawn_with(spinning(2)).unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Shutdown { .. })
    ));
    vcpus.pause_vcpu(2, SOON).unwrap();
    // One of them alone first.
    let one = vcpus.stop_vcpu(1, SOON).unwrap().unwrap();
    assert_eq!((one.id(), one.state()), (VcpuId(1), State::Running));
    let mut stopped = vcpus.stop(SOON).unwrap();
    stopped.push(one);
    assert_eq!(vcpus.ids().count(), 0);
    let states: Vec<_> = stopped.iter().map(|s| (s.id().0, s.state())).collect();
    assert_eq!(
        states,
        [(0, State::Ended), (2, State::Paused), (1, State::Running)]
    );
    // In another set, with the same ids.
    let (mut vcpus, _events) = set();
    for stopped in stopped.into_iter().skip(1) {
        let stopped = stopped.downcast::<ScriptedVcpu, u8>().unwrap_err();
        let stopped = stopped.downcast::<ScriptedVcpu, RecordingIo>();
        let Stopped { id, vcpu, io, .. } = stopped.unwrap();
        vcpus.spawn(id, vcpu, io).unwrap();
    }
    for _ in 0..20 {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
    let nobody = vcpus.stop_vcpu(0, SOON);
    assert!(matches!(nobody, Err(Error::NoSuchVcpu { id: VcpuId(0) })));
}

/// vCPUs that stop in time, when another one misses the deadline, are returned by the call that stops the last, or by
/// `stop_vcpu`: the other one may never stop.
#[test]
fn a_missed_deadline_loses_no_vcpu() {
    let (mut vcpus, _events) = set();
    let (leave, wait) = channel::<()>();
    let holds = move |_: &mut ScriptedVcpu, _: &mut RecordingIo| Ok(wait.recv()?);
    vcpus.spawn_with(spinning(0).on_start(holds)).unwrap();
    vcpus.spawn_with(spinning(1)).unwrap();
    vcpus.spawn_with(spinning(2)).unwrap();
    // The others stop eventually.
    loop {
        let Err(Error::Deadline { missed, .. }) = vcpus.stop(Duration::from_millis(20)) else {
            panic!("a vCPU that is held has stopped");
        };
        if missed == [VcpuId(0)] {
            break;
        }
    }
    // Its id is free, and a stop means the newest vCPU with this id.
    vcpus.spawn_with(spinning(1)).unwrap();
    vcpus.resume_vcpu(1, SOON).unwrap();
    for state in [State::Running, State::Paused] {
        let stopped = vcpus.stop_vcpu(1, SOON).unwrap().unwrap();
        assert_eq!((stopped.id(), stopped.state()), (VcpuId(1), state));
    }
    let nobody = vcpus.stop_vcpu(1, SOON);
    assert!(matches!(nobody, Err(Error::NoSuchVcpu { id: VcpuId(1) })));
    leave.send(()).unwrap();
    let mut ids: Vec<u32> = vcpus
        .stop(SOON)
        .unwrap()
        .iter()
        .map(|stopped| stopped.id().0)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 2]);
}

#[test]
fn a_vcpu_that_can_not_be_spawned_comes_back() {
    let (mut vcpus, _events) = set();
    // These stacks don't fit in the address space.
    for bytes in [usize::MAX, usize::MAX - 4096, 1 << 60] {
        let failed = vcpus.spawn_with(spinning(0).stack_size(bytes));
        let SpawnError { error, .. } = failed.unwrap_err();
        assert!(matches!(error, Error::Thread { .. }), "{error}");
    }
    let failed = vcpus.spawn_with(spinning(0).stack_size(1 << 60));
    let SpawnError { error, vcpu, io } = failed.unwrap_err();
    let cause =
        "can't start a thread for vCPU 0, check its name, its stack size and the process's limits";
    assert_eq!(error.to_string(), cause);
    let failed = vcpus.spawn_with(VcpuBuilder::new(0, vcpu, io).thread_name("a\0b"));
    let SpawnError { error, vcpu, io } = failed.unwrap_err();
    assert!(matches!(error, Error::Thread { .. }), "{error}");
    vcpus.spawn_with(spinning(1)).unwrap();
    let SpawnError { error, vcpu, io } = vcpus.spawn(1, vcpu, io).unwrap_err();
    assert!(matches!(error, Error::DuplicateId { .. }));
    vcpus.spawn(0, vcpu, io).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
}

#[test]
fn a_signal_with_another_handler_is_not_taken() {
    extern "C" fn foreign(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let signal = KickSignal::real_time(7).unwrap();
    register_signal_handler(signal.number(), foreign).unwrap();
    let (sender, _events) = vcpu_events().unwrap();
    let mut vcpus = VcpuSet::with_signal(sender, signal);
    let refused = vcpus.spawn_with(spinning(0)).unwrap_err();
    assert!(
        matches!(refused.error, Error::SignalTaken { signal: taken } if taken == signal.number())
    );
    // Another signal is free, for any number of sets.
    for _ in 0..2 {
        let (sender, _events) = vcpu_events().unwrap();
        let mut vcpus = VcpuSet::with_signal(sender, KickSignal::real_time(8).unwrap());
        vcpus.spawn_with(spinning(0)).unwrap();
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
}

/// For NMIs and statistics: KVM accepts these calls only on the vCPU's thread, and the guest needs no pause.
#[test]
fn a_call_runs_on_a_running_vcpu_between_two_stays_in_the_guest() {
    let (mut vcpus, events) = set();
    vcpus.spawn_with(spinning(0)).unwrap();
    let out = |port| Step::PioOut {
        port,
        size: 1,
        data: vec![0],
    };
    let storm = ScriptedVcpu::endless(out(0x80));
    vcpus.spawn(1, storm, RecordingIo::claiming(0)).unwrap();
    let halted = ScriptedVcpu::new([Step::Hlt]);
    vcpus.spawn(2, halted, RecordingIo::unclaimed()).unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Halted { id: VcpuId(2) })
    ));
    for id in 0..3u32 {
        // A save panics in the middle of an access.
        let look = |vcpu: &mut ScriptedVcpu| {
            vcpu.save().unwrap();
            thread::current().name().map(str::to_owned)
        };
        for _ in 0..50 {
            let name = vcpus.call(id, look, SOON).unwrap();
            assert_eq!(name, Some(format!("vcpu{id}")));
        }
        let paused = vcpus.with_vcpu(id, look, SOON);
        assert!(
            matches!(
                paused,
                Err(Error::Refused {
                    state: State::Running,
                    ..
                })
            ),
            "still running"
        );
    }
    let wrong = vcpus.call(0, |_: &mut u8| (), SOON);
    assert!(matches!(wrong, Err(Error::WrongType { .. })));
    vcpus.pause(SOON).unwrap();
    assert!(vcpus.call(0, |_: &mut ScriptedVcpu| (), SOON).is_ok());
    assert!(events.try_recv().is_none());
}

#[test]
fn another_thread_reads_exit_counters_while_the_vcpu_runs() {
    let (mut vcpus, events) = set();
    let read = || Step::MmioRead { addr: 0, len: 8 };
    let script = [
        read(),
        read().then(),
        Step::Rdmsr { index: 1 },
        Step::DirtyRingFull,
        Step::Notify,
    ];
    vcpus
        .spawn(0, ScriptedVcpu::new(script), RecordingIo::claiming(0))
        .unwrap();
    let exits = vcpus.exits(0).unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::DirtyRingFull { .. })
    ));
    // The number of kicks varies.
    let counts: Vec<_> = exits
        .iter()
        .filter(|(kind, count)| *count > 0 && *kind != ExitKind::Interrupted)
        .collect();
    let expected = [
        (ExitKind::MmioRead, 2),
        (ExitKind::Rdmsr, 1),
        (ExitKind::DirtyRingFull, 1),
    ];
    assert_eq!(counts, expected);
    assert!(exits.count(ExitKind::Interrupted) > 0 && exits.total() > 4);
    vcpus.acknowledge(0, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    // It spins now, so it is running.
    while exits.count(ExitKind::Notify) == 0 {
        thread::yield_now();
    }
    vcpus.stop(SOON).unwrap();
    assert_eq!(exits.count(ExitKind::Notify), 1);
    assert!(vcpus.exits(0).is_none());
}

#[test]
fn a_vcpu_on_a_thread_of_the_callers_is_controlled_as_any_other() {
    let signal = KickSignal::default().number();
    let (mut vcpus, events) = set();
    let (told, started) = channel();
    let vcpu = spinning(0).on_start(move |_, _| Ok(told.send(thread::current().id())?));
    let runner = vcpus.attach(vcpu).unwrap();
    vcpus.spawn_with(spinning(1)).unwrap();
    // No thread runs it yet: the request waits.
    let missed = vcpus.resume_vcpu(0, Duration::from_millis(20));
    assert!(matches!(missed, Err(Error::Deadline { missed, .. }) if missed == [VcpuId(0)]));
    let own = thread::spawn(move || {
        block_signal(signal).unwrap();
        let stopped = runner.run_here();
        let blocked = get_blocked_signals().unwrap().contains(&signal);
        (stopped, thread::current().id(), blocked)
    });
    for _ in 0..20 {
        vcpus.resume(SOON).unwrap();
        let name = |_: &mut ScriptedVcpu| thread::current().id();
        assert_eq!(vcpus.call(0, name, SOON).unwrap(), own.thread().id());
        vcpus.pause(SOON).unwrap();
        vcpus.save(SOON).unwrap();
    }
    assert_eq!(started.recv_timeout(SOON).unwrap(), own.thread().id());
    vcpus.resume(SOON).unwrap();
    let spawned = vcpus.stop(SOON).unwrap();
    assert_eq!(spawned.len(), 1, "the other one returned to its caller");
    let (stopped, _, blocked) = own.join().unwrap();
    assert_eq!((stopped.id, stopped.state), (VcpuId(0), State::Running));
    assert!(blocked, "the thread's mask is as it was");
    assert!(events.try_recv().is_none());
}

#[test]
fn a_runner_that_never_runs_holds_nobody_up() {
    let (mut vcpus, _events) = set();
    let runner = vcpus.attach(spinning(0)).unwrap();
    // Must not wait for a deadline: no answer ever comes.
    vcpus.stop(Duration::MAX).unwrap();
    assert_eq!(runner.run_here().state, State::Paused);
    let runner = vcpus.attach(spinning(0)).unwrap();
    drop(runner);
    let gone = vcpus.resume(SOON);
    assert!(matches!(gone, Err(Error::Gone { id: VcpuId(0) })));
    vcpus.stop(Duration::MAX).unwrap();
    let runner = vcpus.attach(spinning(0)).unwrap();
    drop(vcpus);
    assert_eq!(runner.run_here().id, VcpuId(0));
}
