// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypervisor signatures in CPUID.

/// A 12-byte hypervisor signature as CPUID gives it, in EBX, ECX and EDX of the base leaf.
///
/// ```
/// use para_abi::{kvm, signature_registers};
///
/// assert_eq!(signature_registers(kvm::KVM_SIGNATURE), [0x4b4d_564b, 0x564b_4d56, 0x4d]);
/// ```
pub const fn signature_registers(signature: &[u8; 12]) -> [u32; 3] {
    let s = signature;
    [
        u32::from_le_bytes([s[0], s[1], s[2], s[3]]),
        u32::from_le_bytes([s[4], s[5], s[6], s[7]]),
        u32::from_le_bytes([s[8], s[9], s[10], s[11]]),
    ]
}

/// The 12-byte signature in EBX, ECX and EDX of a base leaf.
pub const fn signature_bytes(registers: [u32; 3]) -> [u8; 12] {
    let [b, c, d] = [
        registers[0].to_le_bytes(),
        registers[1].to_le_bytes(),
        registers[2].to_le_bytes(),
    ];
    [
        b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hyperv, kvm, xen};

    #[test]
    fn signatures_are_those_the_hypervisors_give() {
        let of = signature_registers;
        assert_eq!(
            of(kvm::KVM_SIGNATURE),
            [0x4b4d_564b, 0x564b_4d56, 0x0000_004d]
        );
        assert_eq!(
            of(xen::XEN_SIGNATURE),
            [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]
        );
        assert_eq!(
            of(hyperv::HV_SIGNATURE),
            [0x7263_694d, 0x666f_736f, 0x7648_2074]
        );
        for signature in [kvm::KVM_SIGNATURE, xen::XEN_SIGNATURE, hyperv::HV_SIGNATURE] {
            assert_eq!(signature_bytes(of(signature)), *signature);
        }
    }
}
