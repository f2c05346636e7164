// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU features by their names in Linux's /proc/cpuinfo, to hide or require them.
//!
//! Hiding a feature also hides those that need it, and removes its part of the XSAVE area. Bits are those of the Intel
//! SDM (volume 2A, CPUID) and the AMD APM (volume 3, appendix E).

use std::collections::BTreeSet;

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::{CpuPlan, Error};
use super::table::{Register, Table};
use super::topology::Vendor;
use crate::text::nearest;

/// The features in one register: names from bit 0 on, `-` for none, `/` between the names of one bit.
struct Word {
    leaf: u32,
    index: u32,
    register: Register,
    names: &'static str,
}

const fn word(leaf: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word {
        leaf,
        index,
        register,
        names,
    }
}

/// All known names. A name may stand for several bits: Intel and AMD report `ibpb` in different places.
const WORDS: [Word; 15] = [
    word(
        1,
        0,
        Register::Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand \
         hypervisor",
    ),
    word(
        1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - \
         dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word(6, 0, Register::Eax, "- - arat"),
    word(
        7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er \
         avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 user_shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect \
         cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Register::Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear \
         rtm_always_abort - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 \
         amx_tile amx_int8 ibrs/ibpb stibp flush_l1d arch_capabilities - ssbd",
    ),
    word(
        7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs \
         - - amx_fp16 - avx_ifma - - lam",
    ),
    word(
        7,
        1,
        Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti",
    ),
    word(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext \
         ptsc perfctr_llc mwaitx",
    ),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - \
         lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0007,
        0,
        Register::Edx,
        "- - - - - - - - constant_tsc/nonstop_tsc",
    ),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - - - - - - - \
         amd_ppin ssbd virt_ssbd - cppc - - - brs",
    ),
    word(
        0x8000_000a,
        0,
        Register::Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - \
         pausefilter - pfthreshold avic - v_vmsave_vmload vgif x2avic v_spec_ctrl - - - - - - vnmi",
    ),
    word(0x8000_0021, 0, Register::Eax, "- - - - - - - - autoibrs"),
];

/// The features that directly need the one on the left, by the SDM's rules for detecting each instruction set
/// extension, and because XSAVE holds their registers.
const DEPENDENTS: [(&str, &str); 24] = [
    ("fxsr", "sse fxsr_opt xsave"),
    ("mmx", "mmxext 3dnow"),
    ("3dnow", "3dnowext"),
    ("sse", "sse2 misalignsse"),
    ("sse2", "pni pclmulqdq aes sha_ni gfni"),
    ("pni", "ssse3 sse4a"),
    ("ssse3", "sse4_1"),
    ("sse4_1", "sse4_2"),
    ("sse4_2", "avx"),
    ("aes", "vaes"),
    ("pclmulqdq", "vpclmulqdq"),
    (
        "xsave",
        "xsaveopt xsavec xgetbv1 xsaves avx mpx pku amx_tile",
    ),
    ("xsavec", "xsaves"),
    ("xsaves", "xfd user_shstk ibt enqcmd arch_lbr"),
    ("xfd", "amx_tile"),
    ("avx", "avx2 fma f16c fma4 xop vaes vpclmulqdq"),
    (
        "avx2",
        "avx512f avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert sha512 sm3 sm4",
    ),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512_vpopcntdq \
         avx512_4vnniw avx512_4fmaps avx512_vnni avx512_vp2intersect",
    ),
    (
        "avx512bw",
        "avx512vbmi avx512_vbmi2 avx512_bitalg avx512_bf16 avx512_fp16",
    ),
    ("pku", "ospke"),
    ("amx_tile", "amx_int8 amx_bf16 amx_fp16 amx_complex"),
    ("apic", "x2apic tsc_deadline_timer"),
    ("tsc", "tsc_deadline_timer tsc_adjust rdtscp constant_tsc"),
    (
        "svm",
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter \
         pfthreshold avic v_vmsave_vmload vgif x2avic v_spec_ctrl vnmi",
    ),
];

