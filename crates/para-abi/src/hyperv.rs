// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a Hyper-V hypercall page needs, and the synthetic MSRs around it.
//!
//! A guest writes its identity to [`HV_X64_MSR_GUEST_OS_ID`], then a page's address with bit 0 set to
//! [`HV_X64_MSR_HYPERCALL`], and calls the page's start with its own registers: RCX is the call's code and
//! flags, RDX and R8 are the addresses of input and output (32-bit: EDX:EAX, EBX:ECX, EDI:ESI). KVM writes
//! `vmcall|vmmcall; ret` to the page, preceded by `or eax, 0x80000000` if it also intercepts Xen's calls.
//! Source: Microsoft's Hypervisor Top Level Functional Specification (TLFS), chapters 2, 3 and 12.

/// Leaf of the signature. EAX is the highest leaf.
pub const HV_CPUID_VENDOR_AND_MAX_FUNCTIONS: u32 = 0x4000_0000;
/// Leaf whose EAX is [`HV_INTERFACE`].
pub const HV_CPUID_INTERFACE: u32 = 0x4000_0001;
/// Leaf of the version.
pub const HV_CPUID_VERSION: u32 = 0x4000_0002;
/// Leaf of the privileges (EAX, EBX) and features (EDX).
pub const HV_CPUID_FEATURES: u32 = 0x4000_0003;
/// Leaf of the recommendations.
pub const HV_CPUID_ENLIGHTMENT_INFO: u32 = 0x4000_0004;
/// Leaf of the limits.
pub const HV_CPUID_IMPLEMENT_LIMITS: u32 = 0x4000_0005;
/// The signature in EBX, ECX and EDX.
pub const HV_SIGNATURE: &[u8; 12] = b"Microsoft Hv";
/// "Hv#1": the interface that guests require.
pub const HV_INTERFACE: u32 = u32::from_le_bytes(*b"Hv#1");
/// Bit mask of [`HV_CPUID_FEATURES`]' EAX: the guest has [`HV_X64_MSR_GUEST_OS_ID`] and [`HV_X64_MSR_HYPERCALL`].
pub const HV_MSR_HYPERCALL_AVAILABLE: u32 = 1 << 5;
/// Bit mask of [`HV_CPUID_FEATURES`]' EDX: the guest has the crash MSRs.
pub const HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE: u32 = 1 << 10;

/// The guest's identity. While it is 0, writes to [`HV_X64_MSR_HYPERCALL`] are ignored.
pub const HV_X64_MSR_GUEST_OS_ID: u32 = 0x4000_0000;
/// The hypercall page: bit 0 enables, bit 1 locks, bits 63:12 are the page's address.
pub const HV_X64_MSR_HYPERCALL: u32 = 0x4000_0001;
/// The vCPU's index; read-only.
pub const HV_X64_MSR_VP_INDEX: u32 = 0x4000_0002;
/// Bit 0 resets the VM.
pub const HV_X64_MSR_RESET: u32 = 0x4000_0003;
/// The vCPU's run time in 100 ns; read-only.
pub const HV_X64_MSR_VP_RUNTIME: u32 = 0x4000_0010;
/// The VM's time in 100 ns; read-only.
pub const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
/// The page of the reference TSC: bit 0 enables.
pub const HV_X64_MSR_REFERENCE_TSC: u32 = 0x4000_0021;
/// TSC frequency in Hz; read-only.
pub const HV_X64_MSR_TSC_FREQUENCY: u32 = 0x4000_0022;
/// APIC timer frequency in Hz; read-only.
pub const HV_X64_MSR_APIC_FREQUENCY: u32 = 0x4000_0023;
/// The APIC's EOI; write-only.
pub const HV_X64_MSR_EOI: u32 = 0x4000_0070;
/// The APIC's ICR.
pub const HV_X64_MSR_ICR: u32 = 0x4000_0071;
/// The APIC's TPR.
pub const HV_X64_MSR_TPR: u32 = 0x4000_0072;
/// The vCPU's assist page: bit 0 enables.
pub const HV_X64_MSR_VP_ASSIST_PAGE: u32 = 0x4000_0073;
/// SynIC control.
pub const HV_X64_MSR_SCONTROL: u32 = 0x4000_0080;
/// SynIC version; read-only.
pub const HV_X64_MSR_SVERSION: u32 = 0x4000_0081;
/// SynIC event flags page.
pub const HV_X64_MSR_SIEFP: u32 = 0x4000_0082;
/// SynIC message page.
pub const HV_X64_MSR_SIMP: u32 = 0x4000_0083;
/// SynIC end of message.
pub const HV_X64_MSR_EOM: u32 = 0x4000_0084;
/// The first of 16 SynIC interrupt sources.
pub const HV_X64_MSR_SINT0: u32 = 0x4000_0090;
/// The last of 16 SynIC interrupt sources.
pub const HV_X64_MSR_SINT15: u32 = 0x4000_009f;
/// The first of four synthetic timers: configuration, then count.
pub const HV_X64_MSR_STIMER0_CONFIG: u32 = 0x4000_00b0;
/// The last of the synthetic timers' MSRs.
pub const HV_X64_MSR_STIMER3_COUNT: u32 = 0x4000_00b7;
/// A read halts the vCPU until an interrupt.
pub const HV_X64_MSR_GUEST_IDLE: u32 = 0x4000_00f0;
/// Synthetic debugger control.
pub const HV_X64_MSR_SYNDBG_CONTROL: u32 = 0x4000_00f1;
/// Synthetic debugger status.
pub const HV_X64_MSR_SYNDBG_STATUS: u32 = 0x4000_00f2;
/// Synthetic debugger send buffer.
pub const HV_X64_MSR_SYNDBG_SEND_BUFFER: u32 = 0x4000_00f3;
/// Synthetic debugger receive buffer.
pub const HV_X64_MSR_SYNDBG_RECV_BUFFER: u32 = 0x4000_00f4;
/// Synthetic debugger pending flag page.
pub const HV_X64_MSR_SYNDBG_PENDING_BUFFER: u32 = 0x4000_00f5;
/// Synthetic debugger options.
pub const HV_X64_MSR_SYNDBG_OPTIONS: u32 = 0x4000_00ff;
/// The first of five crash parameters.
pub const HV_X64_MSR_CRASH_P0: u32 = 0x4000_0100;
/// The second crash parameter.
pub const HV_X64_MSR_CRASH_P1: u32 = 0x4000_0101;
/// The third crash parameter.
pub const HV_X64_MSR_CRASH_P2: u32 = 0x4000_0102;
/// The fourth crash parameter.
pub const HV_X64_MSR_CRASH_P3: u32 = 0x4000_0103;
/// The last crash parameter.
pub const HV_X64_MSR_CRASH_P4: u32 = 0x4000_0104;
/// Crash control: the guest writes [`HV_CRASH_CTL_CRASH_NOTIFY`] when it has crashed.
pub const HV_X64_MSR_CRASH_CTL: u32 = 0x4000_0105;
/// Controls whether the guest is told of a new TSC frequency.
pub const HV_X64_MSR_REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
/// Controls whether the TSC is emulated after a migration.
pub const HV_X64_MSR_TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
/// Whether the TSC is being emulated.
pub const HV_X64_MSR_TSC_EMULATION_STATUS: u32 = 0x4000_0108;
/// Bit 0 shows the guest an invariant TSC.
pub const HV_X64_MSR_TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// Bit of [`HV_X64_MSR_HYPERCALL`]: the page is enabled.
pub const HV_X64_MSR_HYPERCALL_ENABLE: u64 = 1;
/// Bit of [`HV_X64_MSR_HYPERCALL`]: the MSR can't change until a reset.
pub const HV_X64_MSR_HYPERCALL_LOCKED: u64 = 1 << 1;
/// The bits of [`HV_X64_MSR_HYPERCALL`] that are the page's guest-physical address.
pub const HV_X64_MSR_HYPERCALL_PAGE_ADDRESS_MASK: u64 = !0xfff;
/// Bit of [`HV_X64_MSR_CRASH_CTL`]: the parameters describe a message in memory.
pub const HV_CRASH_CTL_CRASH_NOTIFY_MSG: u64 = 1 << 62;
/// Bit of [`HV_X64_MSR_CRASH_CTL`]: the guest has crashed.
pub const HV_CRASH_CTL_CRASH_NOTIFY: u64 = 1 << 63;

