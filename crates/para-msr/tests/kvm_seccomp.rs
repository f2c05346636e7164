// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks that the crate calls only the ioctls that it lists, with a seccomp filter. Without a usable /dev/kvm, the
//! tests that need it print SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use common::{Machine, kvm};
use para_msr::filter::FilterError;
use para_msr::kvm::{KvmMsrs, ParaSetupError, ioctl, setup_para};
use para_msr::para;
use para_msr::saved::{MsrAccess, MsrValue};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

const EPERM: i32 = 1;
/// The number of `ioctl` on x86-64.
const SYS_IOCTL: i64 = 16;
const STAR: u32 = 0xc000_0081;

/// Runs `work` on a thread whose ioctls fail with EPERM, except these requests.
fn with_only<T: Send>(requests: &[u64], work: impl FnOnce() -> T + Send) -> T {
    let is_other = |request: &u64| {
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *request).unwrap()
    };
    let others = SeccompRule::new(requests.iter().map(is_other).collect()).unwrap();
    let filter = SeccompFilter::new(
        [(SYS_IOCTL, vec![others])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM as u32),
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&program).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// The numbers as `strace` and other VMMs' filters show them.
#[test]
fn requests_have_the_numbers_of_the_kernels_header() {
    assert_eq!(ioctl::INSTALL, [0xae03, 0x4068_aea3, 0x4188_aec6]);
    assert_eq!(ioctl::SETUP[..3], ioctl::INSTALL);
    assert_eq!(ioctl::SETUP[3], 0xc008_ae05);
    assert_eq!(ioctl::SAVED, [0xc008_ae88, 0x4008_ae89]);
}

#[test]
fn the_listed_ioctls_suffice() {
    let Some(kvm) = kvm("the_listed_ioctls_suffice") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let installed = with_only(&ioctl::INSTALL, || {
        para::filter()
            .install(&machine.vm)
            .and_then(|()| para::filter().replace(&machine.vm))
    });
    assert_eq!(installed, Ok(()));
    let stub = with_only(&ioctl::SETUP, || setup_para(&kvm, &machine.vm));
    // The tests assume a host with a known vendor.
    assert!(stub.unwrap().insn().is_some());
    let vcpu = machine.vcpu(0);
    let mut star = MsrValue {
        index: STAR,
        value: 0x1234,
    };
    let done = with_only(&ioctl::SAVED, || {
        let set = KvmMsrs(&vcpu).set(&[star]);
        star.value = 0;
        (set, KvmMsrs(&vcpu).get(std::slice::from_mut(&mut star)))
    });
    assert_eq!((done, star.value), ((Ok(1), Ok(1)), 0x1234));
}

#[test]
fn what_seccomp_keeps_is_no_lack_of_kvms() {
    let Some(kvm) = kvm("what_seccomp_keeps_is_no_lack_of_kvms") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let install = || para::filter().install(&machine.vm).unwrap_err();
    // With and without permission to check what KVM lacks.
    for asked in [ioctl::KVM_CHECK_EXTENSION, 0] {
        let error = with_only(&[asked, ioctl::KVM_ENABLE_CAP], install);
        assert!(
            matches!(error, FilterError::Install { source, .. } if source.errno() == EPERM),
            "{error}"
        );
        assert!(error.to_string().contains("KVM_X86_SET_MSR_FILTER"));
        let error = with_only(&[asked, ioctl::KVM_X86_SET_MSR_FILTER], install);
        assert!(
            matches!(error, FilterError::Enable { source, .. } if source.errno() == EPERM),
            "{error}"
        );
        assert!(error.to_string().contains("KVM_ENABLE_CAP"));
    }
    let error = with_only(&ioctl::INSTALL, || setup_para(&kvm, &machine.vm)).unwrap_err();
    assert!(
        matches!(error, ParaSetupError::Cpuid(source) if source.errno() == EPERM),
        "{error}"
    );
    assert!(error.to_string().contains("KVM_GET_SUPPORTED_CPUID"));
}
