// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page that guest and host share, and the MSR that registers it.

use core::mem::{align_of, offset_of, size_of};

/// Writing this MSR registers a vCPU's [`kvm_vcpu_para_state`]. `EDX:EAX` is the page's
/// guest-physical address, all 64 bits of it.
///
/// Reading it is #GP. A comment in the original patch mentions RDMSR, but no host implemented it.
/// Source: the 2007 patch "KVM: add MSR based hypercall API".
pub const MSR_KVM_API_MAGIC: u32 = 0x8765_5678;

/// The version of this ABI, and the newest `guest_version` a host accepts.
///
/// A host accepts all older guests, including version 0.
pub const KVM_PARA_API_VERSION: u32 = 1;

/// The value that a guest stores in `host_version` and `ret` before it registers, to see afterwards
/// whether a host wrote them.
///
/// In `ret` it equals a refusal ([`ParaErrno::KVM_EINVAL`]), so only `host_version` proves that a host acted.
///
/// [`ParaErrno::KVM_EINVAL`]: crate::ParaErrno::KVM_EINVAL
pub const PARA_PRESET: u32 = 0xffff_ffff;

/// Size and alignment of [`kvm_vcpu_para_state`] in bytes, and the value of its `size`.
pub const PARA_STATE_SIZE: usize = 4096;

/// The number of meaningful bytes at the start of the page. A host touches no others.
pub const PARA_STATE_PAYLOAD: usize = 24;

/// Offset of `guest_version`, a `u32` that the guest writes.
pub const OFFSET_GUEST_VERSION: usize = 0;
/// Offset of `host_version`, a `u32` that the guest presets and the host writes.
pub const OFFSET_HOST_VERSION: usize = 4;
/// Offset of `size`, a `u32` that the guest writes.
pub const OFFSET_SIZE: usize = 8;
/// Offset of `ret`, a `u32` that the guest presets and the host writes.
pub const OFFSET_RET: usize = 12;
/// Offset of `hypercall_gpa`, a `u64` that the guest writes.
pub const OFFSET_HYPERCALL_GPA: usize = 16;

/// The page that a vCPU registers, in the layout of the 2007 ABI: little-endian, 4096 bytes, aligned to 4096.
///
/// A host uses [`ParaStatePayload`] instead, so that it never holds a reference into memory that a guest can change.
#[allow(non_camel_case_types, reason = "the ABI's name")]
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvm_vcpu_para_state {
    /// The API version the guest was built for.
    pub guest_version: u32,
    /// The host's API version, [`PARA_PRESET`] until a host writes it.
    pub host_version: u32,
    /// The guest's `sizeof` of this structure. Hosts ignore it.
    pub size: u32,
    /// 0 if registered, the negated error if refused; [`PARA_PRESET`] until a host writes it.
    pub ret: u32,
    /// Guest-physical address of the instructions that the host replaces. Any alignment.
    pub hypercall_gpa: u64,
}

const _: () = {
    assert!(size_of::<kvm_vcpu_para_state>() == PARA_STATE_SIZE);
    assert!(align_of::<kvm_vcpu_para_state>() == PARA_STATE_SIZE);
    assert!(offset_of!(kvm_vcpu_para_state, guest_version) == OFFSET_GUEST_VERSION);
    assert!(offset_of!(kvm_vcpu_para_state, host_version) == OFFSET_HOST_VERSION);
    assert!(offset_of!(kvm_vcpu_para_state, size) == OFFSET_SIZE);
    assert!(offset_of!(kvm_vcpu_para_state, ret) == OFFSET_RET);
    assert!(offset_of!(kvm_vcpu_para_state, hypercall_gpa) == OFFSET_HYPERCALL_GPA);
    assert!(OFFSET_HYPERCALL_GPA + size_of::<u64>() == PARA_STATE_PAYLOAD);
};

impl kvm_vcpu_para_state {
    /// A page that is ready to be registered: this ABI's version and size, with both answers preset.
    pub const fn new(hypercall_gpa: u64) -> Self {
        let payload = ParaStatePayload::new(hypercall_gpa);
        Self {
            guest_version: payload.guest_version,
            host_version: payload.host_version,
            size: payload.size,
            ret: payload.ret,
            hypercall_gpa: payload.hypercall_gpa,
        }
    }

    /// The meaningful fields of the page.
    pub const fn payload(&self) -> ParaStatePayload {
        ParaStatePayload {
            guest_version: self.guest_version,
            host_version: self.host_version,
            size: self.size,
            ret: self.ret,
            hypercall_gpa: self.hypercall_gpa,
        }
    }
}

/// The meaningful bytes of a [`kvm_vcpu_para_state`], as one copy.
///
/// A host copies them once and decides on the copy, because other vCPUs may change the page at the same time.
///
/// # Example
///
/// ```
/// use para_abi::{OFFSET_RET, PARA_STATE_PAYLOAD, ParaStatePayload};
///
/// let payload = ParaStatePayload::new(0x1_0000_0ffc);
/// let bytes: [u8; PARA_STATE_PAYLOAD] = payload.to_bytes();
/// assert_eq!(bytes[..4], [1, 0, 0, 0]);
/// assert_eq!(bytes[OFFSET_RET..OFFSET_RET + 4], [0xff; 4]);
/// assert_eq!(ParaStatePayload::from_bytes(&bytes), payload);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParaStatePayload {
    /// The API version the guest was built for.
    pub guest_version: u32,
    /// The host's API version, or the guest's preset.
    pub host_version: u32,
    /// The structure's size according to the guest. Hosts ignore it.
    pub size: u32,
    /// 0, a negated error, or the guest's preset.
    pub ret: u32,
    /// Guest-physical address of the instructions that the host replaces.
    pub hypercall_gpa: u64,
}

