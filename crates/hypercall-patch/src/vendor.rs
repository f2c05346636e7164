// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The processor vendor, from CPUID leaf 0.

use core::fmt;

use crate::HypercallInsn;

/// A processor vendor with hardware virtualization that KVM supports.
///
/// There are two vendors to tell apart. The **host's** processor decides which instruction works, so stubs and
/// hypercall pages follow it ([`Vendor::from_cpuid`] on the table of `KVM_GET_SUPPORTED_CPUID`). A guest without a
/// stub chooses its instruction by the leaf 0 that it sees ([`Vendor::from_cpuid`] on the guest's table). The two
/// differ after a migration between vendors.
///
/// Source: Intel SDM volume 2, CPUID leaf 0; AMD APM volume 3, `Fn0000_0000`; the vendor strings that Linux
/// knows (`arch/x86/kernel/cpu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Vendor {
    /// `GenuineIntel`: VMX.
    Intel,
    /// `AuthenticAMD`: SVM.
    Amd,
    /// `HygonGenuine`: SVM.
    Hygon,
    /// `  Shanghai  ` (two blanks on either side): VMX.
    Zhaoxin,
    /// `CentaurHauls` (VIA, and part of Zhaoxin's processors): VMX.
    Centaur,
}

impl Vendor {
    /// All vendors.
    pub const ALL: [Self; 5] = [
        Self::Intel,
        Self::Amd,
        Self::Hygon,
        Self::Zhaoxin,
        Self::Centaur,
    ];

    /// The vendor string: EBX, EDX and ECX of CPUID leaf 0, in this order.
    pub const fn id(self) -> &'static [u8; 12] {
        match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
            Self::Hygon => b"HygonGenuine",
            Self::Zhaoxin => b"  Shanghai  ",
            Self::Centaur => b"CentaurHauls",
        }
    }

    /// The vendor with this vendor string.
    ///
    /// # Errors
    ///
    /// [`UnknownVendor`] with the string, if no vendor in [`Vendor::ALL`] has exactly this string.
    pub fn from_id(id: &[u8; 12]) -> Result<Self, UnknownVendor> {
        Self::ALL
            .into_iter()
            .find(|vendor| vendor.id() == id)
            .ok_or(UnknownVendor(*id))
    }

    /// The vendor of a processor whose CPUID leaf 0 returned these registers.
    ///
    /// The arguments are in the registers' usual order. The vendor string is EBX, **EDX**, ECX.
    ///
    /// # Errors
    ///
    /// [`UnknownVendor`] with the string.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::{HypercallInsn, Vendor};
    ///
    /// let vendor = Vendor::from_leaf0(0x756e_6547, 0x6c65_746e, 0x4965_6e69)?;
    /// assert_eq!(vendor, Vendor::Intel);
    /// assert_eq!(vendor.insn(), HypercallInsn::Vmcall);
    ///
    /// let error = Vendor::from_leaf0(0, 0, 0).unwrap_err();
    /// assert!(error.to_string().contains(r#""\x00\x00"#));
    /// # Ok::<(), hypercall_patch::UnknownVendor>(())
    /// ```
    pub fn from_leaf0(ebx: u32, ecx: u32, edx: u32) -> Result<Self, UnknownVendor> {
        let mut id = [0; 12];
        id[..4].copy_from_slice(&ebx.to_le_bytes());
        id[4..8].copy_from_slice(&edx.to_le_bytes());
        id[8..].copy_from_slice(&ecx.to_le_bytes());
        Self::from_id(&id)
    }

    /// The vendor in a CPUID table, such as a guest's (`KVM_SET_CPUID2`) or the one that KVM supports
    /// (`KVM_GET_SUPPORTED_CPUID`). Entries are (function, EBX, ECX, EDX). Like KVM, this uses the first
    /// entry with function 0.
    ///
    /// # Errors
    ///
    /// [`CpuidError`] if there is no leaf 0, or if its vendor is unknown.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::Vendor;
    ///
    /// struct Entry { function: u32, ebx: u32, ecx: u32, edx: u32 } // as in kvm_cpuid_entry2
    /// let table = [
    ///     Entry { function: 1, ebx: 0, ecx: 0, edx: 0 },
    ///     Entry { function: 0, ebx: 0x6f67_7948, ecx: 0x656e_6975, edx: 0x6e65_476e },
    /// ];
    /// let vendor = Vendor::from_cpuid(table.iter().map(|e| (e.function, e.ebx, e.ecx, e.edx)))?;
    /// assert_eq!(vendor, Vendor::Hygon);
    /// # Ok::<(), hypercall_patch::CpuidError>(())
    /// ```
    pub fn from_cpuid(
        entries: impl IntoIterator<Item = (u32, u32, u32, u32)>,
    ) -> Result<Self, CpuidError> {
        let (_, ebx, ecx, edx) = entries
            .into_iter()
            .find(|&(function, ..)| function == 0)
            .ok_or(CpuidError::NoLeaf0)?;
        Self::from_leaf0(ebx, ecx, edx).map_err(CpuidError::Unknown)
    }

    /// The hypercall instruction of the vendor's virtualization extension.
    pub const fn insn(self) -> HypercallInsn {
        match self {
            Self::Intel | Self::Zhaoxin | Self::Centaur => HypercallInsn::Vmcall,
            Self::Amd | Self::Hygon => HypercallInsn::Vmmcall,
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intel => "Intel",
            Self::Amd => "AMD",
            Self::Hygon => "Hygon",
            Self::Zhaoxin => "Zhaoxin",
            Self::Centaur => "Centaur",
        })
    }
}

