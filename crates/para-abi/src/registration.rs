// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a registration came to, as the guest sees it.

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

/// What a guest knows after the WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// This vCPU is registered: the stub is patched.
    Registered {
        /// The host's API version.
        host_version: u32,
    },
    /// There is a host, and it said no: this guest is too new for it or the stub's address no good. What was
    /// registered before is unchanged.
    Refused {
        /// The host's API version; the guest is too new if it is below the guest's.
        host_version: u32,
        /// The host's error, `-KVM_EINVAL` in 32 bits.
        ret: u32,
    },
    /// #GP: no host of this ABI, or the page's address is misaligned or isn't memory.
    Fault,
    /// The write was swallowed: nobody touched the page. A host that ignores unknown MSRs does that
    /// (hole H15), and so does a host that was told another address (hole H14).
    Swallowed,
}

impl Registration {
    /// Tells the four apart: `wrmsr` is what the instruction did, `after` the page as it then was.
    ///
    /// `host_version` decides whether a host acted, since a refusal leaves `ret` at the guest's own preset. The
    /// page counts only if the guest had preset both fields to [`PARA_PRESET`].
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

    /// Whether calls reach the host from now on.
    pub const fn is_registered(self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Whether there is a host of this ABI, and which version it has. A guest that registers with
    /// `guest_version` [`u32::MAX`] probes for it without side effects: it is always refused.
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
                "no para host: WRMSR raised #GP(0), or it didn't like the page's address",
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