impl ParaStatePayload {
    /// The fields that a guest of this ABI's version writes before it registers.
    pub const fn new(hypercall_gpa: u64) -> Self {
        Self {
            guest_version: KVM_PARA_API_VERSION,
            host_version: PARA_PRESET,
            size: PARA_STATE_SIZE as u32,
            ret: PARA_PRESET,
            hypercall_gpa,
        }
    }

    /// Decodes the first bytes of a page. Any bytes are valid.
    pub const fn from_bytes(bytes: &[u8; PARA_STATE_PAYLOAD]) -> Self {
        Self {
            guest_version: u32_at(bytes, OFFSET_GUEST_VERSION),
            host_version: u32_at(bytes, OFFSET_HOST_VERSION),
            size: u32_at(bytes, OFFSET_SIZE),
            ret: u32_at(bytes, OFFSET_RET),
            hypercall_gpa: u32_at(bytes, OFFSET_HYPERCALL_GPA) as u64
                | (u32_at(bytes, OFFSET_HYPERCALL_GPA + 4) as u64) << 32,
        }
    }

    /// The bytes of these fields, little-endian, in the page's order.
    pub const fn to_bytes(&self) -> [u8; PARA_STATE_PAYLOAD] {
        let words = [
            self.guest_version,
            self.host_version,
            self.size,
            self.ret,
            self.hypercall_gpa as u32,
            (self.hypercall_gpa >> 32) as u32,
        ];
        let mut bytes = [0; PARA_STATE_PAYLOAD];
        let mut at = 0;
        while at < PARA_STATE_PAYLOAD {
            bytes[at] = words[at / 4].to_le_bytes()[at % 4];
            at += 1;
        }
        bytes
    }

    /// Whether this guest is newer than the host, which must then refuse it (rule R6).
    pub const fn is_newer_than_host(&self) -> bool {
        self.guest_version > KVM_PARA_API_VERSION
    }
}

const fn u32_at(bytes: &[u8; PARA_STATE_PAYLOAD], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether `gpa` is aligned as a [`kvm_vcpu_para_state`] must be: a multiple of 4096, in 64 bits (rule R3).
///
/// It masks instead of rounding up, so nothing wraps near 2^64. A host checks the alignment first,
/// and only then whether there is memory.
///
/// ```
/// use para_abi::is_para_state_aligned;
///
/// assert!(is_para_state_aligned(0x1_0000_0000));
/// assert!(!is_para_state_aligned(0xffff_ffff_ffff_f001));
/// ```
pub const fn is_para_state_aligned(gpa: u64) -> bool {
    gpa & (PARA_STATE_SIZE as u64 - 1) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn h2_size_decides_nothing() {
        for size in [0, 24, 4096, u32::MAX] {
            let payload = ParaStatePayload {
                size,
                ..ParaStatePayload::new(0x1000)
            };
            assert!(!payload.is_newer_than_host());
            assert_eq!(ParaStatePayload::from_bytes(&payload.to_bytes()).size, size);
        }
    }

    #[test]
    fn h2_the_payload_ends_at_24_bytes_of_4096() {
        assert_eq!((PARA_STATE_PAYLOAD, PARA_STATE_SIZE), (24, 4096));
        assert_eq!(kvm_vcpu_para_state::new(0).size, 4096);
    }

    #[test]
    fn h13_alignment_is_64_bit_and_does_not_wrap() {
        for aligned in [0, 0x1000, 1 << 32, 1 << 63, 0xffff_ffff_ffff_f000] {
            assert!(is_para_state_aligned(aligned), "{aligned:#x}");
        }
        for misaligned in [1, 0xfff, (1 << 32) + 1, 0xffff_ffff_ffff_f001, u64::MAX] {
            assert!(!is_para_state_aligned(misaligned), "{misaligned:#x}");
        }
    }

    #[test]
    fn r6_versions_compare_unsigned_and_zero_is_old() {
        let of = |guest_version| ParaStatePayload {
            guest_version,
            ..ParaStatePayload::new(0)
        };
        assert!(!of(0).is_newer_than_host());
        assert!(!of(1).is_newer_than_host());
        assert!(of(2).is_newer_than_host());
        assert!(of(u32::MAX).is_newer_than_host());
    }

    #[test]
    fn r1_the_constants_are_those_of_2007() {
        assert_eq!((MSR_KVM_API_MAGIC, KVM_PARA_API_VERSION), (0x8765_5678, 1));
    }

    #[test]
    fn the_fields_stand_where_the_abi_puts_them() {
        let bytes: [u8; 24] = core::array::from_fn(|at| at as u8);
        let payload = ParaStatePayload::from_bytes(&bytes);
        assert_eq!(payload.guest_version, 0x0302_0100);
        assert_eq!(payload.host_version, 0x0706_0504);
        assert_eq!(payload.size, 0x0b0a_0908);
        assert_eq!(payload.ret, 0x0f0e_0d0c);
        assert_eq!(payload.hypercall_gpa, 0x1716_1514_1312_1110);
    }

    #[test]
    fn a_new_page_is_a_new_payload() {
        assert_eq!(
            kvm_vcpu_para_state::new(0x1234).payload(),
            ParaStatePayload::new(0x1234)
        );
    }

    proptest! {
        #[test]
        fn all_bytes_survive(bytes: [u8; 24]) {
            prop_assert_eq!(ParaStatePayload::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
