// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The KVM calls of the handlers. It is thin, so that the rest can be tested without KVM.

use std::sync::Arc;

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use vcpu_loop::kvm::TscOffset;

use super::Pair;

/// KVM's clock (`KVM_GET_CLOCK`, KVM API section 4.29) and each vCPU's TSC offset.
///
/// The guest's TSC runs at the host's rate; this VMM never scales it.
#[derive(Debug)]
pub struct KvmClock {
    vm: Arc<VmFd>,
    offsets: Vec<Option<TscOffset>>,
}

impl KvmClock {
    /// The clock of `vm`, with the TSC offset of each vCPU, in order. A vCPU without an offset has no pairs.
    /// KVM reports offsets since Linux 5.16.
    pub fn new(vm: Arc<VmFd>, offsets: Vec<Option<TscOffset>>) -> Self {
        KvmClock { vm, offsets }
    }

    /// A pair for a vCPU. Call it on that vCPU's thread.
    pub fn pair(&self, vcpu: u32) -> Option<Pair> {
        let offset = self.offsets.get(vcpu as usize)?.as_ref()?;
        let clock = self.vm.get_clock().ok()?;
        // The offset can't change in between: only this vCPU changes it, and this is its thread.
        pair(&clock, offset.read().ok()?)
    }
}

/// The pair from KVM's answer, if it has both clocks: only if the host's clock is based on the TSC.
fn pair(clock: &kvm_clock_data, tsc_offset: u64) -> Option<Pair> {
    const BOTH: u32 = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    (clock.flags & BOTH == BOTH).then(|| Pair {
        realtime_ns: clock.realtime,
        guest_tsc: clock.host_tsc.wrapping_add(tsc_offset),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
    use kvm_ioctls::{Kvm, VcpuFd};

    use super::*;
    use crate::hypercall::calls::interrupts::InterruptCalls;
    use crate::irq::Irqs;

    #[test]
    fn a_pair_needs_both_clocks() {
        let clock = |flags| kvm_clock_data {
            flags,
            realtime: 5,
            host_tsc: 7,
            ..Default::default()
        };
        let both = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
        for flags in [0, KVM_CLOCK_REALTIME, KVM_CLOCK_HOST_TSC, !both] {
            assert_eq!(pair(&clock(flags), 0), None);
        }
        let expected = Pair {
            realtime_ns: 5,
            guest_tsc: 4,
        };
        assert_eq!(pair(&clock(both | 2), u64::MAX - 2), Some(expected));
    }

    /// A VM with local APICs and two vCPUs, if this host has a KVM.
    fn host_vm(test: &str) -> Option<(Arc<VmFd>, Vec<VcpuFd>)> {
        let kvm: Kvm = crate::check::tests::host_kvm(test)?;
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpus = (0..2).map(|id| vm.create_vcpu(id).unwrap()).collect();
        Some((Arc::new(vm), vcpus))
    }

    fn interrupts(vm: &Arc<VmFd>) -> InterruptCalls {
        let msi = Irqs::new(vm).msi();
        InterruptCalls { msi, cpus: 2 }
    }

    /// Enables a local APIC: bit 8 of the spurious vector's register.
    fn enable_lapic(vcpu: &VcpuFd) {
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0xf0] = -1;
        lapic.regs[0xf1] = 1;
        vcpu.set_lapic(&lapic).unwrap();
    }

    #[test]
    fn kvm_wakes_a_halted_vcpu_at_a_kick() {
        let test = "hypercalls::host::tests::kvm_wakes_a_halted_vcpu_at_a_kick";
        let Some((vm, vcpus)) = host_vm(test) else {
            return;
        };
        let halted = kvm_mp_state {
            mp_state: KVM_MP_STATE_HALTED,
        };
        for vcpu in &vcpus {
            enable_lapic(vcpu);
            vcpu.set_mp_state(halted).unwrap();
        }
        assert!(interrupts(&vm).deliver(1, 0x300));
        let states = [0, 1].map(|id: usize| vcpus[id].get_mp_state().unwrap().mp_state);
        assert_eq!(states, [KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE]);
    }

    #[test]
    fn kvm_counts_only_local_apics_that_take_an_ipi() {
        let test = "hypercalls::host::tests::kvm_counts_only_local_apics_that_take_an_ipi";
        let Some((vm, vcpus)) = host_vm(test) else {
            return;
        };
        enable_lapic(&vcpus[1]);
        let interrupts = interrupts(&vm);
        let deliver = |apic_id| interrupts.deliver(apic_id, 0x41);
        assert_eq!([0, 1, 2].map(deliver), [false, true, false]);
        // The requested interrupts (IRR) are at 0x200, 32 to a register: 0x41 is bit 1 of the third one. Their trigger
        // modes (TMR) are at 0x180.
        let lapic = || {
            let regs = vcpus[1].get_lapic().unwrap().regs;
            [0x220, 0x1a0].map(|at| regs[at] & 2)
        };
        assert_eq!(lapic(), [2, 0]);
        assert!(interrupts.deliver(1, 0x8041));
        assert_eq!(lapic(), [2, 2]);
    }

    #[test]
    fn kvm_pairs_are_of_now() {
        let test = "hypercalls::host::tests::kvm_pairs_are_of_now";
        let Some((vm, vcpus)) = host_vm(test) else {
            return;
        };
        let offsets: Vec<_> = vcpus.iter().map(TscOffset::of).collect();
        let told = offsets.iter().flatten().all(|offset| offset.read().is_ok());
        let clock = KvmClock::new(Arc::clone(&vm), offsets);
        assert_eq!(clock.pair(2), None, "there is no vCPU 2");
        let Some(pair) = clock.pair(1) else {
            // Pairs may be missing on an old KVM, or on a host whose clock is not the TSC.
            let flags = vm.get_clock().unwrap().flags;
            assert!(!told || flags & KVM_CLOCK_HOST_TSC == 0);
            eprintln!("SKIP: {test}: this KVM has no pairs (clock flags {flags:#x})");
            return;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_nanos().abs_diff(u128::from(pair.realtime_ns));
        assert!(age < 10_000_000_000, "{age} ns from now");
        let second = clock.pair(1).unwrap();
        assert!(second.guest_tsc > pair.guest_tsc);
        assert!(second.realtime_ns > pair.realtime_ns);
    }
}
