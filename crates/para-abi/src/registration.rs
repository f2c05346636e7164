// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The result of a registration, as the guest sees it.

use core::fmt;

use crate::{PARA_PRESET, ParaStatePayload};

/// The WRMSR of [`MSR_KVM_API_MAGIC`](crate::MSR_KVM_API_MAGIC) raised #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpFault;

impl fmt::Display for GpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WRMSR raised #GP(0)")
    }
}

impl core::error::Error for GpFault {}

/// What a guest knows about its registration after the WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// This vCPU is registered: the stub is patched.
    Registered {
        /// The host's API version.
        host_version: u32,
    },
    /// There is a host, but it refused: the guest is too new for it, or it can't patch the stub's address.
    /// An earlier registration is unchanged.
    Refused {
        /// The host's API version. If it is below the guest's, the guest is too new.
        host_version: u32,
        /// The host's error, `-KVM_EINVAL` in 32 bits.
        ret: u32,
    },
    /// #GP: no host of this ABI, or the page's address is misaligned or isn't memory.
    Fault,
    /// The write had no effect on the page. Either the host ignores unknown MSRs (hole H15), or it
    /// was given another page's address (hole H14).
    Swallowed,
}

impl Registration {
    /// Classifies a registration: `wrmsr` is the result of the instruction, `after` the page after it.
    ///
    /// `host_version` decides whether a host acted, because a refusal leaves `ret` equal to the guest's own
    /// preset. The result is only right if the guest preset both fields to [`PARA_PRESET`].
    ///
    /// ```
    /// use para_abi::{GpFault, ParaStatePayload, Registration};
    ///
    /// let preset = ParaStatePayload::new(0x20_0000);
    /// assert_eq!(Registration::classify(Err(GpFault), preset), Registration::Fault);
    /// assert_eq!(Registration::classify(Ok(()), preset), Registration::Swallowed);
    ///
    /// let refused = ParaStatePayload { host_version: 1, ..preset };
    /// assert!(matches!(Registration::classify(Ok(()), refused), Registration::Refused { host_version: 1, .. }));
    ///
    /// let registered = ParaStatePayload { ret: 0, ..refused };
    /// assert!(Registration::classify(Ok(()), registered).is_registered());
    /// ```
    pub const fn classify(wrmsr: Result<(), GpFault>, after: ParaStatePayload) -> Self {
        let ParaStatePayload {
            host_version, ret, ..
        } = after;
        match wrmsr {
            Err(GpFault) => Self::Fault,
            Ok(()) if host_version == PARA_PRESET => Self::Swallowed,
            Ok(()) if ret == 0 => Self::Registered { host_version },
            Ok(()) => Self::Refused { host_version, ret },
        }
    }

    /// Whether calls now reach the host.
    pub const fn is_registered(self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// The version of the host, `None` if there is no host of this ABI. A guest can probe for it by
    /// registering with `guest_version` [`u32::MAX`], which is always refused and has no side effects.
    pub const fn host_version(self) -> Option<u32> {
        match self {
            Self::Registered { host_version } | Self::Refused { host_version, .. } => {
                Some(host_version)
            }
            Self::Fault | Self::Swallowed => None,
        }
    }
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered { host_version } => {
                write!(f, "registered with a host of version {host_version}")
            }
            Self::Refused { host_version, ret } => {
                write!(
                    f,
                    "refused with {} by a host of version {host_version}",
                    *ret as i32
                )
            }
            Self::Fault => f.write_str(
                "no para host, or one that rejects the page's address: WRMSR raised #GP(0)",
            ),
            Self::Swallowed => {
                f.write_str("no para host: WRMSR was ignored and the page is untouched")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::ParaErrno;

    fn after(host_version: u32, ret: u32) -> Registration {
        let page = ParaStatePayload {
            host_version,
            ret,
            ..ParaStatePayload::new(0x1000)
        };
        Registration::classify(Ok(()), page)
    }

    #[test]
    fn r5_host_version_alone_proves_a_host() {
        assert_eq!(
            after(1, PARA_PRESET),
            Registration::Refused {
                host_version: 1,
                ret: PARA_PRESET
            }
        );
        assert_eq!(after(PARA_PRESET, PARA_PRESET), Registration::Swallowed);
        assert_eq!(after(PARA_PRESET, 0), Registration::Swallowed);
    }

    #[test]
    fn r6_a_refusal_is_no_fault() {
        let refused = after(1, ParaErrno::KVM_EINVAL.as_ret());
        assert!(!refused.is_registered());
        assert_eq!(refused.host_version(), Some(1));
        assert_eq!(
            refused.to_string(),
            "refused with -1 by a host of version 1"
        );
    }

    #[test]
    fn r8_ret_0_is_registered() {
        assert_eq!(after(1, 0), Registration::Registered { host_version: 1 });
        assert_eq!(after(7, 0).host_version(), Some(7));
    }

    #[test]
    fn r3_a_fault_counts_more_than_the_page() {
        let page = ParaStatePayload {
            host_version: 1,
            ret: 0,
            ..ParaStatePayload::new(0)
        };
        assert_eq!(
            Registration::classify(Err(GpFault), page),
            Registration::Fault
        );
        assert_eq!(Registration::Fault.host_version(), None);
    }

    #[test]
    fn h15_a_swallowed_write_is_no_host() {
        let untouched = Registration::classify(Ok(()), ParaStatePayload::new(0x1000));
        assert_eq!(untouched, Registration::Swallowed);
        assert_eq!(untouched.host_version(), None);
    }
}
