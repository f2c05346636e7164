// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's CPU and groups, as its files describe them.

use std::fs;
use std::io::Read;

use kvm_bindings::CpuId;
use serde::Serialize;

/// The most bytes read from /proc/cpuinfo: more than it has for one CPU.
const ONE_CPU: u64 = 16 << 10;

/// The CPU's virtualization extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Virtualization {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
}

impl Virtualization {
    /// Its name in /proc/cpuinfo.
    pub fn flag(self) -> &'static str {
        match self {
            Virtualization::Vmx => "vmx",
            Virtualization::Svm => "svm",
        }
    }

    /// What guests can be offered, by the CPUID table that KVM supports: CPUID 1, ECX bit 5 (Intel SDM), or 0x80000001,
    /// ECX bit 2 (AMD APM).
    pub(crate) fn offered(supported: &CpuId) -> Option<Self> {
        let has = |function, bit: u32| {
            let mut entries = supported.as_slice().iter();
            entries.any(|e| e.function == function && e.ecx & 1 << bit != 0)
        };
        let vmx = has(1, 5).then_some(Virtualization::Vmx);
        vmx.or_else(|| has(0x8000_0001, 2).then_some(Virtualization::Svm))
    }

    /// The kernel module that uses it.
    pub fn module(self) -> &'static str {
        match self {
            Virtualization::Vmx => "kvm_intel",
            Virtualization::Svm => "kvm_amd",
        }
    }
}

/// The host's CPU, as described in /proc/cpuinfo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// The vendor string, such as `GenuineIntel`.
    pub vendor: String,
    /// The model's name.
    pub model: String,
    /// Its virtualization extension. `None` if firmware or another hypervisor hides it.
    pub virtualization: Option<Virtualization>,
    /// Whether the host is itself a guest.
    pub is_guest: bool,
}

impl Cpu {
    /// The first CPU of the host. Empty if /proc isn't mounted.
    pub(crate) fn here() -> Self {
        // Only the first CPU is read: the kernel generates the text on reading, and hosts have hundreds of CPUs.
        let mut text = Vec::new();
        let file = fs::File::open("/proc/cpuinfo");
        let _ = file.and_then(|file| file.take(ONE_CPU).read_to_end(&mut text));
        Cpu::parse(&String::from_utf8_lossy(&text))
    }

    /// The first CPU in the text of /proc/cpuinfo.
    pub(crate) fn parse(cpuinfo: &str) -> Self {
        let field = |name: &str| {
            let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            let found = fields.find(|(key, _)| key.trim() == name);
            found.map_or("", |(_, value)| value.trim())
        };
        let has = |flag: &str| field("flags").split_whitespace().any(|f| f == flag);
        let virtualization = [Virtualization::Vmx, Virtualization::Svm]
            .into_iter()
            .find(|virtualization| has(virtualization.flag()));
        Cpu {
            vendor: field("vendor_id").to_owned(),
            model: field("model name").to_owned(),
            virtualization,
            is_guest: has("hypervisor"),
        }
    }
}

/// The name of group `gid` in the text of /etc/group.
pub(crate) fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id: u32 = fields.nth(1)?.parse().ok()?;
        (id == gid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_is_read() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU: fast\n\
                    flags\t\t: fpu vmx hypervisor\n\nprocessor\t: 1\nflags\t\t: fpu svm\n";
        let expected = Cpu {
            vendor: "GenuineIntel".to_owned(),
            model: "A CPU: fast".to_owned(),
            virtualization: Some(Virtualization::Vmx),
            is_guest: true,
        };
        assert_eq!(Cpu::parse(text), expected);
        let amd = Cpu::parse("flags : svm svm_lock");
        assert_eq!(amd.virtualization, Some(Virtualization::Svm));
        // A flag with the same beginning is a different flag.
        assert_eq!(Cpu::parse("flags : svm_lock vmxfoo").virtualization, None);
        assert_eq!(Cpu::parse(""), Cpu::default());
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nbroken\nkvm:x:104:alice,bob\nalso:x:notanumber:\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 0).as_deref(), Some("root"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn nested_virtualization_is_one_bit_per_vendor() {
        use kvm_bindings::kvm_cpuid_entry2;
        let offered = |function, ecx| {
            let entry = kvm_cpuid_entry2 {
                function,
                ecx,
                ..Default::default()
            };
            Virtualization::offered(&CpuId::from_entries(&[entry]).unwrap())
        };
        assert_eq!(offered(1, 1 << 5), Some(Virtualization::Vmx));
        assert_eq!(offered(0x8000_0001, 1 << 2), Some(Virtualization::Svm));
        for (function, ecx) in [(1, !(1 << 5)), (0x8000_0001, !(1 << 2)), (7, !0)] {
            assert_eq!(offered(function, ecx), None);
        }
    }
}
