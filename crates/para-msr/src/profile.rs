// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allow-lists of MSRs, for filters that deny by default.
//!
//! [`LINUX`] has the MSRs that a distribution's 64-bit kernel (modelled on Debian's 6.1 and 6.12) accesses
//! under KVM, on Intel and AMD processors. An allowed MSR need not exist: KVM decides that as it does
//! without a filter, by CPUID and its own features, and Linux probes most of these with an exception
//! handler. The list keeps a guest away from hundreds of other MSRs, many of which KVM has code for.
//!
//! ```
//! use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
//! use para_msr::profile;
//!
//! let filter = MsrFilterBuilder::new(FilterDefault::Deny)
//!     .allow_profile(profile::LINUX)
//!     .deny(0x8b, Access::Both) // user space handles it; deny beats the profile
//!     .compile()?;
//! assert!(filter.allows_read(0x10) && filter.allows_write(0xc000_0080));
//! assert!(!filter.allows_write(0x10a)); // IA32_ARCH_CAPABILITIES is read-only
//! assert!(!filter.allows_read(0x8b) && !filter.allows_read(0x4000_0000));
//! assert!(filter.ranges().len() <= 8); // of 16, which leaves room for a VMM's own
//! # Ok::<(), para_msr::filter::FilterError>(())
//! ```
//!
//! Sources: "SDM 2-2" is the Intel SDM, volume 4, table 2-2 (architectural MSRs), "SDM" another table
//! there; "APM" the AMD APM, volume 2, appendix A; "PPR" AMD's Processor Programming References; "msr.rst"
//! the kernel's `Documentation/virt/kvm/x86/msr.rst`; "TLFS" Hyper-V's Top Level Functional Specification,
//! appendix on synthetic MSRs.

use crate::MsrRange;
use crate::filter::Access::{self, Both, Read, Write};
use crate::filter::MsrFilterBuilder;

/// The vendors whose processors have an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cpu {
    /// All vendors, or a paravirtual MSR.
    Any,
    /// Intel and compatible.
    Intel,
    /// AMD and compatible.
    Amd,
}

/// MSRs that a guest may access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The MSRs.
    pub range: MsrRange,
    /// The allowed directions.
    pub access: Access,
    /// The vendors that have them.
    pub cpu: Cpu,
    /// Their names.
    pub name: &'static str,
    /// Where they are defined; the [module](self) lists the sources.
    pub source: &'static str,
    /// What a guest uses them for.
    pub purpose: &'static str,
}

impl MsrFilterBuilder {
    /// Allows the MSRs of a [`profile`](self).
    #[must_use]
    pub fn allow_profile(self, profile: &[Entry]) -> Self {
        profile.iter().fold(self, |builder, entry| {
            builder.allow(entry.range, entry.access)
        })
    }
}

/// One line of a table.
const fn e(
    first: u32,
    last: u32,
    access: Access,
    cpu: Cpu,
    name: &'static str,
    source: &'static str,
    purpose: &'static str,
) -> Entry {
    let range = match MsrRange::new(first, last) {
        Ok(range) => range,
        // Can't happen at run time: this is evaluated at compile time.
        Err(_) => panic!("a range of a profile is inverted"),
    };
    Entry {
        range,
        access,
        cpu,
        name,
        source,
        purpose,
    }
}

