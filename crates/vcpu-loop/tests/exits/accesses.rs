// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Accesses of the guest, and their answers.

use vcpu_loop::script::{Call, RecordingIo, Reply, Step};
use vcpu_loop::{Access, Flow, HypercallAbi, MsrReply, Next, VcpuIo};

use crate::support::{play, step_then_signal};

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
