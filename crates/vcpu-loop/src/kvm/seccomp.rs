// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls and ioctls of a vCPU's thread, for a seccomp filter.
//!
//! Install a filter in [`VcpuBuilder::on_start`](crate::VcpuBuilder::on_start), or before
//! [`VcpuRunner::run_here`](crate::VcpuRunner::run_here). From there to its end, the thread makes the [`SYSCALLS`]. Its
//! ioctls are those of [`RUN`], and those of [`SAVE`], [`RESTORE`] and [`REPORT`] if the VMM makes these requests (a
//! failure also makes a report). Add what your devices and hooks need; a panic that prints a backtrace opens files.
//!
//! Numbers are Linux's on x86-64. The second argument of `ioctl` is the request; compare its lower 32 bits.

/// A request to a vCPU's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// Its name in the KVM API documentation.
    pub name: &'static str,
    /// The second argument of `ioctl`.
    pub request: u32,
}

const fn ioctl(name: &'static str, request: u32) -> Ioctl {
    Ioctl { name, request }
}

const GET_CPUID2: Ioctl = ioctl("KVM_GET_CPUID2", 0xc008_ae91);
const GET_DEVICE_ATTR: Ioctl = ioctl("KVM_GET_DEVICE_ATTR", 0x4018_aee2);
const GET_MSRS: Ioctl = ioctl("KVM_GET_MSRS", 0xc008_ae88);
const GET_NESTED_STATE: Ioctl = ioctl("KVM_GET_NESTED_STATE", 0xc080_aebe);
const GET_REGS: Ioctl = ioctl("KVM_GET_REGS", 0x8090_ae81);
const GET_SREGS: Ioctl = ioctl("KVM_GET_SREGS", 0x8138_ae83);
const GET_TSC_KHZ: Ioctl = ioctl("KVM_GET_TSC_KHZ", 0xaea3);

/// For running, pausing and resuming.
pub const RUN: &[Ioctl] = &[ioctl("KVM_RUN", 0xae80), ioctl("KVM_KVMCLOCK_CTRL", 0xaead)];

/// For a failure report or a dump.
pub const REPORT: &[Ioctl] = &[GET_REGS, GET_SREGS, ioctl("KVM_TRANSLATE", 0xc018_ae85)];