/// The bits of a call's input value that are its code.
pub const HV_HYPERCALL_CODE_MASK: u64 = 0xffff;
/// Bit of a call's input value: the arguments are in registers.
pub const HV_HYPERCALL_FAST: u64 = 1 << 16;
/// Code: post a message to a port. KVM may hand it to the VMM.
pub const HVCALL_POST_MESSAGE: u64 = 0x5c;
/// Code: signal an event. KVM may hand it to the VMM.
pub const HVCALL_SIGNAL_EVENT: u64 = 0x5d;
/// Code: query the extended calls. The first of the range that KVM may hand to the VMM.
pub const HV_EXT_CALL_QUERY_CAPABILITIES: u64 = 0x8001;
/// Result: success.
pub const HV_STATUS_SUCCESS: u64 = 0;
/// Result: the code is unknown.
pub const HV_STATUS_INVALID_HYPERCALL_CODE: u64 = 2;

/// The address of the page that a value of [`HV_X64_MSR_HYPERCALL`] enables, `None` if it disables the page.
///
/// ```
/// use para_abi::hyperv;
///
/// assert_eq!(hyperv::hypercall_page(0x1_2345_6001), Some(0x1_2345_6000));
/// assert_eq!(hyperv::hypercall_page(0x1_2345_6000), None);
/// ```
pub const fn hypercall_page(value: u64) -> Option<u64> {
    if value & HV_X64_MSR_HYPERCALL_ENABLE == 0 {
        return None;
    }
    Some(value & HV_X64_MSR_HYPERCALL_PAGE_ADDRESS_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_bits_63_to_12() {
        assert_eq!(hypercall_page(u64::MAX), Some(0xffff_ffff_ffff_f000));
        assert_eq!(hypercall_page(0xfff), Some(0));
        assert_eq!(hypercall_page(HV_X64_MSR_HYPERCALL_LOCKED), None);
    }

    #[test]
    fn the_interface_is_that_of_the_tlfs() {
        assert_eq!(HV_INTERFACE, 0x3123_7648);
    }

    #[test]
    fn ranges_have_the_tlfs_lengths() {
        assert_eq!(HV_X64_MSR_SINT15 - HV_X64_MSR_SINT0, 15);
        assert_eq!(HV_X64_MSR_STIMER3_COUNT - HV_X64_MSR_STIMER0_CONFIG, 7);
        assert_eq!(HV_X64_MSR_CRASH_CTL - HV_X64_MSR_CRASH_P0, 5);
    }
}
