// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A CPUID table under construction.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// One of the four registers of a CPUID entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// The register `eax`, `ebx`, `ecx`, or else `edx`.
    pub(crate) fn of_name(name: &str) -> Self {
        match name {
            "eax" => Register::Eax,
            "ebx" => Register::Ebx,
            "ecx" => Register::Ecx,
            _ => Register::Edx,
        }
    }

    /// This register of `entry`.
    pub(super) fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        }
    }
}

/// CPUID entries by leaf (`function`) and subleaf (`index`).
#[derive(Clone, Debug)]
pub(super) struct Table(pub(super) Vec<kvm_cpuid_entry2>);

impl Table {
    pub(super) fn new(cpuid: &CpuId) -> Self {
        Table(cpuid.as_slice().to_vec())
    }

    pub(super) fn get(&self, leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.0
            .iter()
            .find(|e| e.function == leaf && e.index == index)
    }

    pub(super) fn get_mut(&mut self, leaf: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .find(|e| e.function == leaf && e.index == index)
    }

    /// All subleaves of `leaf`.
    pub(super) fn subleaves(&mut self, leaf: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |e| e.function == leaf)
    }

    /// Replaces all entries of `leaf` with subleaves 0, 1, … of (EAX, EBX, ECX, EDX).
    pub(super) fn replace(&mut self, leaf: u32, subleaves: &[[u32; 4]]) {
        self.0.retain(|e| e.function != leaf);
        let flags = if subleaves.len() > 1 {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        };
        for (index, &[eax, ebx, ecx, edx]) in (0..).zip(subleaves) {
            let function = leaf;
            self.0.push(kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
    }

    /// The highest leaf of the range that starts at `base` (0, 0x4000_0000 or 0x8000_0000).
    pub(super) fn max_leaf(&self, base: u32) -> u32 {
        self.get(base, 0).map_or(0, |e| e.eax)
    }

    /// Whether `bit` of a register is set.
    pub(super) fn has(&mut self, leaf: u32, index: u32, register: Register, bit: u32) -> bool {
        self.get_mut(leaf, index)
            .is_some_and(|e| *register.of(e) & 1 << bit != 0)
    }
}
