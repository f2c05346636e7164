// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Panics and host failures: always an event, never a lost or hung thread.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use vcpu_loop::script::{RecordingIo, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{
    BoxError, Error, FailureReason, FailureReport, Next, SaveVcpu, State, StateHooks, VcpuBuilder,
    VcpuEvent, VcpuEvents, VcpuId, VcpuIo, VcpuSet, vcpu_events,
};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);

fn set() -> (VcpuSet<ScriptState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    (VcpuSet::new(sender), events)
}

fn fatal(events: &VcpuEvents) -> Box<FailureReport> {
    match events.recv_timeout(SOON) {
        Some(VcpuEvent::Fatal { report }) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_in_a_device_is_a_fatal_event_and_peers_stop() {
    let (mut vcpus, events) = set();
    let out = |port| Step::PioOut {
        port,
        size: 1,
        data: vec![1],
    };
    let io = RecordingIo::new(0, |call| match call {
        vcpu_loop::script::Call::PioWrite(0x666, _) => panic!("the device is on fire"),
        _ => Next::Continue,
    });
    vcpus
        .spawn(0, ScriptedVcpu::new([out(0x80), out(0x666)]), io)
        .unwrap();
    vcpus
        .spawn(
            1,
            ScriptedVcpu::endless(out(0x80)),
            RecordingIo::claiming(0),
        )
        .unwrap();
    vcpus
        .spawn(2, ScriptedVcpu::new([]), RecordingIo::claiming(0))
        .unwrap();
    vcpus.resume(SOON).unwrap();
    let report = fatal(&events);
    assert_eq!(report.id, VcpuId(0));
    assert!(
        matches!(&report.reason, FailureReason::Panic { message } if message == "the device is on fire")
    );
    let text = report.to_string();
    assert!(
        text.contains("its thread panicked: the device is on fire"),
        "{text}"
    );
    assert!(text.contains("RIP 0000000000000001"), "{text}");
    assert!(
        text.contains("PioOut port 0x666, 1 x 1 bytes, data 0x1\n    PioOut port 0x80"),
        "{text}"
    );
    // The failed vCPU still answers: it counts as paused, and refuses a resume.
    vcpus.pause(SOON).unwrap();
    assert!(matches!(
        vcpus.resume(SOON),
        Err(Error::Refused {
            id: VcpuId(0),
            state: State::Failed,
            ..
        })
    ));
    vcpus.stop(SOON).unwrap();
    assert!(events.try_recv().is_none(), "one failure, one event");
}

#[test]
fn a_host_failure_is_a_fatal_event_with_its_cause() {
    let (mut vcpus, events) = set();
    vcpus
        .spawn(
            0,
            ScriptedVcpu::new([Step::HostError]),
            RecordingIo::unclaimed(),
        )
        .unwrap();
    vcpus.resume(SOON).unwrap();
    let report = fatal(&events);
    assert!(matches!(report.reason, FailureReason::Host(_)));
    assert!(
        report
            .to_string()
            .contains("the host failed: the script says that the host fails")
    );
    assert!(report.dump.is_some());
    vcpus.stop(SOON).unwrap();
}

#[test]
fn a_host_failure_during_completion_is_a_fatal_event() {
    let (mut vcpus, events) = set();
    let script = [
        Step::PioIn {
            port: 1,
            size: 1,
            count: 1,
        },
        Step::HostError.then(),
    ];
    vcpus
        .spawn(
            0,
            ScriptedVcpu::new(script),
            RecordingIo::new(0, |_| Next::Pause),
        )
        .unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(fatal(&events).reason, FailureReason::Host(_)));
    assert!(
        events.try_recv().is_none(),
        "no Paused event after a failed completion"
    );
}

#[test]
fn a_triple_fault_during_completion_wins_over_the_pause() {
    let (mut vcpus, events) = set();
    let script = [
        Step::PioIn {
            port: 1,
            size: 1,
            count: 1,
        },
        Step::Shutdown.then(),
    ];
    vcpus
        .spawn(
            0,
            ScriptedVcpu::new(script),
            RecordingIo::new(0, |_| Next::Pause),
        )
        .unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Shutdown { .. })
    ));
    assert!(vcpus.save(SOON).is_err());
}

#[test]
fn an_instruction_that_never_completes_is_given_up() {
    let (mut vcpus, events) = set();
    let mmio = || Step::MmioRead { addr: 0, len: 1 };
    let script =
        std::iter::once(mmio()).chain(std::iter::repeat_with(|| mmio().then()).take(70_000));
    vcpus
        .spawn(
            0,
            ScriptedVcpu::new(script),
            RecordingIo::new(0, |_| Next::Pause),
        )
        .unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(matches!(
        fatal(&events).reason,
        FailureReason::NeverSettled { exits: 65_536 }
    ));
    vcpus.stop(SOON).unwrap();
}

