// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's stub before a host patches it.

/// The number of bytes that the known guests reserve for the stub.
pub const STUB_LEN: usize = 6;

/// The number of bytes that a host replaces: three for an instruction, one for `ret`.
pub const STUB_PATCH_LEN: usize = 4;

/// The unpatched stub: `mov eax, -38; ret`. A host never writes bytes 4 and 5.
pub const STUB_UNPATCHED: [u8; STUB_LEN] = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3];

/// The result of a call of the unpatched stub: -38 in 32 bits, zero-extended.
///
/// This is Linux's `-ENOSYS`, not [`KvmErrno::KVM_ENOSYS`](crate::KvmErrno::KVM_ENOSYS): -38 means that there
/// is no host, -1000 that the host doesn't know the call.
pub const STUB_UNPATCHED_RESULT: u64 = 0xffff_ffda;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvmErrno;

    #[test]
    fn r9_the_stub_has_room_for_the_patch() {
        const { assert!(STUB_PATCH_LEN < STUB_LEN) }
        let immediate = [
            STUB_UNPATCHED[1],
            STUB_UNPATCHED[2],
            STUB_UNPATCHED[3],
            STUB_UNPATCHED[4],
        ];
        assert_eq!(i32::from_le_bytes(immediate), -38);
        assert_eq!(STUB_UNPATCHED_RESULT, u64::from(-38_i32 as u32));
        assert_eq!((STUB_UNPATCHED[0], STUB_UNPATCHED[5]), (0xb8, 0xc3));
    }

    #[test]
    fn h12_an_unpatched_call_is_no_error_of_a_host() {
        let sign_extended = STUB_UNPATCHED_RESULT as u32 as i32 as i64 as u64;
        assert_eq!(KvmErrno::from_ret(sign_extended), None);
    }
}