/// The features for running nested guests, by vendor.
const NESTED: [&str; 2] = ["vmx", "svm"];

/// Features that guests don't get, because a saved vCPU would lack their state. Of shadow stacks that is their pointer
/// (SSP), which KVM's registers don't have.
const UNSAVED: [&str; 1] = ["user_shstk"];

/// XSAVE's user components in XCR0 (SDM volume 1, chapter 13): bits, and the feature that they belong to.
const COMPONENTS: [(u32, &str); 5] = [
    (0b100, "avx"),
    (0b1_1000, "mpx"),
    (0b1110_0000, "avx512f"),
    (1 << 9, "pku"),
    (3 << 17, "amx_tile"),
];
/// XSAVE's supervisor components in IA32_XSS: bits, and the feature that they belong to.
const SUPERVISOR: [(u32, &str); 2] = [(1 << 8, "intel_pt"), (1 << 15, "arch_lbr")];
/// IA32_XSS's components of shadow stacks and IBT, which share them.
const CET: u32 = 0b11 << 11;
/// Leaf 0xD.1, EAX: the instructions for the compacted format, whose size is in EBX.
const XSAVEC: u32 = 1 << 1;
const XSAVES: u32 = 1 << 3;
/// Bytes of the XSAVE area's legacy region and header, which are always present.
const XSAVE_MIN: u32 = 576;
/// Bits of leaf 1's EDX that AMD repeats in leaf 0x8000_0001's EDX (APM).
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// Where a feature's bit is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bit {
    leaf: u32,
    index: u32,
    register: Register,
    bit: u32,
}

/// Every name with its bit.
fn all() -> impl Iterator<Item = (&'static str, Bit)> {
    WORDS.iter().flat_map(names_of)
}

/// The names of a word's bits.
fn names_of(word: &'static Word) -> impl Iterator<Item = (&'static str, Bit)> {
    let Word {
        leaf,
        index,
        register,
        ..
    } = *word;
    let bits = (0..).zip(word.names.split_whitespace());
    bits.flat_map(move |(bit, names)| {
        let at = Bit {
            leaf,
            index,
            register,
            bit,
        };
        let named = names.split('/').filter(|name| *name != "-");
        named.map(move |name| (name, at))
    })
}

/// The bits of the feature `name`.
fn bits_of(name: &str) -> impl Iterator<Item = Bit> {
    // To look for a text is much faster than to take all of them apart.
    let words = WORDS.iter().filter(move |word| word.names.contains(name));
    words
        .flat_map(names_of)
        .filter(move |(other, _)| *other == name)
        .map(|(_, bit)| bit)
}

/// The names of the features that one bit stands for.
pub(crate) fn feature_names(
    leaf: u32,
    index: u32,
    register: Register,
    bit: u32,
) -> impl Iterator<Item = &'static str> {
    let at = Bit {
        leaf,
        index,
        register,
        bit,
    };
    all()
        .filter(move |(_, bit)| *bit == at)
        .map(|(name, _)| name)
}

/// Whether a leaf with features has subleaves; `None` if there are no features in it.
pub(crate) fn has_features(leaf: u32, index: u32) -> Option<bool> {
    let is_known = WORDS
        .iter()
        .any(|word| (word.leaf, word.index) == (leaf, index));
    is_known.then_some(matches!(leaf, 7 | 0xd))
}

/// The features that directly need `name`.
fn dependents(name: &str) -> impl Iterator<Item = &'static str> {
    let of_name = DEPENDENTS.iter().filter(move |(needed, _)| *needed == name);
    of_name.flat_map(|(_, names)| names.split_whitespace())
}