/// The same instruction with a controller's pause: the bound is the same.
#[test]
fn an_instruction_that_never_completes_holds_up_no_controller() {
    let (mut vcpus, events) = set();
    let mmio = || Step::MmioRead { addr: 0, len: 1 };
    let script =
        std::iter::once(mmio()).chain(std::iter::repeat_with(|| mmio().then()).take(1_000_000));
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel();
    let answered = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&answered);
    let io = RecordingIo::new(0, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 1000 {
            entered.send(()).unwrap();
            let _ = wait_leave.recv();
        }
        Next::Continue
    });
    vcpus.spawn(0, ScriptedVcpu::new(script), io).unwrap();
    vcpus.resume(SOON).unwrap();
    wait_entered.recv_timeout(SOON).unwrap();
    assert!(matches!(
        vcpus.pause(Duration::ZERO),
        Err(Error::Deadline { .. })
    ));
    leave.send(()).unwrap();
    assert!(matches!(
        fatal(&events).reason,
        FailureReason::NeverSettled { exits: 65_536 }
    ));
    // The exit that was being answered when the pause came, and those of the completion.
    assert_eq!(answered.load(Ordering::Relaxed), 1001 + 65_536);
    assert!(vcpus.pause(SOON).is_ok(), "a failed vCPU counts as paused");
}

#[test]
fn a_panic_in_save_fails_the_vcpu_and_no_other() {
    let (mut vcpus, events) = set();
    let hooks = StateHooks::new(
        |_: &mut ScriptedVcpu, _: &mut RecordingIo| -> Result<ScriptState, BoxError> {
            panic!("no state")
        },
        |_: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| Ok(()),
    );
    vcpus
        .spawn_with(
            VcpuBuilder::new(0, ScriptedVcpu::new([]), RecordingIo::unclaimed()).state_hooks(hooks),
        )
        .unwrap();
    vcpus
        .spawn(1, ScriptedVcpu::new([]), RecordingIo::unclaimed())
        .unwrap();
    assert!(matches!(
        vcpus.save(SOON),
        Err(Error::Refused {
            id: VcpuId(0),
            state: State::Failed,
            ..
        })
    ));
    assert!(fatal(&events).to_string().contains("no state"));
    assert!(vcpus.dump(1, SOON).unwrap().is_some());
    vcpus.stop(SOON).unwrap();
}

#[test]
fn a_panic_before_the_first_entry_is_reported() {
    let (mut vcpus, events) = set();
    let vcpu = VcpuBuilder::new(0, ScriptedVcpu::new([]), RecordingIo::unclaimed());
    let vcpu = vcpu.on_start(|_, _| panic!("no affinity for you"));
    vcpus.spawn_with(vcpu).unwrap();
    assert!(fatal(&events).to_string().contains("no affinity for you"));
    assert!(vcpus.resume(SOON).is_err());
    vcpus.stop(SOON).unwrap();
}

/// Panics when it is dropped.
struct Dying;

impl VcpuIo for Dying {}

impl Drop for Dying {
    fn drop(&mut self) {
        panic!("not even now");
    }
}

#[test]
fn a_panic_while_the_thread_ends_still_leaves_a_last_word() {
    let (mut vcpus, events) = set();
    let dying = Dying;
    let hooks = StateHooks::new(
        move |vcpu: &mut ScriptedVcpu, _: &mut RecordingIo| {
            let _ = &dying;
            Ok(vcpu.save()?)
        },
        |_: &mut ScriptedVcpu, _: &mut RecordingIo, _: ScriptState| Ok(()),
    );
    let vcpu = VcpuBuilder::new(0, ScriptedVcpu::new([]), RecordingIo::unclaimed());
    vcpus.spawn_with(vcpu.state_hooks(hooks)).unwrap();
    vcpus.resume(SOON).unwrap();
    assert!(vcpus.stop(SOON).unwrap().is_empty());
    assert!(matches!(fatal(&events).reason, FailureReason::Lost));
}

#[test]
fn a_device_that_panics_when_dropped_does_not_hurt_who_drops_the_set() {
    let (mut vcpus, events) = set();
    vcpus.spawn(0, ScriptedVcpu::new([]), Dying).unwrap();
    drop(vcpus);
    assert!(events.try_recv().is_none());
}
