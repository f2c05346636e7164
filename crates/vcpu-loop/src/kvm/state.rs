// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's state, and the order in which it is saved and restored.

use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};

#[cfg(feature = "serde")]
use super::hex;
use super::tsc::{self, MSR_TSC, TscState};
use super::{Error, KvmHost, Result, call, cpuid, nested};
use crate::sys::calls;

/// How many MSRs KVM accepts in a call: fewer than its `MAX_IO_MSRS`, which is `KVM_MAX_MSR_ENTRIES`.
const MSRS_PER_CALL: usize = KVM_MAX_MSR_ENTRIES - 1;

/// `IA32_FEATURE_CONTROL` (Intel SDM, volume 4, table 2-2).
const MSR_FEATURE_CONTROL: u32 = 0x3a;

/// `IA32_VMX_BASIC` to `IA32_VMX_VMFUNC`, VMX's capabilities (Intel SDM, volume 4, table 2-2).
const MSR_VMX_CAPABILITIES: RangeInclusive<u32> = 0x480..=0x491;

/// `IA32_TSC_DEADLINE` (Intel SDM, volume 4, table 2-2).
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Maximum MSRs in a saved state, about ten times as many as KVM knows.
const MAX_MSRS: usize = 4096;

/// What `KVM_GET_SREGS2` returns in addition to `KVM_GET_SREGS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sregs2Extra {
    /// Bit 0: `pdptrs` is valid.
    pub flags: u64,
    /// The page directory pointers of PAE paging, which may differ from those in memory.
    pub pdptrs: [u64; 4],
}

/// The state of a KVM x86 vCPU, plain data in KVM's own structures.
///
/// A state from a file is not trusted: KVM checks it during the restore. In JSON, KVM's structures are hexadecimal digits
/// (`hex`); the lists of bytes of earlier versions are read, too.
///
/// Machine check banks and Hyper-V's `SINTx` are not saved by default, because KVM doesn't list their MSRs. Pass
/// [`KvmHost::with_msrs`] a list to add them. This crate can't save:
///
/// - a Xen guest's attributes (`KVM_XEN_VCPU_GET_ATTR`: shared pages, run state, timer, upcall vector, vCPU id);
/// - the shadow stack pointer SSP (`KVM_REG_GUEST_SSP`, Linux 6.18), so don't give guests shadow stacks. CET's MSRs
///   are saved if KVM lists them;
/// - encrypted registers (SEV-ES, TDX);
/// - what the VMM set up in KVM for this vCPU: capabilities, machine check, debugging, TPR reports.
///
/// The VMM saves the VM's own state and guest memory. It must restore them first, because KVM reads guest memory when
/// nested state and MSRs are set.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct VcpuState {
    /// CPUID as the guest sees it, up to 256 entries.
    #[cfg_attr(feature = "serde", serde(with = "hex::list"))]
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// TSC frequency, if the host's TSC is stable.
    pub tsc_khz: Option<u32>,
    /// The TSC as an offset to the host's, if KVM has it (since Linux 5.16). Otherwise the TSC is only in the MSRs.
    #[cfg_attr(feature = "serde", serde(default))]
    pub tsc: Option<TscState>,
    /// Run state: runnable, halted, waiting for SIPI.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub mp_state: kvm_mp_state,
    /// General registers.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub regs: kvm_regs,
    /// Segment, control and descriptor table registers.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub sregs: kvm_sregs,
    /// The rest of these registers, if KVM has `KVM_CAP_SREGS2`.
    pub sregs2: Option<Sregs2Extra>,
    /// The XSAVE area as 32-bit words: at least 1,024, in the size of `KVM_CAP_XSAVE2`.
    #[cfg_attr(feature = "serde", serde(with = "hex::list"))]
    pub xsave: Vec<u32>,
    /// Extended control registers.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub debug_regs: kvm_debugregs,
    /// The local APIC, if KVM emulates it.
    #[cfg_attr(feature = "serde", serde(with = "hex::option", default))]
    pub lapic: Option<kvm_lapic_state>,
    /// Model-specific registers that this KVM could read.
    #[cfg_attr(feature = "serde", serde(with = "hex::list"))]
    pub msrs: Vec<kvm_msr_entry>,
    /// The state of nested virtualization, if this KVM has it; only a header if the guest doesn't use it.
    #[cfg_attr(feature = "serde", serde(with = "hex::short", default))]
    pub nested: Option<Box<KvmNestedStateBuffer>>,
    /// Pending and injected exceptions, interrupts, NMIs, SMIs.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub events: kvm_vcpu_events,
}

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuState")
            .field("rip", &self.regs.rip)
            .field("mp_state", &self.mp_state.mp_state)
            .field("cpuid", &self.cpuid.len())
            .field("msrs", &self.msrs.len())
            .finish_non_exhaustive()
    }
}

