// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two sets of error numbers with the same names and different values.

use core::fmt;

/// The error numbers that a host stores in `ret` of a 2007 registration.
///
/// These are not [`KvmErrno`]: there `KVM_EINVAL` is 22 and 1 is `KVM_EPERM`. So there is no
/// conversion between the two:
///
/// ```compile_fail
/// let today: para_abi::KvmErrno = para_abi::ParaErrno::KVM_EINVAL.into();
/// ```
#[allow(non_camel_case_types, reason = "the ABI's names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum ParaErrno {
    /// The guest is newer than the host, or its `hypercall_gpa` can't be patched.
    KVM_EINVAL = 1,
}

impl ParaErrno {
    /// The number without its sign.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The value that a host stores in `ret`: the negated number, in 32 bits.
    ///
    /// ```
    /// assert_eq!(para_abi::ParaErrno::KVM_EINVAL.as_ret(), 0xffff_ffff);
    /// ```
    pub const fn as_ret(self) -> u32 {
        self.code().wrapping_neg()
    }
}

impl fmt::Display for ParaErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KVM_EINVAL (1, of the 2007 registration)")
    }
}

/// The error numbers of today's KVM hypercalls, which return them negated in RAX.
///
/// Source: Linux, `include/uapi/linux/kvm_para.h`. Those without a name there have Linux's numbers, and only the calls of
/// [`vmm`](crate::vmm) return them.
///
/// ```compile_fail
/// let of_2007: para_abi::ParaErrno = para_abi::KvmErrno::KVM_EINVAL.into();
/// ```
#[allow(non_camel_case_types, reason = "the ABI's names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum KvmErrno {
    /// The call needs CPL 0.
    KVM_EPERM = 1,
    /// The host can't do it. KVM has no such number.
    KVM_EIO = 5,
    /// An argument is too large.
    KVM_E2BIG = 7,
    /// Not now; try again later. KVM has no such number.
    KVM_EAGAIN = 11,
    /// A guest address isn't memory.
    KVM_EFAULT = 14,
    /// An argument is invalid. This is not [`ParaErrno::KVM_EINVAL`].
    KVM_EINVAL = 22,
    /// The call is known, but what it asks for isn't supported.
    KVM_EOPNOTSUPP = 95,
    /// The number is unknown.
    KVM_ENOSYS = 1000,
}

impl KvmErrno {
    /// All error numbers, in ascending order.
    pub const ALL: [Self; 8] = [
        Self::KVM_EPERM,
        Self::KVM_EIO,
        Self::KVM_E2BIG,
        Self::KVM_EAGAIN,
        Self::KVM_EFAULT,
        Self::KVM_EINVAL,
        Self::KVM_EOPNOTSUPP,
        Self::KVM_ENOSYS,
    ];

    /// The number without its sign.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The value that a call returns: the negated number in 64 bits. [`Convention::set_result`]
    /// truncates it for a 32-bit caller.
    ///
    /// ```
    /// assert_eq!(para_abi::KvmErrno::KVM_ENOSYS.as_ret() as i64, -1000);
    /// ```
    ///
    /// [`Convention::set_result`]: crate::Convention::set_result
    pub const fn as_ret(self) -> u64 {
        (self.code() as u64).wrapping_neg()
    }

    /// Converts a 64-bit result back to an error, if it is one of these. Sign-extend a 32-bit result first.
    ///
    /// ```
    /// use para_abi::KvmErrno;
    ///
    /// assert_eq!(KvmErrno::from_ret(-22_i64 as u64), Some(KvmErrno::KVM_EINVAL));
    /// assert_eq!(KvmErrno::from_ret(22), None);
    /// ```
    pub const fn from_ret(ret: u64) -> Option<Self> {
        let mut at = 0;
        while at < Self::ALL.len() {
            if Self::ALL[at].as_ret() == ret {
                return Some(Self::ALL[at]);
            }
            at += 1;
        }
        None
    }

    /// The name in the C headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KVM_EPERM => "KVM_EPERM",
            Self::KVM_EIO => "KVM_EIO",
            Self::KVM_E2BIG => "KVM_E2BIG",
            Self::KVM_EAGAIN => "KVM_EAGAIN",
            Self::KVM_EFAULT => "KVM_EFAULT",
            Self::KVM_EINVAL => "KVM_EINVAL",
            Self::KVM_EOPNOTSUPP => "KVM_EOPNOTSUPP",
            Self::KVM_ENOSYS => "KVM_ENOSYS",
        }
    }
}

impl fmt::Display for KvmErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h12_einval_is_1_in_2007_and_22_today() {
        assert_eq!(ParaErrno::KVM_EINVAL.code(), 1);
        assert_eq!(ParaErrno::KVM_EINVAL.as_ret(), 0xffff_ffff);
        assert_eq!(KvmErrno::KVM_EINVAL.code(), 22);
        assert_eq!(KvmErrno::KVM_EPERM.code(), 1);
    }

    #[test]
    fn h12_todays_numbers_are_those_of_kvm_para_h() {
        let codes = KvmErrno::ALL.map(KvmErrno::code);
        assert_eq!(codes, [1, 5, 7, 11, 14, 22, 95, 1000]);
        assert_eq!(KvmErrno::KVM_ENOSYS.as_ret(), 0xffff_ffff_ffff_fc18);
    }

    #[test]
    fn h12_an_error_comes_back_from_its_result() {
        for errno in KvmErrno::ALL {
            assert_eq!(KvmErrno::from_ret(errno.as_ret()), Some(errno));
            assert_eq!(KvmErrno::from_ret(u64::from(errno.code())), None);
        }
        assert_eq!(KvmErrno::from_ret(0), None);
    }
}
