// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM's MSR filter (`KVM_X86_SET_MSR_FILTER`): the rules of all users, compiled into the one filter of a VM.
//!
//! KVM takes a whole filter at a time, of at most 16 ranges, each with one bitmap of at most 0x3000 MSRs, and
//! asks the first range that matches index and direction. So one place must know what every part of a VMM
//! wants: [`MsrFilterBuilder`] collects that, [`MsrFilterBuilder::compile`] finds ranges, [`MsrFilter`] is the
//! result, which can be asked and, with feature `kvm`, installed. [`FilterError`] is what can go wrong with either.
//!
//! ```
//! use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
//!
//! let filter = MsrFilterBuilder::new(FilterDefault::Allow)
//!     .deny(0x8765_5678, Access::Both) // user space answers for it
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
//! - MSR 0xffffffff: KVM computes the end of a range in 32 bits, so a range that should hold it matches nothing.
//! - What doesn't go through RDMSR and WRMSR: SYSENTER, SWAPGS, RDTSCP, the host's `KVM_GET_MSRS` and
//!   `KVM_SET_MSRS`; and a fast path for IA32_TSC_DEADLINE.
//!
//! A denial of the first two would be void, so [`MsrFilterBuilder::compile`] refuses it, also where a default of deny
//! says it: such a filter allows the x2APIC's MSRs by name, as [`profile::LINUX`](crate::profile::LINUX) does.
//! [`MsrFilterBuilder::compile_lenient`] takes it, for rules that a VMM passes on, and
//! [`MsrFilter::uncovered`] lists it.

mod compile;
mod range;

use std::fmt;

pub use range::{FilterRange, RangeError};

use crate::MsrRange;

/// Most ranges of a filter (`KVM_MSR_FILTER_MAX_RANGES`).
pub const MAX_RANGES: usize = 16;
/// Most bytes of a range's bitmap (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
pub const MAX_BITMAP_BYTES: usize = 0x600;
/// Most MSRs of a range: one bit each.
pub const MAX_RANGE_MSRS: u32 = MAX_BITMAP_BYTES as u32 * 8;
/// The x2APIC's MSRs, whose accesses KVM never filters.
pub const X2APIC: MsrRange = match MsrRange::new(0x800, 0x8ff) {
    Ok(range) => range,
    Err(_) => MsrRange::ALL,
};
/// The MSR that no range can hold, see the [module](self)'s documentation.
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
    /// Whether RDMSR is meant.
    pub const fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether WRMSR is meant.
    pub const fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }

    /// KVM's flags of a range: `KVM_MSR_FILTER_READ` (1), `KVM_MSR_FILTER_WRITE` (2).
    pub const fn flags(self) -> u32 {
        self.reads() as u32 | (self.writes() as u32) << 1
    }

    /// The direction that KVM's flags mean; `None` for no flag and for flags that KVM refuses.
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

/// Why there is no such filter, or why it isn't in place: in each case KVM would refuse it or do something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// There is no way to do it with 16 ranges.
    #[error(
        "KVM's MSR filter has 16 ranges of up to 0x3000 MSRs, too few from MSR {first_left:#x} on: \
         turn the default around, or give the owners MSRs that lie closer together"
    )]
    TooManyRanges {
        /// The first MSR that the 16 ranges don't reach.
        first_left: u32,
    },
    /// Accesses should be denied, by name or by default, that KVM lets through.
    #[error("{0}: allow these accesses, or leave them out of what is denied")]
    Void(Uncovered),
    /// KVM takes no filter that denies everything by having no range.
    #[error("KVM refuses a filter that denies by default and has no range, add a range")]
    NothingButDeny,
    /// A range of given ranges is one too many.
    #[error("{count} ranges are more than the 16 of KVM's MSR filter, merge some")]
    Ranges {
        /// How many there are.
        count: usize,
    },
    /// This KVM lacks a capability.
    #[cfg(feature = "kvm")]
    #[error("this KVM lacks {0}, which came with Linux 5.10: update the host's kernel")]
    Lacks(&'static str),
    /// MSR exits weren't switched on.
    #[cfg(feature = "kvm")]
    #[error(
        "KVM refused MSR exits for the reasons {reasons:#x} ({source}): ask for fewer, and let seccomp pass \
         KVM_ENABLE_CAP"
    )]
    Enable {
        /// The mask.
        reasons: u32,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The filter wasn't taken.
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

/// What somebody wants of some accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    range: MsrRange,
    access: Access,
    allow: bool,
}