/// Reads the state. Nothing may be pending.
///
/// The order matters, because some reads change what others see:
///
/// - MP state first: reading it processes INIT and SIPI that are pending in the LAPIC, and they reset registers.
/// - General registers before the rest: reading them writes the emulator's copy back.
/// - The LAPIC before the MSRs: reading it updates the timer's count, and the TSC deadline belongs to the same timer.
/// - Events last: reading them turns queued NMIs and SMIs into pending ones, and no other read may follow.
///
/// The others (CPUID, TSC frequency, XSAVE, XCRs, debug registers, nested state) change nothing.
pub(super) fn save(fd: &VcpuFd, host: &KvmHost, xsave_size: usize) -> Result<VcpuState> {
    let mp_state = match fd.get_mp_state() {
        Ok(state) => state,
        Err(error) => return call("KVM_GET_MP_STATE", Err(error)),
    };
    let regs = call("KVM_GET_REGS", fd.get_regs())?;
    let sregs = call("KVM_GET_SREGS", fd.get_sregs())?;
    let sregs2 = match host.sregs2 {
        false => None,
        true => {
            let all = calls::get_sregs2(fd).map_err(|source| Error::Call {
                call: "KVM_GET_SREGS2",
                source,
            })?;
            Some(Sregs2Extra {
                flags: all.flags,
                pdptrs: all.pdptrs,
            })
        }
    };
    let xsave = save_xsave(fd, xsave_size)?;
    let xcrs = call("KVM_GET_XCRS", fd.get_xcrs())?;
    let debug_regs = call("KVM_GET_DEBUGREGS", fd.get_debug_regs())?;
    // EINVAL: this VM has no in-kernel LAPIC.
    let lapic = match fd.get_lapic() {
        Err(error) if error.errno() == libc::EINVAL => None,
        result => Some(call("KVM_GET_LAPIC", result)?),
    };
    let cpuid = cpuid::save(fd)?;
    let msrs = save_msrs(fd, &host.msrs)?;
    // An error means that the host's TSC is unstable; then there is no frequency to save.
    let tsc_khz = fd.get_tsc_khz().ok();
    let tsc = tsc::save(fd);
    let nested = host.nested.then(|| nested::save(fd)).transpose()?;
    let events = call("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?;
    Ok(VcpuState {
        cpuid,
        tsc_khz,
        tsc,
        mp_state,
        regs,
        sregs,
        sregs2,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        nested,
        events,
    })
}

/// The first part of a restore. It checks the sizes of a state, which KVM can't check, and sets CPUID and the TSC's
/// frequency: another host may not support them, and KVM accepts no other CPUID once the vCPU has run. If the state
/// doesn't fit, the vCPU is unchanged.
///
/// Returns the XSAVE area in KVM's structure.
pub(super) fn fit(fd: &VcpuFd, state: &VcpuState, xsave_size: usize) -> Result<Xsave> {
    if state.msrs.len() > MAX_MSRS {
        return Err(Error::Misfit { what: "MSRs" });
    }
    let cpuid = cpuid::fit(&state.cpuid)?;
    let xsave = xsave_for(xsave_size, &state.xsave)?;
    restore_constants(fd, state.tsc_khz, &cpuid)?;
    Ok(xsave)
}

/// Writes the rest of the state, which [`fit`] has not set, and returns the MSRs that KVM rejected.
///
/// The order matters, because KVM checks each part against earlier ones:
///
/// - `fit` set CPUID and the TSC's frequency first. KVM checks CR4, EFER, XCR0 and MSRs against CPUID. The TSC and its
///   deadline, which are MSRs, count at this frequency.
/// - Leave the nested guest and VMX operation first. Otherwise registers would be the nested guest's, and KVM would
///   refuse VMX capability MSRs (`EBUSY`) and a CR4 without VMXE.
/// - The TSC's offset before nested state, which adds a nested guest's offset to it.
/// - `IA32_FEATURE_CONTROL`, the VMX capability MSRs and special registers (EFER, CR4, APIC base) before nested
///   state: KVM requires that virtualization is on, and checks nested state against the capabilities.
/// - Special registers before the LAPIC, whose mode they set.
/// - XCRs before the XSAVE area, whose components they enable.
/// - General registers after special ones: writing them drops pending exceptions, as does nested state.
/// - The LAPIC before the MSRs: KVM ignores the TSC deadline unless the LAPIC's timer is in that mode.
/// - The TSC deadline after the other MSRs, because it counts from the restored TSC.
/// - MP state after special registers: setting them makes a boot CPU at its reset vector runnable.
/// - Events last: almost everything above may drop or raise one.
pub(super) fn restore(
    fd: &VcpuFd,
    host: &KvmHost,
    state: &VcpuState,
    xsave: &Xsave,
) -> Result<Vec<u32>> {
    let VcpuState {
        cpuid: _,
        tsc_khz: _,
        tsc,
        mp_state,
        regs,
        sregs,
        sregs2,
        xsave: _,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        nested,
        events,
    } = state;
    if host.nested {
        nested::leave(fd)?;
    }
    let has_tsc = tsc
        .as_ref()
        .map_or(Ok(false), |tsc| tsc::restore(fd, tsc))?;
    let mut skipped = restore_msrs(fd, &of_turn(msrs, MsrTurn::BeforeNested))?;
    restore_sregs(fd, host, sregs, *sregs2)?;
    if let Some(nested) = nested {
        call("KVM_SET_NESTED_STATE", fd.set_nested_state(nested))?;
    }
    call("KVM_SET_XCRS", fd.set_xcrs(xcrs))?;
    calls::set_xsave(fd, xsave).map_err(|source| Error::Call {
        call: "KVM_SET_XSAVE",
        source,
    })?;
    call("KVM_SET_REGS", fd.set_regs(regs))?;
    call("KVM_SET_DEBUGREGS", fd.set_debug_regs(debug_regs))?;
    if let Some(lapic) = lapic {
        call("KVM_SET_LAPIC", fd.set_lapic(lapic))?;
    }
    let mut rest = of_turn(msrs, MsrTurn::AfterLapic);
    rest.retain(|msr| !(has_tsc && msr.index == MSR_TSC));
    skipped.extend(restore_msrs(fd, &rest)?);
    skipped.extend(restore_msrs(fd, &of_turn(msrs, MsrTurn::Last))?);
    call("KVM_SET_MP_STATE", fd.set_mp_state(*mp_state))?;
    call("KVM_SET_VCPU_EVENTS", fd.set_vcpu_events(events))?;
    Ok(skipped)
}

/// Sets CPUID and the TSC's frequency. If KVM refuses one of them, the vCPU is unchanged.
fn restore_constants(fd: &VcpuFd, tsc_khz: Option<u32>, cpuid: &CpuId) -> Result<()> {
    // None if the host's TSC is unstable.
    let before = fd.get_tsc_khz().ok();
    let Some(khz) = tsc_khz.filter(|khz| before != Some(*khz)) else {
        return cpuid::restore(fd, cpuid);
    };
    let frequency = fd.set_tsc_khz(khz).map_err(|_| Error::Misfit {
        what: "a TSC frequency",
    });
    let result = frequency.and_then(|()| cpuid::restore(fd, cpuid));
    if let (Err(_), Some(khz)) = (&result, before) {
        // KVM stores even a frequency that it refuses.
        call("KVM_SET_TSC_KHZ", fd.set_tsc_khz(khz))?;
    }
    result
}

/// When an MSR is restored, see [`restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MsrTurn {
    BeforeNested,
    AfterLapic,
    Last,
}

