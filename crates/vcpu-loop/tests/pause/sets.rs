// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to all vCPUs of a set, or to one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vcpu_loop::script::{Call, RecordingIo, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{Error, Next, Request, SaveVcpu, State, VcpuEvent, VcpuId, VcpuIo, VcpuSet};

use crate::support::{DEBUG, SOON, held, idle, out, set, wrmsr};

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

/// A power-off, a breakpoint and a full dirty ring, during a snapshot that pauses, saves and resumes all vCPUs.
#[test]
fn no_resume_undoes_that_a_vcpu_stopped_by_itself() {
    for first in [out(0x604), Step::Debug(DEBUG), Step::DirtyRingFull] {
        let (mut vcpus, events) = set();
        let (vcpu, io, after) = storm_behind(first);
        vcpus.spawn(0, vcpu, io).unwrap();
        idle(&mut vcpus, 1);
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

#[test]
fn one_vcpu_is_paused_and_resumed_beside_the_others() {
    let (mut vcpus, _events) = set();
    for id in 0..2 {
        idle(&mut vcpus, id);
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
fn a_closure_runs_on_a_paused_vcpu_on_its_thread() {
    let (mut vcpus, _events) = set();
    idle(&mut vcpus, 3);
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

#[test]
fn sixty_four_pauses_of_an_exit_storm_on_four_vcpus() {
    let (mut vcpus, _events) = set();
    let exits: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    for (id, exits) in exits.iter().enumerate() {
        let exits = Arc::clone(exits);
        let io = Counting(exits);
        let storm = out(1);
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

impl VcpuIo for Counting {
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
    idle(&mut vcpus, 1);
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

#[test]
fn stop_names_the_vcpu_that_hangs_and_works_later() {
    let (mut vcpus, _events) = set();
    let (vcpu, io, entered, leave) = held(wrmsr(7));
    vcpus.spawn(4, vcpu, io).unwrap();
    idle(&mut vcpus, 5);
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
    impl VcpuIo for Gone {}
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
