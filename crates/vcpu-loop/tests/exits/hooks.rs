// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Exits that stop the guest, inform, or ask a hook.

use vcpu_loop::script::{Call, RecordingIo, Reply, Step};
use vcpu_loop::{Access, ExitKind, FatalExit, Flow, Leave, MemoryFault, Next};

use crate::support::{DEBUG, EVENT, play, step_then_signal};

#[test]
fn exits_that_stop_the_guest_say_why() {
    let fatal = FatalExit::FailEntry {
        reason: 0x8000_0021,
        cpu: 3,
    };
    let cases = [
        (Step::Hlt, Leave::Halted),
        (Step::ApResetHold, Leave::Halted),
        (Step::Shutdown, Leave::Shutdown),
        (Step::SystemEvent(EVENT), Leave::SystemEvent(EVENT)),
        (Step::Debug(DEBUG), Leave::Debug(DEBUG)),
        (Step::DirtyRingFull, Leave::DirtyRingFull),
        (Step::Fatal(fatal), Leave::Fatal(fatal)),
    ];
    for (step, leave) in cases {
        let (_, _, flow) = play(vec![step], &mut RecordingIo::unclaimed());
        assert_eq!(flow, Flow::Leave(leave));
    }
}

#[test]
fn exits_that_only_inform_go_on() {
    let informing = [
        Step::InterruptWindow,
        Step::SetTpr,
        Step::TprAccess,
        Step::BusLock,
    ];
    for step in informing {
        let (replies, unclaimed, flow) =
            play(step_then_signal(step), &mut RecordingIo::unclaimed());
        assert_eq!(
            (replies.len(), unclaimed.total(), flow),
            (0, 0, Flow::Interrupted)
        );
    }
}

#[test]
fn a_guest_that_held_the_cpu_goes_on_and_is_counted() {
    let script = step_then_signal(Step::Notify);
    let (_, unclaimed, flow) = play(script, &mut RecordingIo::unclaimed());
    let counted = unclaimed.count(Access::Notification);
    assert_eq!((counted, flow), (1, Flow::Interrupted));
}

const FAULT: MemoryFault = MemoryFault {
    flags: 8,
    gpa: 0x1000,
    size: 0x1000,
};

/// Exits that have no method of their own, and what follows if they are unclaimed.
fn other_exits() -> Vec<(Step, ExitKind, Flow)> {
    let unknown = FatalExit::Unknown { exit_reason: 40 };
    let tdx = Step::Other {
        reason: 40,
        data: vec![1; 256],
    };
    let ends = |exit| Flow::Leave(Leave::Fatal(exit));
    vec![
        (Step::BusLock, ExitKind::BusLock, Flow::Interrupted),
        (Step::Notify, ExitKind::Notify, Flow::Interrupted),
        (
            Step::InterruptWindow,
            ExitKind::InterruptWindow,
            Flow::Interrupted,
        ),
        (Step::SetTpr, ExitKind::SetTpr, Flow::Interrupted),
        (Step::TprAccess, ExitKind::TprAccess, Flow::Interrupted),
        (
            Step::MemoryFault(FAULT),
            ExitKind::MemoryFault,
            ends(FatalExit::MemoryFault(FAULT)),
        ),
        (tdx, ExitKind::Other, ends(unknown)),
    ]
}

#[test]
fn an_exit_without_a_method_reaches_the_hook_that_can_answer_and_go_on() {
    for (step, kind, _) in other_exits() {
        for next in [Next::Continue, Next::Pause] {
            let mut io = RecordingIo::new(0x5a, move |_| next);
            let calls = io.calls();
            let (replies, unclaimed, flow) = play(step_then_signal(step.clone()), &mut io);
            let after = match next {
                Next::Pause => Flow::Pause,
                _ => Flow::Interrupted,
            };
            assert_eq!((flow, unclaimed.total()), (after, 0), "{step:?}");
            assert_eq!(calls.get(), [Call::Other(kind)]);
            if kind == ExitKind::Other && next == Next::Continue {
                assert_eq!(replies, [Reply::Other(vec![0x5a; 256])]);
            }
        }
    }
}

#[test]
fn an_exit_that_no_hook_answers_means_what_it_meant() {
    for (step, kind, after) in other_exits() {
        let script = step_then_signal(step);
        let (_, unclaimed, flow) = play(script, &mut RecordingIo::unclaimed());
        let counted = u64::from(kind == ExitKind::Notify);
        assert_eq!((flow, unclaimed.total()), (after, counted), "{kind:?}");
    }
}