impl MsrTurn {
    fn of(index: u32) -> Self {
        if index == MSR_FEATURE_CONTROL || MSR_VMX_CAPABILITIES.contains(&index) {
            MsrTurn::BeforeNested
        } else if index == MSR_TSC_DEADLINE {
            MsrTurn::Last
        } else {
            MsrTurn::AfterLapic
        }
    }
}

fn of_turn(msrs: &[kvm_msr_entry], turn: MsrTurn) -> Vec<kvm_msr_entry> {
    let wanted = |msr: &&kvm_msr_entry| MsrTurn::of(msr.index) == turn;
    msrs.iter().filter(wanted).copied().collect()
}

/// An empty XSAVE area of at least `size` bytes.
fn xsave_area(size: usize) -> Result<Xsave> {
    let extra = size.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(extra).map_err(|_| Error::Misfit {
        what: "XSAVE components",
    })
}

fn save_xsave(fd: &VcpuFd, size: usize) -> Result<Vec<u32>> {
    let mut area = xsave_area(size)?;
    calls::get_xsave(fd, &mut area).map_err(|source| Error::Call {
        call: "KVM_GET_XSAVE2",
        source,
    })?;
    let mut words = calls::xsave_region(&mut area).to_vec();
    words.extend_from_slice(area.as_slice());
    Ok(words)
}

