// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers for calls to a VMM in user space, outside the ranges of KVM, Xen and Hyper-V.
//!
//! The range is `0x4d56_0000` ("MV") to `0x4d56_ffff`. Numbers that aren't listed are reserved. They
//! return [`KvmErrno::KVM_ENOSYS`], as do calls that the VMM doesn't offer. A caller outside CPL 0 gets
//! [`KvmErrno::KVM_EPERM`]. If KVM itself answers a guest's calls, all of these return `KVM_ENOSYS`.
//! The numbers fit in 32 bits, so 32-bit guests can use them.
//!
//! | number | arguments | returns |
//! |---|---|---|
//! | [`VMM_HC_NOP`] | – | 0 |
//! | [`VMM_HC_BOOT_MARK`] | mark | 0 |
//! | [`VMM_HC_EXIT`] | status, 0 to 255 | doesn't; `-KVM_EINVAL` above 255 |
//! | [`VMM_HC_CONSOLE_WRITE`] | guest-physical address, length in bytes | the bytes written, or `-KVM_EFAULT`, `-KVM_E2BIG` |
//! | [`VMM_HC_SNAPSHOT`] | flags, 0 | 0 in the original, the clone's number in a clone; `-KVM_EINVAL`: flags; `-KVM_EAGAIN`: too soon; `-KVM_E2BIG`: too many; `-KVM_EIO`: the host can't |
//!
//! [`KvmErrno::KVM_ENOSYS`]: crate::KvmErrno::KVM_ENOSYS
//! [`KvmErrno::KVM_EPERM`]: crate::KvmErrno::KVM_EPERM

/// The first number of the range.
pub const VMM_HC_BASE: u64 = 0x4d56_0000;
/// The last number of the range.
pub const VMM_HC_LAST: u64 = 0x4d56_ffff;

/// Does nothing and returns 0. It measures the round trip.
pub const VMM_HC_NOP: u64 = VMM_HC_BASE;
/// Reports boot progress: argument 0 is any number, which the VMM logs with the time.
pub const VMM_HC_BOOT_MARK: u64 = VMM_HC_BASE + 1;
/// Ends the VM: argument 0, 0 to 255, becomes the VMM's exit status.
pub const VMM_HC_EXIT: u64 = VMM_HC_BASE + 2;
/// Writes to the VM's console: argument 0 is a guest-physical address, argument 1 a length in bytes.
pub const VMM_HC_CONSOLE_WRITE: u64 = VMM_HC_BASE + 3;
/// Writes a snapshot of the VM, like `fork`: argument 0 has flags and must be 0. It returns 0 in the VM that calls, and in
/// each clone that goes on with the snapshot the number that its restorer chose, 1 to 2147483647.
pub const VMM_HC_SNAPSHOT: u64 = VMM_HC_BASE + 4;

/// Whether `nr` belongs to this range.
pub const fn is_vmm_call(nr: u64) -> bool {
    nr >= VMM_HC_BASE && nr <= VMM_HC_LAST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_spells_mv_and_fits_32_bits() {
        assert_eq!(((VMM_HC_BASE >> 16) as u16).to_be_bytes(), *b"MV");
        assert!(u32::try_from(VMM_HC_LAST).is_ok());
        for nr in [
            VMM_HC_NOP,
            VMM_HC_BOOT_MARK,
            VMM_HC_EXIT,
            VMM_HC_CONSOLE_WRITE,
            VMM_HC_SNAPSHOT,
            VMM_HC_LAST,
        ] {
            assert!(is_vmm_call(nr), "{nr:#x}");
        }
        assert!(!is_vmm_call(VMM_HC_BASE - 1) && !is_vmm_call(VMM_HC_LAST + 1));
        assert!(!is_vmm_call(VMM_HC_BASE | 1 << 32));
    }
}
