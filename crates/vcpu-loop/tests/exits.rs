// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every exit of the scripted vCPU: what the guest gets and what the VMM is told.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use vcpu_loop::script::{Call, RecordingIo, Reply, ScriptedVcpu, Step};
use vcpu_loop::{
    Access, DebugExit, Exit, ExitKind, FailureReason, FatalExit, Flow, HypercallAbi, Leave,
    MemoryFault, MsrReply, Next, SystemEvent, Unclaimed, Vcpu, VcpuEvent, VcpuId, VcpuIo, VcpuSet,
    dispatch, vcpu_events,
};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);
const EVENT: SystemEvent = SystemEvent {
    kind: 1,
    count: 1,
    data: [7; 16],
};
const DEBUG: DebugExit = DebugExit {
    exception: 1,
    pc: 0x1000,
    dr6: 0xffff_0ff0,
    dr7: 0x400,
};

/// Runs a script to its end, without threads, and returns the replies, the counters and the last flow.
fn play(script: Vec<Step>, io: &mut dyn VcpuIo) -> (Vec<Reply>, Unclaimed, Flow) {
    let mut vcpu = ScriptedVcpu::new(script);
    let replies = vcpu.replies();
    let unclaimed = Unclaimed::default();
    loop {
        // A script must end with a step that leaves this loop: after it, the vCPU spins until kicked.
        let flow = dispatch(vcpu.run().unwrap(), io, VcpuId(0), &unclaimed);
        if flow != Flow::Continue {
            if flow != Flow::Interrupted && !matches!(flow, Flow::Leave(_)) {
                let _ = dispatch(vcpu.complete().unwrap(), io, VcpuId(0), &unclaimed);
            }
            return (replies.get(), unclaimed, flow);
        }
    }
}

fn step_then_signal(step: Step) -> Vec<Step> {
    vec![step, Step::Signal]
}

#[test]
fn every_claimed_access_reaches_the_vmm_and_its_answer_the_guest() {
    let synic = Step::HypervSynic { msr: 0x4000_0080 };
    let hypercall = |abi| Step::Hypercall { abi, number: 9 };
    let cases: Vec<(Step, Call, Reply)> = vec![
        (
            Step::PioIn {
                port: 0x60,
                size: 1,
                count: 1,
            },
            Call::PioRead(0x60, 1),
            Reply::PioIn(vec![0xa5]),
        ),
        (
            Step::PioOut {
                port: 0x80,
                size: 2,
                data: vec![1, 2],
            },
            Call::PioWrite(0x80, vec![1, 2]),
            Reply::PioOut,
        ),
        (
            Step::MmioRead {
                addr: 0xfee0_0000,
                len: 4,
            },
            Call::MmioRead(0xfee0_0000, 4),
            Reply::MmioRead(vec![0xa5; 4]),
        ),
        (
            Step::MmioWrite {
                addr: u64::MAX,
                data: vec![9],
            },
            Call::MmioWrite(u64::MAX, vec![9]),
            Reply::MmioWrite,
        ),
        (
            Step::Rdmsr { index: 0x10 },
            Call::Rdmsr(0x10),
            Reply::Rdmsr(Some(5)),
        ),
        (
            Step::Wrmsr {
                index: 0x10,
                data: 6,
            },
            Call::Wrmsr(0x10, 6),
            Reply::Wrmsr(Some(())),
        ),
        (
            hypercall(HypercallAbi::Kvm),
            Call::Hypercall(HypercallAbi::Kvm, 9),
            Reply::Hypercall(0xa5),
        ),
        (
            hypercall(HypercallAbi::Xen),
            Call::Hypercall(HypercallAbi::Xen, 9),
            Reply::Hypercall(0xa5),
        ),
        (
            hypercall(HypercallAbi::Hyperv),
            Call::Hypercall(HypercallAbi::Hyperv, 9),
            Reply::Hypercall(0xa5),
        ),
        (synic, Call::Hyperv, Reply::Hyperv),
    ];
    for (step, call, reply) in cases {
        let mut io = RecordingIo::claiming(0xa5).with_msr(0x10, 5);
        let calls = io.calls();
        let (replies, unclaimed, flow) = play(step_then_signal(step.clone()), &mut io);
        assert_eq!(calls.get(), [call], "{step:?}");
        assert_eq!(replies, [reply], "{step:?}");
        assert_eq!(
            (unclaimed.total(), flow),
            (0, Flow::Interrupted),
            "{step:?}"
        );
    }
    let mut io = RecordingIo::claiming(0);
    let calls = io.calls();
    let _ = play(step_then_signal(Step::IoapicEoi { vector: 0x31 }), &mut io);
    assert_eq!(calls.get(), [Call::IoapicEoi(0x31)]);
}