/// The saved words in an area of this vCPU's size. A smaller state is padded with zeroes (components in their initial
/// state). A larger one fits if its excess is zero.
fn xsave_for(size: usize, words: &[u32]) -> Result<Xsave> {
    let mut area = xsave_area(size)?;
    let misfit = Error::Misfit {
        what: "XSAVE components",
    };
    let Some((fixed, extra)) = words.split_at_checked(calls::xsave_region(&mut area).len()) else {
        return Err(misfit);
    };
    calls::xsave_region(&mut area).copy_from_slice(fixed);
    let room = area.as_mut_slice();
    let fits = room.len().min(extra.len());
    if extra[fits..].iter().any(|word| *word != 0) {
        return Err(misfit);
    }
    room[..fits].copy_from_slice(&extra[..fits]);
    Ok(area)
}

fn restore_sregs(
    fd: &VcpuFd,
    host: &KvmHost,
    sregs: &kvm_sregs,
    extra: Option<Sregs2Extra>,
) -> Result<()> {
    let Some(extra) = extra.filter(|_| host.sregs2) else {
        return call("KVM_SET_SREGS", fd.set_sregs(sregs));
    };
    // `kvm_sregs2` has no interrupt bitmap; the events restore the injected interrupt.
    let kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap: _,
    } = *sregs;
    let Sregs2Extra { flags, pdptrs } = extra;
    let sregs2 = kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    };
    calls::set_sregs2(fd, &sregs2).map_err(|source| Error::Call {
        call: "KVM_SET_SREGS2",
        source,
    })
}

fn msr_block(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| Error::Misfit { what: "MSRs" })
}

/// Reads the MSRs that this KVM can read. `KVM_GET_MSRS` stops at the first that it can't; these are left out.
fn save_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let wanted: Vec<kvm_msr_entry> = indices
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    let mut saved = Vec::with_capacity(wanted.len());
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
        let mut block = msr_block(chunk)?;
        let read = call("KVM_GET_MSRS", fd.get_msrs(&mut block))?.min(chunk.len());
        saved.extend_from_slice(&block.as_slice()[..read]);
        // Skips the MSR that failed, if one did.
        rest = &rest[chunk.len().min(read + 1)..];
    }
    Ok(saved)
}

/// Writes the MSRs that this KVM accepts. `KVM_SET_MSRS` stops at the first that it rejects; these are returned.
fn restore_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<Vec<u32>> {
    let mut skipped = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
        let written = call("KVM_SET_MSRS", fd.set_msrs(&msr_block(chunk)?))?.min(chunk.len());
        if let Some(rejected) = chunk.get(written) {
            skipped.push(rejected.index);
        }
        rest = &rest[chunk.len().min(written + 1)..];
    }
    Ok(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmx_capabilities_and_the_deadline_have_their_turns() {
        let turns = [0x3a, 0x480, 0x48d, 0x491, 0x10, 0x47f, 0x492, 0x6e0].map(MsrTurn::of);
        use MsrTurn::*;
        assert_eq!(turns[..4], [BeforeNested; 4]);
        assert_eq!(turns[4..], [AfterLapic, AfterLapic, AfterLapic, Last]);
    }
}