/// Hides nested virtualization, or requires it.
///
/// KVM obeys these bits. Without VMX a guest gets #GP for CR4.VMXE and the VMX capability MSRs, without SVM for
/// EFER.SVME. The instructions of both take #UD.
pub(super) fn apply_nested(table: &mut Table, vendor: Vendor, nested: bool) -> Result<(), Error> {
    if !nested {
        NESTED.iter().for_each(|name| clear(table, vendor, name));
        return Ok(());
    }
    let is_there = NESTED.iter().any(|name| shows(table, name));
    is_there.then_some(()).ok_or(Error::NoNested)
}

/// Hides and checks features in `table`, which has all supported features. Those whose state can't be saved are hidden
/// in any case.
pub(super) fn apply(table: &mut Table, vendor: Vendor, plan: &CpuPlan<'_>) -> Result<(), Error> {
    let (mut hidden, mut insisted) = (BTreeSet::from(UNSAVED), BTreeSet::new());
    for feature in plan.features {
        let name = known(&feature.name)?;
        if feature.enable && UNSAVED.contains(&name) {
            return Err(Error::Unsaved(name));
        }
        let (to, from) = if feature.enable {
            (&mut insisted, &mut hidden)
        } else {
            (&mut hidden, &mut insisted)
        };
        to.insert(name);
        from.remove(name);
    }
    if let Some(name) = first_missing(table, &insisted) {
        let is_nested = |root| root == name || dependents(root).any(|part| part == name);
        return Err(match !plan.nested && NESTED.into_iter().any(is_nested) {
            true => Error::NestedOff(name),
            false => Error::Unsupported(name),
        });
    }
    hide_dependents(&mut hidden, &insisted)?;
    for &name in &hidden {
        clear(table, vendor, name);
    }
    if let Some(feature) = first_missing(table, &insisted) {
        // One bit can have two names.
        let twin = |other: &&&str| bits_of(other).any(|b| bits_of(feature).any(|f| f == b));
        let needs = hidden.iter().find(twin).copied().unwrap_or(feature);
        return Err(Error::Dependency { feature, needs });
    }
    trim_xsave(table, &hidden);
    Ok(())
}

/// Bits that follow the guest's registers (`kvm_update_cpuid_runtime`), so they say nothing about the host.
const CHANGING: [&str; 3] = ["apic", "monitor", "ospke"];

/// The features that `table` shows and `here` does not.
pub fn missing(table: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Vec<&'static str> {
    let mut missing = Vec::new();
    for name in lacking(table, here) {
        if !missing.contains(&name) {
            missing.push(name);
        }
    }
    missing
}

/// Whether `here` shows all features that `table` shows.
pub fn has_all(table: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> bool {
    lacking(table, here).next().is_none()
}

/// The features that `table` shows and `here` does not, for each of their bits.
fn lacking(
    table: &[kvm_cpuid_entry2],
    here: &[kvm_cpuid_entry2],
) -> impl Iterator<Item = &'static str> + use<> {
    let (mut table, mut here) = (Table(table.to_vec()), Table(here.to_vec()));
    WORDS.iter().flat_map(move |word| {
        let bits = |table: &mut Table| {
            let leaf = table.get_mut(word.leaf, word.index);
            leaf.map_or(0, |leaf| *word.register.of(leaf))
        };
        let lacks = bits(&mut table) & !bits(&mut here);
        // Almost always nothing: then no name is looked at, since reading all of them takes longer than all the rest.
        let names = (lacks != 0).then(|| names_of(word)).into_iter().flatten();
        let lacked = names.filter(move |(_, at)| lacks >> at.bit & 1 != 0);
        lacked
            .map(|(name, _)| name)
            .filter(|name| !CHANGING.contains(name))
    })
}

