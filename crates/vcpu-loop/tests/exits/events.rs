// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What exits become on a thread.

use vcpu_loop::script::{RecordingIo, ScriptedVcpu, Step};
use vcpu_loop::{FailureReason, FatalExit, MemoryFault, VcpuEvent, VcpuId, VcpuSet, vcpu_events};

use crate::support::{DEBUG, EVENT, SOON};

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
