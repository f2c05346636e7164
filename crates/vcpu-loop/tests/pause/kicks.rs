// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kicks of a vCPU that runs, waits or completes an access.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use vcpu_loop::script::{Call, RecordingIo, Reply, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{
    Error, Exit, ManagedVcpu, MsrReply, Next, Request, SaveVcpu, StateHooks, Vcpu, VcpuBuilder,
    VcpuEvent, VcpuId, VcpuIo, VcpuSet, vcpu_events,
};

use crate::support::{DEBUG, SOON, expect_paused, held, set, wrmsr};

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
    let read = || Step::MmioRead { addr: 0, len: 8 };
    // Whichever comes first, the device's pause sends its event.
    for script in [
        [read(), Step::Debug(DEBUG).then()],
        [Step::Debug(DEBUG), read().then()],
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
            matches!(events.recv_timeout(SOON), Some(VcpuEvent::Debug { debug: seen, .. }) if seen == DEBUG)
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

/// MSRs whose accesses all ask for a pause: writes succeed, reads take #GP.
struct LastMsrs;

impl VcpuIo for LastMsrs {
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

/// A restore may clear the flag of a later request's kick. That request must still be obeyed before the guest runs,
/// because nothing else will interrupt the guest.
#[test]
fn a_kick_that_a_restore_swallows_is_not_lost() {
    let (sender, _events) = vcpu_events().unwrap();
    let mut vcpus: VcpuSet<ScriptState> = VcpuSet::new(sender);
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel::<()>();
    let hooks = StateHooks::new(
        |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| Ok(SaveVcpu::save(vcpu)?),
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