/// The MSRs that a 64-bit Linux kernel accesses under KVM, in ascending order.
#[rustfmt::skip]
pub const LINUX: &[Entry] = &[
    e(0x10, 0x10, Both, Cpu::Any, "IA32_TIME_STAMP_COUNTER", "SDM 2-2, APM", "TSC"),
    e(0x11, 0x12, Both, Cpu::Any, "MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME", "msr.rst", "kvmclock, the old numbers"),
    e(0x17, 0x17, Read, Cpu::Intel, "IA32_PLATFORM_ID", "SDM 2-2", "microcode driver"),
    e(0x1b, 0x1b, Both, Cpu::Any, "IA32_APIC_BASE", "SDM 2-2, APM", "APIC set-up"),
    e(0x33, 0x33, Both, Cpu::Intel, "MSR_TEST_CTRL", "SDM", "split lock detection"),
    e(0x34, 0x34, Read, Cpu::Intel, "MSR_SMI_COUNT", "SDM", "perf probes it"),
    e(0x3a, 0x3a, Both, Cpu::Intel, "IA32_FEATURE_CONTROL", "SDM 2-2", "nested VMX; Linux locks it where firmware has not"),
    e(0x3b, 0x3b, Both, Cpu::Any, "IA32_TSC_ADJUST", "SDM 2-2", "TSC synchronization"),
    e(0x48, 0x48, Both, Cpu::Any, "IA32_SPEC_CTRL", "SDM 2-2, APM", "IBRS, STIBP, SSBD"),
    e(0x49, 0x49, Write, Cpu::Any, "IA32_PRED_CMD", "SDM 2-2, APM", "IBPB"),
    e(0x4e, 0x4f, Read, Cpu::Intel, "MSR_PPIN_CTL, MSR_PPIN", "SDM", "probed on servers"),
    e(0x79, 0x79, Write, Cpu::Intel, "IA32_BIOS_UPDT_TRIG", "SDM 2-2", "microcode driver; KVM drops it"),
    e(0x8b, 0x8b, Both, Cpu::Any, "IA32_BIOS_SIGN_ID, PATCH_LEVEL", "SDM 2-2, APM", "microcode revision; Intel's is read after writing 0"),
    e(0x8c, 0x8f, Both, Cpu::Intel, "IA32_SGXLEPUBKEYHASH0 to 3", "SDM 2-2", "SGX launch control"),
    e(0xc1, 0xc8, Both, Cpu::Intel, "IA32_PMC0 to 7", "SDM 2-2", "perf counters"),
    e(0xcd, 0xcd, Read, Cpu::Intel, "MSR_FSB_FREQ", "SDM", "TSC calibration of Atoms"),
    e(0xce, 0xce, Read, Cpu::Intel, "MSR_PLATFORM_INFO", "SDM", "CPUID faulting, TSC ratio"),
    e(0xcf, 0xcf, Read, Cpu::Intel, "IA32_CORE_CAPABILITIES", "SDM 2-2", "split lock detection"),
    e(0xe1, 0xe1, Both, Cpu::Intel, "IA32_UMWAIT_CONTROL", "SDM 2-2", "limits of UMWAIT"),
    e(0xe2, 0xe2, Read, Cpu::Intel, "MSR_PKG_CST_CONFIG_CONTROL", "SDM", "intel_idle"),
    e(0xe7, 0xe8, Both, Cpu::Any, "IA32_MPERF, IA32_APERF", "SDM 2-2, APM", "frequency, where CPUID has it"),
    e(0xfe, 0xfe, Read, Cpu::Any, "IA32_MTRRCAP", "SDM 2-2, APM", "MTRRs"),
    e(0x10a, 0x10a, Read, Cpu::Any, "IA32_ARCH_CAPABILITIES", "SDM 2-2", "which mitigations are needed"),
    e(0x10b, 0x10b, Write, Cpu::Intel, "IA32_FLUSH_CMD", "SDM 2-2", "L1D flush"),
    e(0x10f, 0x10f, Both, Cpu::Intel, "MSR_TSX_FORCE_ABORT", "SDM", "TSX with perf"),
    e(0x122, 0x122, Both, Cpu::Intel, "IA32_TSX_CTRL", "SDM 2-2", "TSX off"),
    e(0x123, 0x123, Both, Cpu::Intel, "IA32_MCU_OPT_CTRL", "SDM 2-2", "SRBDS mitigation"),
    e(0x140, 0x140, Both, Cpu::Intel, "MISC_FEATURES_ENABLES", "SDM", "CPUID faulting"),
    e(0x174, 0x176, Both, Cpu::Any, "IA32_SYSENTER_CS, ESP, EIP", "SDM 2-2, APM", "32-bit system calls"),
    e(0x179, 0x179, Read, Cpu::Any, "IA32_MCG_CAP", "SDM 2-2, APM", "machine checks"),
    e(0x17a, 0x17b, Both, Cpu::Any, "IA32_MCG_STATUS, IA32_MCG_CTL", "SDM 2-2, APM", "machine checks"),
    e(0x17f, 0x17f, Both, Cpu::Intel, "MSR_ERROR_CONTROL", "SDM", "machine checks of servers"),
    e(0x186, 0x18d, Both, Cpu::Intel, "IA32_PERFEVTSEL0 to 7", "SDM 2-2", "perf counters"),
    e(0x198, 0x199, Both, Cpu::Intel, "IA32_PERF_STATUS, IA32_PERF_CTL", "SDM 2-2", "cpufreq probes them"),
    e(0x19b, 0x19c, Both, Cpu::Intel, "IA32_THERM_INTERRUPT, IA32_THERM_STATUS", "SDM 2-2", "thermal set-up, perf probes"),
    e(0x1a0, 0x1a0, Both, Cpu::Intel, "IA32_MISC_ENABLE", "SDM 2-2", "fast strings, CPUID limit"),
    e(0x1a6, 0x1a7, Both, Cpu::Intel, "MSR_OFFCORE_RSP_0, 1", "SDM", "perf probes them"),
    e(0x1ad, 0x1af, Read, Cpu::Intel, "MSR_TURBO_RATIO_LIMIT, 1, 2", "SDM", "frequency invariance"),
    e(0x1c4, 0x1c5, Both, Cpu::Intel, "IA32_XFD, IA32_XFD_ERR", "SDM 2-2", "AMX on demand"),
    e(0x1c8, 0x1c9, Both, Cpu::Intel, "MSR_LBR_SELECT, MSR_LASTBRANCH_TOS", "SDM", "perf branch stacks"),
    e(0x1d9, 0x1d9, Both, Cpu::Any, "IA32_DEBUGCTL", "SDM 2-2, APM", "single-step on branches"),
    e(0x1db, 0x1de, Both, Cpu::Any, "LASTBRANCHFROMIP to LASTINTTOIP", "SDM, APM", "the last branch"),
    e(0x1fc, 0x1fc, Both, Cpu::Intel, "MSR_POWER_CTL", "SDM", "intel_idle"),
    e(0x200, 0x20f, Both, Cpu::Any, "IA32_MTRR_PHYSBASE0 to PHYSMASK7", "SDM 2-2, APM", "MTRRs"),
    e(0x250, 0x250, Both, Cpu::Any, "IA32_MTRR_FIX64K_00000", "SDM 2-2, APM", "MTRRs"),
    e(0x258, 0x259, Both, Cpu::Any, "IA32_MTRR_FIX16K_80000, A0000", "SDM 2-2, APM", "MTRRs"),
    e(0x268, 0x26f, Both, Cpu::Any, "IA32_MTRR_FIX4K_C0000 to F8000", "SDM 2-2, APM", "MTRRs"),
    e(0x277, 0x277, Both, Cpu::Any, "IA32_PAT", "SDM 2-2, APM", "memory types of pages"),
    e(0x280, 0x29f, Both, Cpu::Intel, "IA32_MC0_CTL2 to MC31_CTL2", "SDM 2-2", "corrected machine check interrupts"),
    e(0x2ff, 0x2ff, Both, Cpu::Any, "IA32_MTRR_DEF_TYPE", "SDM 2-2, APM", "MTRRs"),
    e(0x309, 0x30c, Both, Cpu::Intel, "IA32_FIXED_CTR0 to 3", "SDM 2-2", "perf counters"),
    e(0x329, 0x329, Both, Cpu::Intel, "MSR_PERF_METRICS", "SDM", "perf top-down"),
    e(0x345, 0x345, Both, Cpu::Intel, "IA32_PERF_CAPABILITIES", "SDM 2-2", "perf; the hybrid quirk writes it"),
    e(0x38d, 0x392, Both, Cpu::Intel, "IA32_FIXED_CTR_CTRL to IA32_PERF_GLOBAL_INUSE", "SDM 2-2", "perf control"),
    e(0x3f1, 0x3f2, Both, Cpu::Intel, "IA32_PEBS_ENABLE, MSR_PEBS_DATA_CFG", "SDM 2-2", "perf precise events"),
    e(0x3f6, 0x3f7, Both, Cpu::Intel, "MSR_PEBS_LD_LAT, MSR_PEBS_FRONTEND", "SDM", "perf precise events"),
    e(0x400, 0x47f, Both, Cpu::Any, "IA32_MC0_CTL to MC31_MISC", "SDM 2-2, APM", "machine check banks"),
    e(0x480, 0x493, Read, Cpu::Intel, "IA32_VMX_BASIC to IA32_VMX_EXIT_CTLS2", "SDM 2-2", "nested VMX"),
    e(0x4c1, 0x4c8, Both, Cpu::Intel, "IA32_A_PMC0 to 7", "SDM 2-2", "perf counters at full width"),
    e(0x4d0, 0x4d0, Both, Cpu::Intel, "IA32_MCG_EXT_CTL", "SDM 2-2", "local machine checks"),
    e(0x560, 0x561, Both, Cpu::Intel, "IA32_RTIT_OUTPUT_BASE, MASK_PTRS", "SDM 2-2", "Processor Trace"),
    e(0x570, 0x572, Both, Cpu::Intel, "IA32_RTIT_CTL, STATUS, CR3_MATCH", "SDM 2-2", "Processor Trace"),
    e(0x580, 0x587, Both, Cpu::Intel, "IA32_RTIT_ADDR0_A to ADDR3_B", "SDM 2-2", "Processor Trace"),
    e(0x600, 0x600, Both, Cpu::Intel, "IA32_DS_AREA", "SDM 2-2", "perf precise events"),
    e(0x606, 0x606, Read, Cpu::Intel, "MSR_RAPL_POWER_UNIT", "SDM", "perf probes it"),
    e(0x611, 0x611, Read, Cpu::Intel, "MSR_PKG_ENERGY_STATUS", "SDM", "perf probes it"),
    e(0x619, 0x619, Read, Cpu::Intel, "MSR_DRAM_ENERGY_STATUS", "SDM", "perf probes it"),
    e(0x639, 0x639, Read, Cpu::Intel, "MSR_PP0_ENERGY_STATUS", "SDM", "perf probes it"),
    e(0x641, 0x641, Read, Cpu::Intel, "MSR_PP1_ENERGY_STATUS", "SDM", "perf probes it"),
    e(0x64d, 0x64e, Read, Cpu::Intel, "MSR_PLATFORM_ENERGY_STATUS, MSR_PPERF", "SDM", "perf probes them"),
    e(0x680, 0x69f, Both, Cpu::Intel, "MSR_LASTBRANCH_0 to 31_FROM_IP", "SDM", "perf branch stacks"),
    e(0x6a0, 0x6a0, Both, Cpu::Any, "IA32_U_CET", "SDM 2-2, APM", "shadow stacks"),
    e(0x6a2, 0x6a2, Both, Cpu::Any, "IA32_S_CET", "SDM 2-2, APM", "indirect branch tracking"),
    e(0x6a4, 0x6a8, Both, Cpu::Any, "IA32_PL0_SSP to IA32_INTERRUPT_SSP_TABLE_ADDR", "SDM 2-2, APM", "shadow stacks"),
    e(0x6c0, 0x6df, Both, Cpu::Intel, "MSR_LASTBRANCH_0 to 31_TO_IP", "SDM", "perf branch stacks"),
    e(0x6e0, 0x6e0, Both, Cpu::Any, "IA32_TSC_DEADLINE", "SDM 2-2", "timer"),
    e(0x6e1, 0x6e1, Both, Cpu::Intel, "IA32_PKRS", "SDM 2-2", "supervisor protection keys"),
    e(0x800, 0x8ff, Both, Cpu::Any, "x2APIC", "SDM 2-2, APM", "interrupts; KVM never filters these"),
    e(0xda0, 0xda0, Both, Cpu::Any, "IA32_XSS", "SDM 2-2, APM", "supervisor XSAVE components"),
    e(0xdc0, 0xddf, Both, Cpu::Intel, "MSR_LBR_INFO_0 to 31", "SDM", "perf branch stacks"),
    e(0x1200, 0x121f, Both, Cpu::Intel, "IA32_LBR_0 to 31_INFO", "SDM 2-2", "perf branch stacks"),
    e(0x14ce, 0x14cf, Both, Cpu::Intel, "IA32_LBR_CTL, IA32_LBR_DEPTH", "SDM 2-2", "perf branch stacks"),
    e(0x1500, 0x151f, Both, Cpu::Intel, "IA32_LBR_0 to 31_FROM_IP", "SDM 2-2", "perf branch stacks"),
    e(0x1600, 0x161f, Both, Cpu::Intel, "IA32_LBR_0 to 31_TO_IP", "SDM 2-2", "perf branch stacks"),
    e(0x4b56_4d00, 0x4b56_4d08, Both, Cpu::Any, "MSR_KVM_WALL_CLOCK_NEW to MSR_KVM_MIGRATION_CONTROL", "msr.rst", "KVM's paravirtual features"),
    e(0xc000_0080, 0xc000_0084, Both, Cpu::Any, "EFER, STAR, LSTAR, CSTAR, FMASK", "SDM 2-2, APM", "long mode, system calls"),
    e(0xc000_00e7, 0xc000_00e9, Read, Cpu::Amd, "MPERF_RO, APERF_RO, IRPERF", "APM, PPR", "perf probes them"),
    e(0xc000_0100, 0xc000_0103, Both, Cpu::Any, "FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX", "SDM 2-2, APM", "per-CPU data, threads, getcpu"),
    e(0xc000_0104, 0xc000_0104, Both, Cpu::Amd, "TSC_RATIO", "APM", "nested SVM"),
    e(0xc000_010e, 0xc000_010f, Both, Cpu::Amd, "LBR_SELECT, DBG_EXTN_CFG", "APM", "perf branch stacks"),
    e(0xc000_0300, 0xc000_0303, Both, Cpu::Amd, "PERF_CNTR_GLOBAL_STATUS to STATUS_SET", "APM, PPR", "perf control, version 2"),
    e(0xc000_0410, 0xc000_0410, Both, Cpu::Amd, "MCA_INTR_CFG", "PPR", "machine check interrupts"),
    e(0xc001_0000, 0xc001_0007, Both, Cpu::Amd, "PERFEVTSEL0 to 3, PERFCTR0 to 3", "APM", "perf counters"),
    e(0xc001_0010, 0xc001_0010, Both, Cpu::Amd, "SYSCFG", "APM", "memory encryption, MTRR extensions"),
    e(0xc001_0015, 0xc001_0015, Both, Cpu::Amd, "HWCR", "APM", "machine check writes, IRPERF"),
    e(0xc001_001a, 0xc001_001b, Read, Cpu::Amd, "TOP_MEM, CLK_CTL", "APM", "MTRR clean-up, K7 quirk"),
    e(0xc001_001d, 0xc001_001d, Read, Cpu::Amd, "TOP_MEM2", "APM", "MTRR clean-up"),
    e(0xc001_001f, 0xc001_001f, Both, Cpu::Amd, "NB_CFG", "PPR", "extended APIC IDs"),
    e(0xc001_0020, 0xc001_0020, Write, Cpu::Amd, "PATCH_LOADER", "APM", "microcode driver; KVM drops it"),
    e(0xc001_0055, 0xc001_0055, Read, Cpu::Amd, "INT_PENDING_MSG", "PPR", "C1E erratum"),
    e(0xc001_0058, 0xc001_0058, Both, Cpu::Amd, "MMIO_CFG_BASE_ADDR", "PPR", "PCI configuration"),
    e(0xc001_0114, 0xc001_0114, Both, Cpu::Amd, "VM_CR", "APM", "nested SVM"),
    e(0xc001_0117, 0xc001_0117, Both, Cpu::Amd, "VM_HSAVE_PA", "APM", "nested SVM"),
    e(0xc001_011f, 0xc001_011f, Both, Cpu::Amd, "VIRT_SPEC_CTRL", "APM", "SSBD"),
    e(0xc001_0130, 0xc001_0131, Both, Cpu::Amd, "GHCB, SEV_STATUS", "APM", "probed by encrypted guests"),
    e(0xc001_0140, 0xc001_0141, Both, Cpu::Amd, "OSVW_ID_LENGTH, OSVW_STATUS", "APM", "which errata hold"),
    e(0xc001_0200, 0xc001_020b, Both, Cpu::Amd, "PERF_CTL0 to 5, PERF_CTR0 to 5", "APM", "perf counters"),
    e(0xc001_0280, 0xc001_0280, Read, Cpu::Amd, "PTSC", "PPR", "perf probes it"),
    e(0xc001_0299, 0xc001_029b, Read, Cpu::Amd, "RAPL_POWER_UNIT, CORE and PKG_ENERGY_STATUS", "PPR", "perf probes them"),
    e(0xc001_02f0, 0xc001_02f1, Read, Cpu::Amd, "PPIN_CTL, PPIN", "PPR", "probed on servers"),
    e(0xc001_0300, 0xc001_031f, Both, Cpu::Amd, "SAMP_BR_FROM, TO 0 to 15", "APM", "perf branch stacks"),
    e(0xc001_1004, 0xc001_1005, Both, Cpu::Amd, "CPUID_FEATURES, CPUID_EXT_FEATURES", "PPR", "RDRAND and topology of families 15h and 16h"),
    e(0xc001_1019, 0xc001_101b, Both, Cpu::Amd, "DR1 to DR3_ADDR_MASK", "APM", "wide breakpoints"),
    e(0xc001_1020, 0xc001_1023, Both, Cpu::Amd, "LS_CFG, IC_CFG, DC_CFG, TW_CFG", "PPR", "SSBD, errata"),
    e(0xc001_1027, 0xc001_1027, Both, Cpu::Amd, "DR0_ADDR_MASK", "APM", "wide breakpoints"),
    e(0xc001_1028, 0xc001_102a, Both, Cpu::Amd, "FP_CFG, DE_CFG, BU_CFG2", "PPR", "LFENCE, Zenbleed, errata"),
    e(0xc001_102c, 0xc001_102e, Both, Cpu::Amd, "EX_CFG, LS_CFG2, BP_CFG", "PPR", "errata"),
    e(0xc001_10e3, 0xc001_10e3, Both, Cpu::Amd, "DE_CFG2", "PPR", "Zen 2 prediction quirk"),
];

