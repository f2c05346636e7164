// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM's MSR filter (`KVM_X86_SET_MSR_FILTER`): the rules of all users, compiled into the one filter of a VM.
//!
//! KVM takes a whole filter at a time. It has at most 16 ranges, each with a bitmap of at most 0x3000 MSRs, and the
//! first range that matches index and direction decides. So one place must know the rules of every part of a VMM.
//! [`MsrFilterBuilder`] collects them and [`MsrFilterBuilder::compile`] finds the ranges. The resulting
//! [`MsrFilter`] can be queried and, with feature `kvm`, installed. [`FilterError`] covers errors of both.
//!
//! ```
//! use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
//!
//! let filter = MsrFilterBuilder::new(FilterDefault::Allow)
//!     .deny(0x8765_5678, Access::Both) // user space handles it
//!     .deny(0x35, Access::Read)
//!     .compile()?;
//! assert!(!filter.allows_write(0x8765_5678));
//! assert!(!filter.allows_read(0x35) && filter.allows_write(0x35));
//! assert_eq!(filter.ranges().len(), 2);
//! # Ok::<(), para_msr::filter::FilterError>(())
//! ```
//!
//! # What no filter covers
//!
//! - MSRs 0x800 to 0x8ff, the x2APIC's: KVM lets every access through (`Documentation/virt/kvm/api.rst`, 4.136).
//! - MSR 0xffffffff: KVM computes the end of a range in 32 bits, so a range that contains it matches nothing.
//! - Accesses other than RDMSR and WRMSR: SYSENTER, SWAPGS, RDTSCP, and the host's `KVM_GET_MSRS` and `KVM_SET_MSRS`.
//!   KVM also has a fast path for IA32_TSC_DEADLINE that skips the filter.
//!
//! A denial of the first two would have no effect, so [`MsrFilterBuilder::compile`] refuses it. That includes a
//! denial by default: such a filter must allow the x2APIC's MSRs explicitly, as
//! [`profile::LINUX`](crate::profile::LINUX) does. [`MsrFilterBuilder::compile_lenient`] accepts it, for rules that
//! come from a user, and [`MsrFilter::uncovered`] lists it.

mod compile;
mod range;

use std::fmt;

pub use range::{FilterRange, RangeError};

use crate::MsrRange;

/// Maximum number of ranges in a filter (`KVM_MSR_FILTER_MAX_RANGES`).
pub const MAX_RANGES: usize = 16;
/// Maximum size of a range's bitmap in bytes (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
pub const MAX_BITMAP_BYTES: usize = 0x600;
/// Maximum number of MSRs in a range, one bit each.
pub const MAX_RANGE_MSRS: u32 = MAX_BITMAP_BYTES as u32 * 8;
/// The x2APIC's MSRs, whose accesses KVM never filters.
pub const X2APIC: MsrRange = match MsrRange::new(0x800, 0x8ff) {
    Ok(range) => range,
    Err(_) => MsrRange::ALL,
};
/// The MSR that no range can contain, see the [module](self).
pub const LAST_MSR: MsrRange = MsrRange::single(u32::MAX);

/// What happens to an access that no range of a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FilterDefault {
    /// KVM handles it (`KVM_MSR_FILTER_DEFAULT_ALLOW`).
    Allow,
    /// It is denied: an exit to user space, or #GP (`KVM_MSR_FILTER_DEFAULT_DENY`).
    Deny,
}

/// The direction of accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Access {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
    /// RDMSR and WRMSR.
    Both,
}

impl Access {
    /// Whether this includes RDMSR.
    pub const fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether this includes WRMSR.
    pub const fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }

    /// KVM's flags of a range: `KVM_MSR_FILTER_READ` (1), `KVM_MSR_FILTER_WRITE` (2).
    pub const fn flags(self) -> u32 {
        self.reads() as u32 | (self.writes() as u32) << 1
    }

    /// The direction for KVM's flags, `None` for no flag and for flags that KVM refuses.
    pub const fn from_flags(flags: u32) -> Option<Self> {
        match flags {
            1 => Some(Access::Read),
            2 => Some(Access::Write),
            3 => Some(Access::Both),
            _ => None,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::Both => "read and write",
        })
    }
}