/// The first of `names` that has no bit set.
fn first_missing(table: &mut Table, names: &BTreeSet<&'static str>) -> Option<&'static str> {
    names.iter().copied().find(|name| !shows(table, name))
}

/// Whether a bit of the feature `name` is set.
fn shows(table: &mut Table, name: &str) -> bool {
    bits_of(name).any(|b| table.has(b.leaf, b.index, b.register, b.bit))
}

/// The static copy of `name`, or the error that suggests similar names.
fn known(name: &str) -> Result<&'static str, Error> {
    if let Some((known, _)) = all().find(|(known, _)| *known == name) {
        return Ok(known);
    }
    Err(Error::UnknownFeature {
        name: name.to_owned(),
        near: nearest(name, all().map(|(known, _)| known)),
    })
}

/// Adds to `hidden` all features that need a hidden one, directly or not.
fn hide_dependents(
    hidden: &mut BTreeSet<&'static str>,
    insisted: &BTreeSet<&'static str>,
) -> Result<(), Error> {
    let mut queue: Vec<_> = hidden.iter().copied().collect();
    while let Some(needs) = queue.pop() {
        for feature in dependents(needs) {
            if insisted.contains(feature) {
                return Err(Error::Dependency { feature, needs });
            }
            if hidden.insert(feature) {
                queue.push(feature);
            }
        }
    }
    Ok(())
}

/// Clears every bit of the feature `name`.
fn clear(table: &mut Table, vendor: Vendor, name: &str) {
    for Bit {
        leaf,
        index,
        register,
        bit,
    } in bits_of(name)
    {
        if let Some(entry) = table.get_mut(leaf, index) {
            *register.of(entry) &= !(1 << bit);
        }
        let repeated = (leaf, register) == (1, Register::Edx) && AMD_REPEATED & 1 << bit != 0;
        let twin = match vendor {
            Vendor::Amd if repeated => table.get_mut(0x8000_0001, 0),
            _ => None,
        };
        if let Some(entry) = twin {
            entry.edx &= !(1 << bit);
        }
    }
    if name == "svm" {
        // Without SVM its leaf is reserved (APM).
        table.0.retain(|e| e.function != 0x8000_000a);
    }
}

/// Removes the state of hidden features from leaf 0xD, and their share of the area's size.
fn trim_xsave(table: &mut Table, hidden: &BTreeSet<&'static str>) {
    if hidden.contains("xsave") {
        table.0.retain(|e| e.function != 0xd);
        return;
    }
    let bits = |components: &[(u32, &str)]| {
        let hidden = components
            .iter()
            .filter(|(_, feature)| hidden.contains(feature));
        hidden.fold(0, |all, (bits, _)| all | bits)
    };
    let (user, mut supervisor) = (bits(&COMPONENTS), bits(&SUPERVISOR));
    // Shadow stacks are always hidden.
    if !shows(table, "ibt") {
        let present = table.get_mut(0xd, 1).map_or(0, |leaf| leaf.ecx);
        supervisor |= present & CET;
    }
    if hidden.contains("xsaves") {
        supervisor = u32::MAX;
    }
    if user | supervisor == 0 {
        return;
    }
    if let Some(leaf) = table.get_mut(0xd, 1) {
        leaf.ecx &= !supervisor;
        if leaf.eax & (XSAVEC | XSAVES) == 0 {
            leaf.ebx = 0;
        }
    }
    table.0.retain(|e| {
        // Bit 0 of a component's ECX means that it belongs to IA32_XSS, not XCR0.
        let gone = if e.ecx & 1 == 0 { user } else { supervisor };
        e.function != 0xd || !(2..32).contains(&e.index) || gone & 1 << e.index == 0
    });
    let ends = table
        .subleaves(0xd)
        .filter(|e| e.index >= 2 && e.ecx & 1 == 0);
    let size = ends
        .map(|e| e.ebx.saturating_add(e.eax))
        .fold(XSAVE_MIN, u32::max);
    if let Some(leaf) = table.get_mut(0xd, 0) {
        leaf.eax &= !user;
        leaf.ecx = size;
        // The size for the components enabled in XCR0. KVM keeps it up to date.
        leaf.ebx = leaf.ebx.min(size);
    }
}

#[cfg(test)]
mod tests;