/// For a save.
pub const SAVE: &[Ioctl] = &[
    ioctl("KVM_GET_MP_STATE", 0x8004_ae98),
    GET_REGS,
    GET_SREGS,
    ioctl("KVM_GET_SREGS2", 0x8140_aecc),
    ioctl("KVM_GET_XSAVE", 0x9000_aea4),
    ioctl("KVM_GET_XSAVE2", 0x9000_aecf),
    ioctl("KVM_GET_XCRS", 0x8188_aea6),
    ioctl("KVM_GET_DEBUGREGS", 0x8080_aea1),
    ioctl("KVM_GET_LAPIC", 0x8400_ae8e),
    GET_CPUID2,
    GET_MSRS,
    GET_TSC_KHZ,
    GET_DEVICE_ATTR,
    GET_NESTED_STATE,
    ioctl("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
];

/// For a restore.
pub const RESTORE: &[Ioctl] = &[
    GET_TSC_KHZ,
    ioctl("KVM_SET_TSC_KHZ", 0xaea2),
    GET_CPUID2,
    ioctl("KVM_SET_CPUID2", 0x4008_ae90),
    GET_NESTED_STATE,
    ioctl("KVM_SET_NESTED_STATE", 0x4080_aebf),
    GET_MSRS,
    GET_DEVICE_ATTR,
    ioctl("KVM_SET_DEVICE_ATTR", 0x4018_aee1),
    ioctl("KVM_SET_MSRS", 0x4008_ae89),
    ioctl("KVM_SET_SREGS", 0x4138_ae84),
    ioctl("KVM_SET_SREGS2", 0x4140_aecd),
    ioctl("KVM_SET_XCRS", 0x4188_aea7),
    ioctl("KVM_SET_XSAVE", 0x5000_aea5),
    ioctl("KVM_SET_REGS", 0x4090_ae82),
    ioctl("KVM_SET_DEBUGREGS", 0x4080_aea2),
    ioctl("KVM_SET_LAPIC", 0x4400_ae8f),
    ioctl("KVM_SET_MP_STATE", 0x4004_ae99),
    ioctl("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
];

/// The system calls, by name and number: those of this crate, of the standard library's channels and thread end, and of
/// glibc's allocator.
pub const SYSCALLS: &[(&str, i64)] = &[
    ("ioctl", libc::SYS_ioctl),
    // Requests and events.
    ("futex", libc::SYS_futex),
    ("sched_yield", libc::SYS_sched_yield),
    ("write", libc::SYS_write),
    // The kick signal. `run_here` starts with `gettid`.
    ("gettid", libc::SYS_gettid),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    // If the vDSO has no clock.
    ("clock_gettime", libc::SYS_clock_gettime),
    // Memory.
    ("brk", libc::SYS_brk),
    ("madvise", libc::SYS_madvise),
    ("mmap", libc::SYS_mmap),
    ("mprotect", libc::SYS_mprotect),
    ("mremap", libc::SYS_mremap),
    ("munmap", libc::SYS_munmap),
    // The end of the thread.
    ("close", libc::SYS_close),
    ("exit", libc::SYS_exit),
    ("sigaltstack", libc::SYS_sigaltstack),
];

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::*;
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
    ioctl_ior_nr!(KVM_GET_REGS, KVMIO, 0x81, kvm_regs);
    ioctl_iow_nr!(KVM_SET_REGS, KVMIO, 0x82, kvm_regs);
    ioctl_ior_nr!(KVM_GET_SREGS, KVMIO, 0x83, kvm_sregs);
    ioctl_iow_nr!(KVM_SET_SREGS, KVMIO, 0x84, kvm_sregs);
    ioctl_iowr_nr!(KVM_TRANSLATE, KVMIO, 0x85, kvm_translation);
    ioctl_iowr_nr!(KVM_GET_MSRS, KVMIO, 0x88, kvm_msrs);
    ioctl_iow_nr!(KVM_SET_MSRS, KVMIO, 0x89, kvm_msrs);
    ioctl_ior_nr!(KVM_GET_LAPIC, KVMIO, 0x8e, kvm_lapic_state);
    ioctl_iow_nr!(KVM_SET_LAPIC, KVMIO, 0x8f, kvm_lapic_state);
    ioctl_iow_nr!(KVM_SET_CPUID2, KVMIO, 0x90, kvm_cpuid2);
    ioctl_iowr_nr!(KVM_GET_CPUID2, KVMIO, 0x91, kvm_cpuid2);
    ioctl_ior_nr!(KVM_GET_MP_STATE, KVMIO, 0x98, kvm_mp_state);
    ioctl_iow_nr!(KVM_SET_MP_STATE, KVMIO, 0x99, kvm_mp_state);
    ioctl_ior_nr!(KVM_GET_VCPU_EVENTS, KVMIO, 0x9f, kvm_vcpu_events);
    ioctl_iow_nr!(KVM_SET_VCPU_EVENTS, KVMIO, 0xa0, kvm_vcpu_events);
    ioctl_ior_nr!(KVM_GET_DEBUGREGS, KVMIO, 0xa1, kvm_debugregs);
    ioctl_iow_nr!(KVM_SET_DEBUGREGS, KVMIO, 0xa2, kvm_debugregs);
    ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);
    ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
    ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
    ioctl_ior_nr!(KVM_GET_XCRS, KVMIO, 0xa6, kvm_xcrs);
    ioctl_iow_nr!(KVM_SET_XCRS, KVMIO, 0xa7, kvm_xcrs);
    ioctl_io_nr!(KVM_KVMCLOCK_CTRL, KVMIO, 0xad);
    ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
    ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);
    ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
    ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

    macro_rules! requests {
        ($($name:ident)*) => { [$((stringify!($name), $name())),*] };
    }

    #[test]
    fn requests_are_those_of_the_kernels_structures() {
        let requests = requests!(
            KVM_RUN KVM_GET_REGS KVM_SET_REGS KVM_GET_SREGS KVM_SET_SREGS KVM_TRANSLATE KVM_GET_MSRS KVM_SET_MSRS
            KVM_GET_LAPIC KVM_SET_LAPIC KVM_SET_CPUID2 KVM_GET_CPUID2 KVM_GET_MP_STATE KVM_SET_MP_STATE
            KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_SET_TSC_KHZ
            KVM_GET_TSC_KHZ KVM_GET_XSAVE KVM_SET_XSAVE KVM_GET_XCRS KVM_SET_XCRS KVM_KVMCLOCK_CTRL
            KVM_GET_NESTED_STATE KVM_SET_NESTED_STATE KVM_GET_SREGS2 KVM_SET_SREGS2 KVM_GET_XSAVE2
            KVM_SET_DEVICE_ATTR KVM_GET_DEVICE_ATTR
        );
        let listed = [RUN, REPORT, SAVE, RESTORE].concat();
        for (name, request) in requests {
            let found = listed.iter().find(|ioctl| ioctl.name == name);
            assert_eq!(
                found.map(|ioctl| u64::from(ioctl.request)),
                Some(request),
                "{name}"
            );
        }
        assert!(
            listed
                .iter()
                .all(|ioctl| requests.iter().any(|(name, _)| *name == ioctl.name))
        );
    }
}