/// Why a filter can't be compiled or installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The rules need more than 16 ranges.
    #[error(
        "KVM's MSR filter has only 16 ranges of up to 0x3000 MSRs, too few from MSR {first_left:#x} on: \
         use the opposite default, or MSRs that are closer together"
    )]
    TooManyRanges {
        /// The first MSR that the 16 ranges don't reach.
        first_left: u32,
    },
    /// KVM lets accesses through that the rules or the default deny.
    #[error("{0}: allow these accesses, or leave them out of what is denied")]
    Void(Uncovered),
    /// KVM refuses a filter that denies by default and has no range.
    #[error("KVM refuses a filter that denies by default and has no range, add a range")]
    NothingButDeny,
    /// There are too many ranges.
    #[error("{count} ranges are more than the 16 of KVM's MSR filter, merge some")]
    Ranges {
        /// How many there are.
        count: usize,
    },
    /// This KVM lacks a capability.
    #[cfg(feature = "kvm")]
    #[error("this KVM lacks {0}, which came with Linux 5.10: update the host's kernel")]
    Lacks(&'static str),
    /// KVM didn't enable MSR exits.
    #[cfg(feature = "kvm")]
    #[error(
        "KVM refused MSR exits for the reasons {reasons:#x} ({source}): ask for fewer, and let seccomp pass \
         KVM_ENABLE_CAP"
    )]
    Enable {
        /// The mask of exit reasons.
        reasons: u32,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// KVM refused the filter.
    #[cfg(feature = "kvm")]
    #[error(
        "KVM refused an MSR filter of {ranges} ranges ({source}): check that the host has memory for its bitmaps, and \
         that seccomp passes KVM_X86_SET_MSR_FILTER"
    )]
    Install {
        /// How many ranges it has.
        ranges: usize,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// One owner's wish for a range of accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    range: MsrRange,
    access: Access,
    allow: bool,
}

/// Collects the rules of all parts of a VMM for the VM's one MSR filter. The order of calls doesn't matter:
///
/// 1. An access that any rule denies is denied, so that its handler in user space sees it.
/// 2. Otherwise, an access that any rule allows is allowed.
/// 3. Otherwise, the default applies.
#[derive(Clone, Debug)]
pub struct MsrFilterBuilder {
    default: FilterDefault,
    rules: Vec<Rule>,
}

impl MsrFilterBuilder {
    /// A builder without rules.
    pub const fn new(default: FilterDefault) -> Self {
        MsrFilterBuilder {
            default,
            rules: Vec::new(),
        }
    }

    /// Denies accesses: KVM doesn't handle them, they exit to user space.
    #[must_use]
    pub fn deny(self, range: impl Into<MsrRange>, access: Access) -> Self {
        self.rule(range.into(), access, false)
    }

    /// Allows accesses: KVM handles them, unless another rule denies them.
    #[must_use]
    pub fn allow(self, range: impl Into<MsrRange>, access: Access) -> Self {
        self.rule(range.into(), access, true)
    }

    fn rule(mut self, range: MsrRange, access: Access, allow: bool) -> Self {
        self.rules.push(Rule {
            range,
            access,
            allow,
        });
        self
    }

