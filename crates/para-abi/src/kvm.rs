// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Today's KVM paravirtualization: CPUID leaves, features, MSRs, hypercalls.
//!
//! Names and values are those of Linux's `arch/x86/include/uapi/asm/kvm_para.h` and
//! `include/uapi/linux/kvm_para.h`; meanings are in `Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst`.
//! A test compares them with the system's headers. Error numbers are [`KvmErrno`](crate::KvmErrno), registers
//! [`Convention::Kvm`](crate::Convention::Kvm).

/// Leaf of the signature. EAX is the highest leaf; on old hosts it is 0, which means [`KVM_CPUID_FEATURES`].
pub const KVM_CPUID_SIGNATURE: u32 = 0x4000_0000;
/// Leaf of the features (EAX) and hints (EDX).
pub const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// The signature in EBX, ECX and EDX; see [`signature_registers`](crate::signature_registers).
pub const KVM_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";

/// Bit of EAX: kvmclock at the MSRs 0x11 and 0x12.
pub const KVM_FEATURE_CLOCKSOURCE: u32 = 0;
/// Bit of EAX: no delays are needed around port I/O.
pub const KVM_FEATURE_NOP_IO_DELAY: u32 = 1;
/// Bit of EAX: MMU operations by hypercall; obsolete.
pub const KVM_FEATURE_MMU_OP: u32 = 2;
/// Bit of EAX: kvmclock at the MSRs 0x4b564d00 and 0x4b564d01.
pub const KVM_FEATURE_CLOCKSOURCE2: u32 = 3;
/// Bit of EAX: asynchronous page faults by [`MSR_KVM_ASYNC_PF_EN`].
pub const KVM_FEATURE_ASYNC_PF: u32 = 4;
/// Bit of EAX: [`MSR_KVM_STEAL_TIME`].
pub const KVM_FEATURE_STEAL_TIME: u32 = 5;
/// Bit of EAX: [`MSR_KVM_PV_EOI_EN`].
pub const KVM_FEATURE_PV_EOI: u32 = 6;
/// Bit of EAX: paravirtual spinlocks, by [`KVM_HC_KICK_CPU`].
pub const KVM_FEATURE_PV_UNHALT: u32 = 7;
/// Bit of EAX: TLB flushes through the steal-time page.
pub const KVM_FEATURE_PV_TLB_FLUSH: u32 = 9;
/// Bit of EAX: asynchronous page faults as #PF exits of nested guests.
pub const KVM_FEATURE_ASYNC_PF_VMEXIT: u32 = 10;
/// Bit of EAX: [`KVM_HC_SEND_IPI`].
pub const KVM_FEATURE_PV_SEND_IPI: u32 = 11;
/// Bit of EAX: [`MSR_KVM_POLL_CONTROL`].
pub const KVM_FEATURE_POLL_CONTROL: u32 = 12;
/// Bit of EAX: [`KVM_HC_SCHED_YIELD`].
pub const KVM_FEATURE_PV_SCHED_YIELD: u32 = 13;
/// Bit of EAX: asynchronous page faults by interrupt, [`MSR_KVM_ASYNC_PF_INT`].
pub const KVM_FEATURE_ASYNC_PF_INT: u32 = 14;
/// Bit of EAX: MSI addresses carry 15 bits of destination.
pub const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 15;
/// Bit of EAX: [`KVM_HC_MAP_GPA_RANGE`].
pub const KVM_FEATURE_HC_MAP_GPA_RANGE: u32 = 16;
/// Bit of EAX: [`MSR_KVM_MIGRATION_CONTROL`].
pub const KVM_FEATURE_MIGRATION_CONTROL: u32 = 17;
/// Bit of EAX: the host says when kvmclock is stable across vCPUs.
pub const KVM_FEATURE_CLOCKSOURCE_STABLE_BIT: u32 = 24;
/// Bit of EDX: vCPUs are never preempted for long.
pub const KVM_HINTS_REALTIME: u32 = 0;

/// The bits of EAX for features that the guest uses through hypercalls. A VMM hides them when it takes
/// over all hypercalls, since KVM answers these calls faster.
pub const KVM_FEATURES_BY_HYPERCALL: u32 = 1 << KVM_FEATURE_PV_UNHALT
    | 1 << KVM_FEATURE_PV_SEND_IPI
    | 1 << KVM_FEATURE_PV_SCHED_YIELD
    | 1 << KVM_FEATURE_HC_MAP_GPA_RANGE;

/// Wall clock, the old number.
pub const MSR_KVM_WALL_CLOCK: u32 = 0x11;
/// A vCPU's kvmclock, the old number.
pub const MSR_KVM_SYSTEM_TIME: u32 = 0x12;
/// The first MSR of KVM's own range.
pub const MSR_KVM_FIRST: u32 = 0x4b56_4d00;
/// The last MSR that is reserved for KVM.
pub const MSR_KVM_LAST: u32 = 0x4b56_4dff;
/// Wall clock: GPA of a `pvclock_wall_clock`, aligned to 4.
pub const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// A vCPU's kvmclock: GPA of a `pvclock_vcpu_time_info`, bit 0 enables.
pub const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// Asynchronous page faults: GPA aligned to 64, flags below.
pub const MSR_KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
/// Steal time: GPA aligned to 64, bit 0 enables.
pub const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// EOI without an exit: GPA aligned to 4, bit 0 enables.
pub const MSR_KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
/// Bit 0: the host may poll when the guest halts.
pub const MSR_KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
/// Bits 7:0: the vector of "page ready" interrupts.
pub const MSR_KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
/// Bit 0: the guest has handled a "page ready" event.
pub const MSR_KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
/// Bit 0 ([`KVM_MIGRATION_READY`]): the guest may be migrated. KVM has no handler; the VMM handles it through
/// an MSR filter.
pub const MSR_KVM_MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// The enable bit of the MSRs that hold an address.
pub const KVM_MSR_ENABLED: u64 = 1;
/// The bit of [`MSR_KVM_MIGRATION_CONTROL`].
pub const KVM_MIGRATION_READY: u64 = 1;