#[test]
fn unclaimed_accesses_have_one_defined_answer_and_are_counted() {
    let cases = [
        (
            Step::PioIn {
                port: 0x60,
                size: 2,
                count: 1,
            },
            Access::PioRead,
            Reply::PioIn(vec![0xff; 2]),
        ),
        (
            Step::PioOut {
                port: 0x80,
                size: 1,
                data: vec![1],
            },
            Access::PioWrite,
            Reply::PioOut,
        ),
        (
            Step::MmioRead { addr: 1, len: 8 },
            Access::MmioRead,
            Reply::MmioRead(vec![0xff; 8]),
        ),
        (
            Step::MmioWrite {
                addr: 1,
                data: vec![9],
            },
            Access::MmioWrite,
            Reply::MmioWrite,
        ),
        (
            Step::Rdmsr { index: 0x10 },
            Access::Rdmsr,
            Reply::Rdmsr(None),
        ),
        (
            Step::Wrmsr {
                index: 0x10,
                data: 6,
            },
            Access::Wrmsr,
            Reply::Wrmsr(None),
        ),
        (
            Step::Hypercall {
                abi: HypercallAbi::Kvm,
                number: 1,
            },
            Access::Hypercall,
            Reply::Hypercall(-1000i64 as u64),
        ),
        (
            Step::Hypercall {
                abi: HypercallAbi::Xen,
                number: 1,
            },
            Access::Hypercall,
            Reply::Hypercall(-38i64 as u64),
        ),
        (
            Step::Hypercall {
                abi: HypercallAbi::Hyperv,
                number: 1,
            },
            Access::Hypercall,
            Reply::Hypercall(2),
        ),
        (
            Step::HypervSynic { msr: 1 },
            Access::Notification,
            Reply::Hyperv,
        ),
    ];
    struct Silent;
    impl VcpuIo for Silent {}
    for (step, access, reply) in cases {
        // The trait's defaults, and an object that writes into the reply before it answers `Unclaimed`.
        let scribbling: Box<dyn VcpuIo> = Box::new(RecordingIo::new(0, |_| Next::Unclaimed));
        for mut io in [Box::new(Silent) as Box<dyn VcpuIo>, scribbling] {
            let (replies, unclaimed, _) = play(step_then_signal(step.clone()), io.as_mut());
            assert_eq!(replies, std::slice::from_ref(&reply), "{step:?}");
            assert_eq!(
                (unclaimed.count(access), unclaimed.total()),
                (1, 1),
                "{step:?}"
            );
        }
    }
}

#[test]
fn a_faulting_msr_is_gp_but_not_unclaimed() {
    struct Faulting;
    impl VcpuIo for Faulting {
        fn rdmsr(&mut self, _: u32) -> MsrReply<u64> {
            MsrReply::Fault
        }
        fn wrmsr(&mut self, _: u32, _: u64) -> MsrReply<()> {
            MsrReply::Fault
        }
    }
    let script = vec![
        Step::Rdmsr { index: 1 },
        Step::Wrmsr { index: 1, data: 0 },
        Step::Signal,
    ];
    let (replies, unclaimed, _) = play(script, &mut Faulting);
    assert_eq!(replies, [Reply::Rdmsr(None), Reply::Wrmsr(None)]);
    assert_eq!(unclaimed.total(), 0);
}

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