    /// Finds a small set of ranges that implement the rules.
    ///
    /// # Errors
    /// The rules need more than 16 ranges, or deny accesses that KVM lets through anyway ([`FilterError::Void`]).
    ///
    /// ```
    /// use para_msr::filter::{Access, FilterDefault, FilterError, MsrFilterBuilder, X2APIC};
    ///
    /// let filter = MsrFilterBuilder::new(FilterDefault::Deny).allow(0x10, Access::Both);
    /// let Err(FilterError::Void(gap)) = filter.compile() else { panic!() };
    /// assert_eq!(gap.range, X2APIC);
    /// // Allow them explicitly.
    /// assert!(filter.allow(X2APIC, Access::Both).compile().is_ok());
    /// ```
    pub fn compile(&self) -> Result<MsrFilter, FilterError> {
        let filter = self.compile_lenient()?;
        match filter.uncovered.iter().find(|gap| gap.allowed) {
            Some(gap) => Err(FilterError::Void(*gap)),
            None => Ok(filter),
        }
    }

    /// The same, but [`MsrFilter::uncovered`] lists what KVM won't do instead of an error.
    ///
    /// # Errors
    /// The rules need more than 16 ranges.
    pub fn compile_lenient(&self) -> Result<MsrFilter, FilterError> {
        compile::compile(self.default, &self.rules)
    }
}

/// Accesses that KVM won't treat as the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uncovered {
    /// The MSRs: part of [`X2APIC`], or [`LAST_MSR`].
    pub range: MsrRange,
    /// The direction.
    pub access: Access,
    /// `true` if KVM lets them through although they should be denied, `false` if KVM denies them although
    /// they should be allowed.
    pub allowed: bool,
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Uncovered { range, access, .. } = self;
        let fate = match self.allowed {
            true => "allows",
            false => "denies",
        };
        write!(
            f,
            "KVM {fate} {access} of MSR {range} whatever its filter says"
        )
    }
}

/// A filter that KVM accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFilter {
    default: FilterDefault,
    ranges: Vec<FilterRange>,
    uncovered: Vec<Uncovered>,
}

impl MsrFilter {
    /// A filter with these ranges, which KVM checks in this order.
    ///
    /// # Errors
    /// There are more than 16, or none with [`FilterDefault::Deny`].
    pub fn from_ranges(
        default: FilterDefault,
        ranges: Vec<FilterRange>,
    ) -> Result<Self, FilterError> {
        if ranges.len() > MAX_RANGES {
            return Err(FilterError::Ranges {
                count: ranges.len(),
            });
        }
        if ranges.is_empty() && default == FilterDefault::Deny {
            return Err(FilterError::NothingButDeny);
        }
        Ok(MsrFilter {
            default,
            ranges,
            uncovered: Vec::new(),
        })
    }

    /// Denies one MSR and allows all others. It must be one that KVM filters.
    #[cfg(feature = "para")]
    pub(crate) fn denying(index: u32) -> Self {
        MsrFilter {
            default: FilterDefault::Allow,
            ranges: FilterRange::from_fn(index, Access::Both, |_| false)
                .into_iter()
                .collect(),
            uncovered: Vec::new(),
        }
    }

    /// The default for accesses that no range matches.
    pub const fn default_action(&self) -> FilterDefault {
        self.default
    }

    /// The ranges, in KVM's order.
    pub fn ranges(&self) -> &[FilterRange] {
        &self.ranges
    }

    /// Rules that a compiled filter can't implement. Log them once. After [`MsrFilterBuilder::compile`] that can only
    /// be MSR 0xffffffff, allowed under a default of deny.
    pub fn uncovered(&self) -> &[Uncovered] {
        &self.uncovered
    }

    /// Whether KVM handles RDMSR of this MSR itself, as the [module](self) describes.
    pub fn allows_read(&self, index: u32) -> bool {
        self.allows(index, Access::reads)
    }

    /// Whether KVM handles WRMSR of this MSR itself, as the [module](self) describes.
    pub fn allows_write(&self, index: u32) -> bool {
        self.allows(index, Access::writes)
    }

    fn allows(&self, index: u32, direction: impl Fn(Access) -> bool) -> bool {
        if X2APIC.contains(index) {
            return true;
        }
        self.ranges
            .iter()
            .filter(|range| direction(range.access()))
            .find_map(|range| range.bit(index))
            .unwrap_or(self.default == FilterDefault::Allow)
    }
}