/// A vendor string that belongs to no [`Vendor`]. `Display` escapes everything but printable ASCII, so a
/// guest's table can't put control characters into a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVendor(pub [u8; 12]);

impl fmt::Display for UnknownVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CPUID leaf 0 names the vendor \"{}\", whose hypercall instruction is unknown; use \
             hypercalls by port I/O",
            self.0.escape_ascii()
        )
    }
}

impl core::error::Error for UnknownVendor {}

/// Why a CPUID table has no known vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CpuidError {
    /// The table has no entry for function 0.
    NoLeaf0,
    /// Leaf 0 names an unknown vendor.
    Unknown(UnknownVendor),
}

impl fmt::Display for CpuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeaf0 => f.write_str(
                "the CPUID table has no leaf 0, so it names no processor vendor; fill the table before asking",
            ),
            Self::Unknown(unknown) => unknown.fmt(f),
        }
    }
}

// `Display` already shows all of `UnknownVendor`, so it isn't a source as well.
impl core::error::Error for CpuidError {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    /// EBX, ECX and EDX for a vendor string, computed without the code under test.
    fn leaf0(id: &[u8; 12]) -> (u32, u32, u32) {
        let word = |at: usize| u32::from_le_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
        (word(0), word(8), word(4))
    }

    #[test]
    fn vendors_are_known_by_the_registers_of_real_processors() {
        let table = [
            (0x756e_6547, 0x6c65_746e, 0x4965_6e69, Vendor::Intel),
            (0x6874_7541, 0x444d_4163, 0x6974_6e65, Vendor::Amd),
            (0x6f67_7948, 0x656e_6975, 0x6e65_476e, Vendor::Hygon),
            (0x6853_2020, 0x2020_6961, 0x6867_6e61, Vendor::Zhaoxin),
            (0x746e_6543, 0x736c_7561, 0x4872_7561, Vendor::Centaur),
        ];
        for (ebx, ecx, edx, vendor) in table {
            assert_eq!(Vendor::from_leaf0(ebx, ecx, edx), Ok(vendor));
            assert_eq!(leaf0(vendor.id()), (ebx, ecx, edx));
            assert_eq!(Vendor::from_id(vendor.id()), Ok(vendor));
        }
        assert_eq!(table.len(), Vendor::ALL.len());
    }

    #[test]
    fn vendors_have_the_instruction_of_their_extension() {
        let insns: Vec<_> = Vendor::ALL.iter().map(|vendor| vendor.insn()).collect();
        use HypercallInsn::{Vmcall, Vmmcall};
        assert_eq!(insns, [Vmcall, Vmmcall, Vmmcall, Vmcall, Vmcall]);
    }

    #[test]
    fn unknown_vendors_are_shown_without_control_characters() {
        let (ebx, ecx, edx) = leaf0(b"Evil\n\x1b[2J\"\\\xff");
        let error = Vendor::from_leaf0(ebx, ecx, edx).unwrap_err();
        assert_eq!(error, UnknownVendor(*b"Evil\n\x1b[2J\"\\\xff"));
        let text = error.to_string();
        assert!(text.contains(r#""Evil\n\x1b[2J\"\\\xff""#), "{text}");
        assert!(text.chars().all(|c| (' '..='~').contains(&c)), "{text}");
    }

    #[test]
    fn near_misses_are_unknown() {
        for id in [
            b"genuineintel",
            b"GenuineIotel",
            b"Shanghai    ",
            b"VIA VIA VIA ",
            b"KVMKVMKVM\0\0\0",
        ] {
            assert_eq!(Vendor::from_id(id), Err(UnknownVendor(*id)));
        }
        // Read in the order EBX, ECX, EDX, the string is no vendor's.
        let (ebx, ecx, edx) = leaf0(b"GenuineIntel");
        assert!(Vendor::from_leaf0(ebx, edx, ecx).is_err());
    }

    #[test]
    fn a_guests_table_is_asked_for_its_first_leaf_0() {
        let entry = |function, id| {
            let (ebx, ecx, edx) = leaf0(id);
            (function, ebx, ecx, edx)
        };
        let table = [
            entry(0x8000_0000, b"GenuineIntel"),
            entry(0, b"AuthenticAMD"),
            entry(0, b"CentaurHauls"),
        ];
        assert_eq!(Vendor::from_cpuid(table), Ok(Vendor::Amd));
        assert_eq!(Vendor::from_cpuid([table[0]]), Err(CpuidError::NoLeaf0));
        assert_eq!(Vendor::from_cpuid([]), Err(CpuidError::NoLeaf0));
        assert_eq!(
            Vendor::from_cpuid([entry(0, b"ConnectixCPU")]),
            Err(CpuidError::Unknown(UnknownVendor(*b"ConnectixCPU")))
        );
    }
}