#[test]
fn string_pio_is_split_for_every_size() {
    for size in [1u8, 2, 4] {
        let width = usize::from(size);
        for count in [1usize, 3, 64, 1024 / width] {
            let bytes: Vec<u8> = (0..count * width).map(|i| i as u8).collect();
            let mut io = RecordingIo::claiming(0x11);
            let calls = io.calls();
            let script = vec![
                Step::PioOut {
                    port: 0x10,
                    size,
                    data: bytes.clone(),
                },
                Step::PioIn {
                    port: 0x20,
                    size,
                    count,
                },
                Step::Signal,
            ];
            let (replies, _, _) = play(script, &mut io);
            assert_eq!(replies[1], Reply::PioIn(vec![0x11; count * width]));
            let calls = calls.get();
            assert_eq!(calls.len(), 2 * count);
            let mut written = Vec::new();
            for call in &calls[..count] {
                let Call::PioWrite(0x10, element) = call else {
                    panic!("{call:?}")
                };
                assert_eq!(element.len(), width);
                written.extend_from_slice(element);
            }
            assert_eq!(written, bytes);
            assert!(
                calls[count..]
                    .iter()
                    .all(|call| *call == Call::PioRead(0x20, width))
            );
        }
    }
}

#[test]
fn a_string_write_is_told_from_out() {
    #[derive(Default)]
    struct Tells(Vec<(bool, Vec<u8>)>);
    impl VcpuIo for Tells {
        fn pio_write(&mut self, _: u16, data: &[u8]) -> Next {
            self.0.push((false, data.to_vec()));
            Next::Continue
        }
        fn pio_write_string(&mut self, _: u16, element: &[u8]) -> Next {
            self.0.push((true, element.to_vec()));
            Next::Unclaimed
        }
    }
    let out = |data: &[u8]| Step::PioOut {
        port: 0xf5,
        size: 1,
        data: data.to_vec(),
    };
    let mut io = Tells::default();
    let (_, unclaimed, _) = play(vec![out(&[1]), out(&[2, 3]), Step::Signal], &mut io);
    assert_eq!(io.0, [(false, vec![1]), (true, vec![2]), (true, vec![3])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 2);
}

#[test]
fn a_partly_unclaimed_string_read_keeps_the_claimed_elements() {
    let mut n = 0;
    let mut io = RecordingIo::new(0, move |_| {
        n += 1;
        if n % 2 == 0 {
            Next::Unclaimed
        } else {
            Next::Continue
        }
    });
    let (replies, unclaimed, _) = play(
        step_then_signal(Step::PioIn {
            port: 1,
            size: 2,
            count: 4,
        }),
        &mut io,
    );
    assert_eq!(
        replies,
        [Reply::PioIn(vec![0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff])]
    );
    assert_eq!(unclaimed.count(Access::PioRead), 2);
}

#[test]
fn a_pause_in_the_middle_of_a_string_finishes_the_string() {
    let mut n = 0;
    let mut io = RecordingIo::new(0, move |_| {
        n += 1;
        if n == 2 { Next::Pause } else { Next::Continue }
    });
    let calls = io.calls();
    let (replies, _, flow) = play(
        vec![Step::PioOut {
            port: 1,
            size: 1,
            data: vec![0; 5],
        }],
        &mut io,
    );
    assert_eq!(
        (replies, flow, calls.get().len()),
        (vec![Reply::PioOut], Flow::Pause, 5)
    );
}

proptest! {
    /// Splitting loses, repeats and reorders nothing, for any length from KVM.
    #[test]
    fn the_pio_split_is_a_partition(size in prop::sample::select(vec![1u8, 2, 4]), data in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut io = RecordingIo::claiming(0);
        let calls = io.calls();
        let exit = Exit::PioOut { port: 0x70, size, data: &data };
        prop_assert_eq!(dispatch(exit, &mut io, VcpuId(0), &Unclaimed::default()), Flow::Continue);
        let mut joined = Vec::new();
        for call in calls.get() {
            let Call::PioWrite(0x70, element) = call else { panic!("{call:?}") };
            prop_assert!(!element.is_empty() && element.len() <= usize::from(size));
            joined.extend(element);
        }
        prop_assert_eq!(joined, data);
    }
}

/// On a thread, each kind of exit sends its event, and the vCPU leaves the guest.
fn first_event(script: Vec<Step>) -> (VcpuEvent, VcpuSet<vcpu_loop::script::ScriptState>) {
    let (sender, events) = vcpu_events().unwrap();
    let mut set = VcpuSet::new(sender);
    set.spawn(5, ScriptedVcpu::new(script), RecordingIo::claiming(0))
        .unwrap();
    set.resume(SOON).unwrap();
    let event = events.recv_timeout(SOON).expect("an event");
    assert_eq!(event.id(), VcpuId(5));
    (event, set)
}

#[test]
fn stopping_exits_become_events() {
    let (event, set) = first_event(vec![Step::Hlt, Step::Hlt]);
    assert!(matches!(event, VcpuEvent::Halted { .. }));
    // Halted even after a pause: only a wake-up lets the guest continue to its second hlt.
    set.pause(SOON).unwrap();
    assert_eq!(set.save(SOON).unwrap()[0].retired, 1);
    set.resume(SOON).unwrap();
    set.pause(SOON).unwrap();
    assert_eq!(set.save(SOON).unwrap()[0].retired, 1);
    set.resume(SOON).unwrap();
    set.wake(5, SOON).unwrap();
    while set.save(SOON).is_err() || set.save(SOON).unwrap()[0].retired < 2 {
        set.resume(SOON).unwrap();
        set.pause(SOON).unwrap();
    }

    let (event, set) = first_event(vec![Step::Debug(DEBUG)]);
    assert!(matches!(event, VcpuEvent::Debug { debug: DEBUG, .. }));
    assert!(set.save(SOON).is_ok());

    let (event, set) = first_event(vec![Step::DirtyRingFull]);
    assert!(matches!(event, VcpuEvent::DirtyRingFull { .. }));
    assert!(set.save(SOON).is_ok());

    let (event, set) = first_event(vec![Step::SystemEvent(EVENT)]);
    assert!(matches!(event, VcpuEvent::SystemEvent { event: EVENT, .. }));
    assert!(set.save(SOON).is_err());
    set.pause(SOON).unwrap();
}

#[test]
fn a_triple_fault_carries_registers_and_the_last_exits() {
    let out = Step::PioOut {
        port: 0x3f8,
        size: 1,
        data: vec![0x41],
    };
    let (event, set) = first_event(vec![
        out,
        Step::Wrmsr {
            index: 0x99,
            data: 3,
        },
        Step::Shutdown,
    ]);
    let VcpuEvent::Shutdown { report } = event else {
        panic!("{event:?}")
    };
    assert!(matches!(report.reason, FailureReason::TripleFault));
    let text = report.to_string();
    for part in [
        "vCPU 5 failed: triple fault",
        "RIP 0000000000000003",
        "RAX 0000000000000000",
        "CR3 ",
        "EFER ",
        "GDT ",
        "IDT ",
        "LDTR",
        "bytes at RIP",
        "Shutdown\n    Wrmsr 0x99, data 0x3\n    PioOut port 0x3f8, 1 x 1 bytes, data 0x41",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    // Only a restore makes an ended vCPU runnable.
    assert!(set.resume(SOON).is_err());
    set.restore(vec![Default::default()], SOON).unwrap();
    set.resume(SOON).unwrap();
}

#[test]
fn fatal_exits_print_what_kvm_said() {
    let mut data = [0; 16];
    data[0] = 1;
    data[1] = u64::from_le_bytes([2, 0x0f, 0x0b, 0, 0, 0, 0, 0]);
    let emulation = FatalExit::InternalError {
        suberror: 1,
        count: 3,
        data,
    };
    let cases = [
        (
            FatalExit::FailEntry {
                reason: 0x21,
                cpu: 1,
            },
            "hardware reason 0x21 on host CPU 1",
        ),
        (emulation, "internal error 1 (instruction emulation)"),
        (emulation, "instruction 0f 0b"),
        (
            FatalExit::Exception {
                vector: 13,
                error_code: 0,
            },
            "unhandled exception 13",
        ),
        (
            FatalExit::Hardware { reason: 0x7f },
            "unknown hardware exit 0x7f",
        ),
        (FatalExit::Notify { flags: 1 }, "no event window"),
        (
            FatalExit::MemoryFault(MemoryFault {
                flags: 8,
                gpa: 0x1000,
                size: 0x1000,
            }),
            "memory fault at 0x1000",
        ),
        (
            FatalExit::Malformed { exit_reason: 2 },
            "inconsistent description of KVM exit 2",
        ),
        (
            FatalExit::Unknown { exit_reason: 99 },
            "unknown KVM exit 99",
        ),
    ];
    for (exit, part) in cases {
        let (event, set) = first_event(vec![Step::Fatal(exit)]);
        let VcpuEvent::Fatal { report } = event else {
            panic!("{event:?}")
        };
        assert!(
            report.to_string().contains(part),
            "no {part:?} in\n{report}"
        );
        drop(set);
    }
}