/// Hyper-V's synthetic MSRs, in addition to [`LINUX`] for a VM whose CPUID offers them. In ascending order.
#[rustfmt::skip]
pub const HYPERV: &[Entry] = &[
    e(0x4000_0000, 0x4000_0003, Both, Cpu::Any, "GUEST_OS_ID, HYPERCALL, VP_INDEX, RESET", "TLFS", "identification, hypercall page"),
    e(0x4000_0010, 0x4000_0010, Read, Cpu::Any, "VP_RUNTIME", "TLFS", "time"),
    e(0x4000_0020, 0x4000_0023, Both, Cpu::Any, "TIME_REF_COUNT, REFERENCE_TSC, TSC and APIC_FREQUENCY", "TLFS", "time"),
    e(0x4000_0070, 0x4000_0073, Both, Cpu::Any, "EOI, ICR, TPR, VP_ASSIST_PAGE", "TLFS", "interrupts"),
    e(0x4000_0080, 0x4000_0084, Both, Cpu::Any, "SCONTROL to EOM", "TLFS", "synthetic interrupts"),
    e(0x4000_0090, 0x4000_009f, Both, Cpu::Any, "SINT0 to 15", "TLFS", "synthetic interrupts"),
    e(0x4000_00b0, 0x4000_00b7, Both, Cpu::Any, "STIMER0_CONFIG to STIMER3_COUNT", "TLFS", "synthetic timers"),
    e(0x4000_00f0, 0x4000_00f0, Read, Cpu::Any, "GUEST_IDLE", "TLFS", "idle"),
    e(0x4000_0100, 0x4000_0105, Both, Cpu::Any, "CRASH_P0 to P4, CRASH_CTL", "TLFS", "crash report"),
    e(0x4000_0106, 0x4000_0108, Both, Cpu::Any, "REENLIGHTENMENT_CONTROL to TSC_EMULATION_STATUS", "TLFS", "moved guests"),
    e(0x4000_0118, 0x4000_0118, Both, Cpu::Any, "TSC_INVARIANT_CONTROL", "TLFS", "time"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::FilterDefault;

    #[test]
    fn profiles_ascend_without_overlap() {
        for profile in [LINUX, HYPERV] {
            for pair in profile.windows(2) {
                assert!(
                    pair[0].range.last() < pair[1].range.first(),
                    "{}",
                    pair[1].name
                );
            }
        }
    }

    #[test]
    fn both_profiles_leave_room_for_others() {
        let filter = MsrFilterBuilder::new(FilterDefault::Deny)
            .allow_profile(LINUX)
            .allow_profile(HYPERV)
            .compile()
            .unwrap();
        assert!(filter.ranges().len() <= 10, "{}", filter.ranges().len());
        assert_eq!(filter.uncovered(), []);
        for entry in LINUX.iter().chain(HYPERV) {
            for index in [entry.range.first(), entry.range.last()] {
                assert!(
                    !entry.access.reads() || filter.allows_read(index),
                    "{}",
                    entry.name
                );
                assert!(
                    !entry.access.writes() || filter.allows_write(index),
                    "{}",
                    entry.name
                );
            }
        }
        // Not in the lists: SMM, IBS, unassigned numbers.
        for index in [
            0x9b,
            0x9e,
            0xc001_1030,
            0xc001_0111,
            0x4000_0200,
            0x474f_4f00,
        ] {
            assert!(
                !filter.allows_read(index) && !filter.allows_write(index),
                "{index:#x}"
            );
        }
    }
}