/// Collects what all parts of a VMM want of the VM's one MSR filter. The order of calls doesn't matter:
///
/// 1. An access that anybody wants denied is denied: whoever answers for an MSR in user space must see it.
/// 2. Otherwise, one that anybody wants allowed is allowed.
/// 3. Otherwise, the default applies.
#[derive(Clone, Debug)]
pub struct MsrFilterBuilder {
    default: FilterDefault,
    rules: Vec<Rule>,
}

impl MsrFilterBuilder {
    /// No rules yet, only a default.
    pub const fn new(default: FilterDefault) -> Self {
        MsrFilterBuilder {
            default,
            rules: Vec::new(),
        }
    }

    /// The accesses don't reach KVM: they exit to user space.
    #[must_use]
    pub fn deny(self, range: impl Into<MsrRange>, access: Access) -> Self {
        self.rule(range.into(), access, false)
    }

    /// KVM handles the accesses, unless somebody wants them denied.
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

    /// Finds ranges that do what is wanted, neighbours merged into few of them.
    ///
    /// # Errors
    /// It takes more than 16 ranges, or [`FilterError::Void`]: KVM would let accesses through that should be denied.
    ///
    /// ```
    /// use para_msr::filter::{Access, FilterDefault, FilterError, MsrFilterBuilder, X2APIC};
    ///
    /// let filter = MsrFilterBuilder::new(FilterDefault::Deny).allow(0x10, Access::Both);
    /// let Err(FilterError::Void(gap)) = filter.compile() else { panic!() };
    /// assert_eq!(gap.range, X2APIC);
    /// // "I know."
    /// assert!(filter.allow(X2APIC, Access::Both).compile().is_ok());
    /// ```
    pub fn compile(&self) -> Result<MsrFilter, FilterError> {
        let filter = self.compile_lenient()?;
        match filter.uncovered.iter().find(|gap| gap.allowed) {
            Some(gap) => Err(FilterError::Void(*gap)),
            None => Ok(filter),
        }
    }

    /// The same, but what KVM won't do is no error: [`MsrFilter::uncovered`] lists it.
    ///
    /// # Errors
    /// It takes more than 16 ranges.
    pub fn compile_lenient(&self) -> Result<MsrFilter, FilterError> {
        compile::compile(self.default, &self.rules)
    }
}

/// Accesses that were to be treated otherwise than KVM will treat them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uncovered {
    /// The MSRs: part of [`X2APIC`], or [`LAST_MSR`].
    pub range: MsrRange,
    /// The direction.
    pub access: Access,
    /// Whether KVM lets these accesses through, though they should be denied; otherwise it is the other way
    /// round.
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

/// A filter that KVM takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFilter {
    default: FilterDefault,
    ranges: Vec<FilterRange>,
    uncovered: Vec<Uncovered>,
}

impl MsrFilter {
    /// A filter of given ranges, which KVM asks in this order.
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

    /// One MSR is denied, no other than KVM can, and all else allowed.
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

    /// What happens to accesses that no range matches.
    pub const fn default_action(&self) -> FilterDefault {
        self.default
    }

    /// The ranges, in KVM's order.
    pub fn ranges(&self) -> &[FilterRange] {
        &self.ranges
    }

    /// What a compiled filter was asked for and can't do. Log these once. After [`MsrFilterBuilder::compile`] it is no
    /// more than an allowance of MSR 0xffffffff under a default of deny.
    pub fn uncovered(&self) -> &[Uncovered] {
        &self.uncovered
    }

    /// Whether KVM handles RDMSR of this MSR itself, by the rules that the module describes.
    pub fn allows_read(&self, index: u32) -> bool {
        self.allows(index, Access::reads)
    }

    /// Whether KVM handles WRMSR of this MSR itself, by the rules that the module describes.
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