/// Check for pending interrupts. No arguments, returns 0.
pub const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;
/// Batched MMU operations. Removed from KVM, which returns `-KVM_ENOSYS`.
pub const KVM_HC_MMU_OP: u64 = 2;
/// Wake a halted vCPU: argument 0 is flags (0), argument 1 its APIC ID. Needs [`KVM_FEATURE_PV_UNHALT`].
pub const KVM_HC_KICK_CPU: u64 = 5;
/// Read TSC and wall clock together: argument 0 is the GPA of a [`kvm_clock_pairing`], argument 1 the
/// clock, [`KVM_CLOCK_PAIRING_WALLCLOCK`]. Other clocks return `-KVM_EOPNOTSUPP`.
pub const KVM_HC_CLOCK_PAIRING: u64 = 9;
/// Send an IPI: arguments 0 and 1 are a bitmap of APIC IDs (64 bits each, 32 from 32-bit callers), argument 2 is the
/// lowest APIC ID, argument 3 the ICR. Returns the number of vCPUs that got it. Needs [`KVM_FEATURE_PV_SEND_IPI`].
pub const KVM_HC_SEND_IPI: u64 = 10;
/// Yield to a preempted vCPU: argument 0 is its APIC ID. Needs [`KVM_FEATURE_PV_SCHED_YIELD`].
pub const KVM_HC_SCHED_YIELD: u64 = 11;
/// Convert pages between private and shared: GPA (page aligned), pages, attributes. Needs
/// [`KVM_FEATURE_HC_MAP_GPA_RANGE`].
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;

/// The only clock of [`KVM_HC_CLOCK_PAIRING`].
pub const KVM_CLOCK_PAIRING_WALLCLOCK: u64 = 0;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`]: pages of 4 KiB.
pub const KVM_MAP_GPA_RANGE_PAGE_SZ_4K: u64 = 0;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`]: pages of 2 MiB.
pub const KVM_MAP_GPA_RANGE_PAGE_SZ_2M: u64 = 1;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`]: pages of 1 GiB.
pub const KVM_MAP_GPA_RANGE_PAGE_SZ_1G: u64 = 1 << 1;
/// Attribute of [`KVM_HC_MAP_GPA_RANGE`]: the pages become private.
pub const KVM_MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;

/// The feature bit (of EAX) that announces a hypercall, if one does.
///
/// ```
/// use para_abi::kvm;
///
/// assert_eq!(kvm::feature_of_call(kvm::KVM_HC_SEND_IPI), Some(kvm::KVM_FEATURE_PV_SEND_IPI));
/// assert_eq!(kvm::feature_of_call(kvm::KVM_HC_VAPIC_POLL_IRQ), None);
/// ```
pub const fn feature_of_call(nr: u64) -> Option<u32> {
    match nr {
        KVM_HC_KICK_CPU => Some(KVM_FEATURE_PV_UNHALT),
        KVM_HC_SEND_IPI => Some(KVM_FEATURE_PV_SEND_IPI),
        KVM_HC_SCHED_YIELD => Some(KVM_FEATURE_PV_SCHED_YIELD),
        KVM_HC_MAP_GPA_RANGE => Some(KVM_FEATURE_HC_MAP_GPA_RANGE),
        _ => None,
    }
}

/// What [`KVM_HC_CLOCK_PAIRING`] writes to guest memory: 64 bytes, little-endian.
#[allow(non_camel_case_types, reason = "the ABI's name")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvm_clock_pairing {
    /// Seconds of the host's wall clock.
    pub sec: i64,
    /// Nanoseconds of the host's wall clock, below 10^9.
    pub nsec: i64,
    /// The guest's TSC at the same time.
    pub tsc: u64,
    /// 0.
    pub flags: u32,
    /// 0.
    pub pad: [u32; 9],
}

/// The size of a [`kvm_clock_pairing`] in bytes.
pub const KVM_CLOCK_PAIRING_SIZE: usize = 64;

const _: () = assert!(core::mem::size_of::<kvm_clock_pairing>() == KVM_CLOCK_PAIRING_SIZE);

impl kvm_clock_pairing {
    /// The bytes in guest memory.
    pub fn to_bytes(&self) -> [u8; KVM_CLOCK_PAIRING_SIZE] {
        let mut bytes = [0; KVM_CLOCK_PAIRING_SIZE];
        bytes[..8].copy_from_slice(&self.sec.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.nsec.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tsc.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.flags.to_le_bytes());
        for (slot, word) in bytes[28..].chunks_exact_mut(4).zip(self.pad) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_pairing_is_little_endian_in_order() {
        let mut pad = [0; 9];
        pad[8] = 0x0504_0302;
        let bytes = kvm_clock_pairing {
            sec: 1,
            nsec: -2,
            tsc: 3,
            flags: 4,
            pad,
        }
        .to_bytes();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], (-2_i64).to_le_bytes());
        assert_eq!((bytes[16], bytes[24], &bytes[28..60]), (3, 4, &[0; 32][..]));
        assert_eq!(bytes[60..], [2, 3, 4, 5]);
    }

    #[test]
    fn features_by_hypercall_are_those_of_the_calls() {
        let mask = (0..=12)
            .filter_map(feature_of_call)
            .fold(0, |mask, bit| mask | 1 << bit);
        assert_eq!(mask, KVM_FEATURES_BY_HYPERCALL);
        assert_eq!(mask, 0x1_2880);
    }
}
