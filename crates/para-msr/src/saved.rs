// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saves and restores MSRs. A rejected MSR doesn't end a restore, but is reported.
//!
//! `KVM_GET_MSRS` and `KVM_SET_MSRS` take a list and stop at the first MSR that they reject; the rest is
//! silently skipped. Which MSRs KVM accepts depends on the processor, the kernel, module parameters and
//! CPUID. So a simple VMM either fails because of an MSR that no guest needs, or loses one that the guest
//! does need. Here each MSR has a class:
//!
//! - [`Required`](MsrClass::Required): the guest breaks without it. Its rejection is reported as an error.
//! - [`Skippable`](MsrClass::Skippable): its rejection is only listed.
//! - [`Denied`](MsrClass::Denied): not saved, and not restored even if a state has it. User space handles it, it
//!   is a command rather than a value, or another ioctl covers it.
//!
//! [`MsrPolicy::save`] and [`MsrPolicy::restore`] always process all the others, and report what failed.
//!
//! ```
//! use para_msr::saved::{MsrAccess, MsrPolicy, MsrValue};
//!
//! /// A KVM with two MSRs.
//! struct Host([MsrValue; 2]);
//!
//! impl MsrAccess for Host {
//!     type Error = std::convert::Infallible;
//!     fn get(&mut self, values: &mut [MsrValue]) -> Result<usize, Self::Error> {
//!         Ok(values.iter_mut().map_while(|v| self.0.iter().find(|m| m.index == v.index).map(|m| *v = *m)).count())
//!     }
//!     fn set(&mut self, values: &[MsrValue]) -> Result<usize, Self::Error> {
//!         Ok(values.iter().map_while(|v| self.0.iter_mut().find(|m| m.index == v.index).map(|m| *m = *v)).count())
//!     }
//! }
//!
//! let mut host = Host([0x10, 0xc000_0080].map(|index| MsrValue { index, value: 1 }));
//! let policy = MsrPolicy::linux();
//! let saved = policy.save(&mut host, &[0x10, 0x122, 0xc000_0080])?;
//! assert_eq!((saved.values.len(), saved.skipped), (2, vec![0x122]));
//!
//! let forged = [MsrValue { index: 0x122, value: 0 }, MsrValue { index: 0x10, value: 9 }];
//! let report = policy.restore(&mut host, &forged)?;
//! assert_eq!((report.written, report.skipped.len()), (1, 1));
//! report.check()?; // No required MSR is missing.
//! assert_eq!(host.0[0].value, 9);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # With `vcpu-loop`
//!
//! `vcpu-loop` saves a vCPU's MSRs with the rest of its state, in the right order, and lists those that KVM
//! rejected (`KvmVcpu::skipped_msrs`). The crates don't depend on each other. Pass [`MsrPolicy::indices`]
//! to `KvmHost::with_msrs`, and the list to [`MsrPolicy::judge`], which decides whether the guest may run.
//! A VMM with its own state format uses [`MsrPolicy::save`] and [`MsrPolicy::restore`].

use crate::MsrRange;

/// Maximum number of MSRs in one call of an [`MsrAccess`]. KVM refuses 256 (`MAX_IO_MSRS`) with `E2BIG`.
pub const MAX_BATCH: usize = 255;

/// Maximum number of MSRs in a saved state, ten times as many as KVM knows.
pub const MAX_SAVED: usize = 4096;

/// `IA32_TSC_DEADLINE` (Intel SDM, volume 4, table 2-2).
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// An MSR and its value, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsrValue {
    /// The MSR.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// Access to one vCPU's MSRs, with the semantics of KVM.
pub trait MsrAccess {
    /// A failure of the host, not of one MSR.
    type Error: std::error::Error + 'static;

    /// Reads the MSRs in order, up to the first that can't be read. Returns how many were read.
    ///
    /// # Errors
    /// The host failed.
    fn get(&mut self, values: &mut [MsrValue]) -> Result<usize, Self::Error>;

    /// Writes the MSRs in order, up to the first that is rejected. Returns how many were written.
    ///
    /// # Errors
    /// The host failed.
    fn set(&mut self, values: &[MsrValue]) -> Result<usize, Self::Error>;
}

/// How much an MSR matters, see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum MsrClass {
    /// The guest breaks without it.
    Required,
    /// The guest works without it, or a host that lacks it can't have offered it.
    Skippable,
    /// Neither saved nor restored.
    Denied,
}

/// Why a save or restore failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError<E: std::error::Error + 'static> {
    /// The host failed, rather than one MSR.
    #[error(
        "the host failed to access MSR {index:#x} and the following, check the vCPU's file descriptor"
    )]
    Host {
        /// The first MSR of the call.
        index: u32,
        /// Why.
        source: E,
    },
    /// The state has too many MSRs.
    #[error(
        "the saved state has {count} MSRs, more than the maximum of 4096, check where it comes from"
    )]
    TooMany {
        /// The number of MSRs.
        count: usize,
    },
}

/// Required MSRs are missing: the guest would break.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host rejected MSRs that the guest needs: {}; restore it on a host like the one it was saved on",
    list(indices)
)]
#[non_exhaustive]
pub struct RequiredMissing {
    /// The missing MSRs.
    pub indices: Vec<u32>,
}

fn list(indices: &[u32]) -> String {
    let words: Vec<String> = indices.iter().map(|n| format!("{n:#x}")).collect();
    words.join(", ")
}

/// The result of a save.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// The saved values.
    pub values: Vec<MsrValue>,
    /// Skippable MSRs that couldn't be read.
    pub skipped: Vec<u32>,
    /// Required MSRs that couldn't be read.
    pub missing: Vec<u32>,
}

/// The result of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The number of MSRs written.
    pub written: usize,
    /// Skippable MSRs that were rejected.
    pub skipped: Vec<MsrValue>,
    /// Required MSRs that were rejected.
    pub missing: Vec<MsrValue>,
    /// Denied MSRs in the state, which were not written.
    pub denied: Vec<u32>,
}

impl SaveReport {
    /// # Errors
    /// A required MSR couldn't be read.
    pub fn check(&self) -> Result<(), RequiredMissing> {
        required(self.missing.clone())
    }
}

impl RestoreReport {
    /// # Errors
    /// A required MSR was rejected. The others were written anyway.
    pub fn check(&self) -> Result<(), RequiredMissing> {
        required(self.missing.iter().map(|msr| msr.index).collect())
    }
}

fn required(indices: Vec<u32>) -> Result<(), RequiredMissing> {
    match indices.is_empty() {
        true => Ok(()),
        false => Err(RequiredMissing { indices }),
    }
}

/// Assigns classes to MSRs. The last rule that names an MSR applies; without a rule it is skippable.
///
/// ```
/// use para_msr::saved::{MsrClass, MsrPolicy};
///
/// // User space handles the 2007 API's MSR, and this guest needs its protection keys.
/// let policy = MsrPolicy::linux().deny(0x8765_5678).require(0x6e1);
/// assert_eq!(policy.class(0x6e1), MsrClass::Required);
/// assert_eq!(policy.class(0x8765_5678), MsrClass::Denied);
/// assert_eq!(policy.class(0x1234), MsrClass::Skippable);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MsrPolicy {
    rules: Vec<(MsrRange, MsrClass)>,
}

impl MsrPolicy {
    /// A policy without rules: every MSR is skippable.
    pub const fn new() -> Self {
        MsrPolicy { rules: Vec::new() }
    }

    /// Requires what a 64-bit Linux guest needs on any processor: TSC, system calls, PAT, MTRR default,
    /// EFER. Denies the commands PRED_CMD and FLUSH_CMD, the microcode load triggers, and the x2APIC's
    /// MSRs, which `KVM_GET_LAPIC` covers.
    pub fn linux() -> Self {
        // Intel SDM, volume 4, table 2-2; AMD APM, volume 2, appendix A.
        const REQUIRED: [MsrRange; 6] = [
            MsrRange::single(0x10),         // IA32_TIME_STAMP_COUNTER
            span(0x174, 0x176),             // IA32_SYSENTER_CS, ESP, EIP
            MsrRange::single(0x277),        // IA32_PAT
            MsrRange::single(0x2ff),        // IA32_MTRR_DEF_TYPE
            span(0xc000_0080, 0xc000_0084), // EFER, STAR, LSTAR, CSTAR, FMASK
            MsrRange::single(0xc000_0102),  // KERNEL_GS_BASE
        ];
        const DENIED: [MsrRange; 5] = [
            MsrRange::single(0x49),        // IA32_PRED_CMD, write only
            MsrRange::single(0x10b),       // IA32_FLUSH_CMD, write only
            MsrRange::single(0x79),        // IA32_BIOS_UPDT_TRIG, write only
            span(0x800, 0x8ff),            // x2APIC
            MsrRange::single(0xc001_0020), // PATCH_LOADER, write only
        ];
        let policy = REQUIRED.into_iter().fold(MsrPolicy::new(), Self::require);
        DENIED.into_iter().fold(policy, Self::deny)
    }

    /// Makes MSRs required.
    #[must_use]
    pub fn require(self, range: impl Into<MsrRange>) -> Self {
        self.rule(range.into(), MsrClass::Required)
    }

    /// Makes MSRs skippable.
    #[must_use]
    pub fn skip(self, range: impl Into<MsrRange>) -> Self {
        self.rule(range.into(), MsrClass::Skippable)
    }

    /// Denies MSRs, so that they are neither saved nor restored. Mainly for MSRs that user space handles.
    #[must_use]
    pub fn deny(self, range: impl Into<MsrRange>) -> Self {
        self.rule(range.into(), MsrClass::Denied)
    }

    fn rule(mut self, range: MsrRange, class: MsrClass) -> Self {
        self.rules.push((range, class));
        self
    }

    /// An MSR's class.
    pub fn class(&self, index: u32) -> MsrClass {
        let rule = self
            .rules
            .iter()
            .rev()
            .find(|(range, _)| range.contains(index));
        rule.map_or(MsrClass::Skippable, |(_, class)| *class)
    }

    /// The MSRs to save, from a list such as KVM's (`KVM_GET_MSR_INDEX_LIST`): each once, in the given order,
    /// without denied ones.
    pub fn indices(&self, listed: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let mut seen = std::collections::BTreeSet::new();
        let wanted = |index: &u32| self.class(*index) != MsrClass::Denied && seen.insert(*index);
        listed.into_iter().filter(wanted).collect()
    }

    /// Checks whether a guest may run although the host rejected these MSRs.
    ///
    /// # Errors
    /// One of them is required.
    pub fn judge(&self, rejected: &[u32]) -> Result<(), RequiredMissing> {
        let needed = |index: &u32| self.class(*index) == MsrClass::Required;
        required(rejected.iter().copied().filter(needed).collect())
    }

    /// Reads the MSRs that aren't denied.
    ///
    /// # Errors
    /// The host failed, or the list is longer than [`MAX_SAVED`]. An MSR that can't be read is reported,
    /// not an error.
    pub fn save<A: MsrAccess>(
        &self,
        host: &mut A,
        indices: &[u32],
    ) -> Result<SaveReport, SavedError<A::Error>> {
        let indices = self.indices(indices.iter().copied());
        limit(indices.len())?;
        let mut values: Vec<MsrValue> = indices
            .into_iter()
            .map(|index| MsrValue { index, value: 0 })
            .collect();
        let mut report = SaveReport::default();
        let mut rest = values.as_mut_slice();
        while !rest.is_empty() {
            let (batch, _) = rest.split_at_mut(rest.len().min(MAX_BATCH));
            let done = host
                .get(batch)
                .map_err(failed(batch.first()))?
                .min(batch.len());
            report
                .values
                .extend_from_slice(batch.get(..done).unwrap_or(&[]));
            let unreadable = batch.get(done).map(|msr| msr.index);
            match unreadable.map(|index| (index, self.class(index))) {
                Some((index, MsrClass::Required)) => report.missing.push(index),
                Some((index, _)) => report.skipped.push(index),
                None => {}
            }
            let next = done + usize::from(unreadable.is_some());
            rest = rest.get_mut(next..).unwrap_or(&mut []);
        }
        Ok(report)
    }

    /// The order in which a state is written: as saved, without denied MSRs, and with the TSC deadline
    /// last because it counts from the restored TSC.
    pub fn plan(&self, values: &[MsrValue]) -> Vec<MsrValue> {
        let mut plan: Vec<MsrValue> = values.to_vec();
        plan.retain(|msr| self.class(msr.index) != MsrClass::Denied);
        plan.sort_by_key(|msr| msr.index == MSR_TSC_DEADLINE);
        plan
    }

    /// Writes all MSRs that the host accepts. Rejected ones are tried again after the others,
    /// because some MSRs are checked against others.
    ///
    /// # Errors
    /// The host failed, or the state has more than [`MAX_SAVED`] MSRs. A rejected MSR is reported, not an
    /// error: see [`RestoreReport::check`].
    pub fn restore<A: MsrAccess>(
        &self,
        host: &mut A,
        values: &[MsrValue],
    ) -> Result<RestoreReport, SavedError<A::Error>> {
        limit(values.len())?;
        let denied = |msr: &&MsrValue| self.class(msr.index) == MsrClass::Denied;
        let mut report = RestoreReport {
            denied: values.iter().filter(denied).map(|msr| msr.index).collect(),
            ..Default::default()
        };
        let plan = self.plan(values);
        let again = write(host, &plan)?;
        let rejected = write(host, &again)?;
        report.written = plan.len() - rejected.len();
        for msr in rejected {
            match self.class(msr.index) {
                MsrClass::Required => report.missing.push(msr),
                _ => report.skipped.push(msr),
            }
        }
        Ok(report)
    }
}

/// A range in a constant table.
const fn span(first: u32, last: u32) -> MsrRange {
    match MsrRange::new(first, last) {
        Ok(range) => range,
        Err(_) => MsrRange::single(first),
    }
}

fn limit<E: std::error::Error>(count: usize) -> Result<(), SavedError<E>> {
    match count <= MAX_SAVED {
        true => Ok(()),
        false => Err(SavedError::TooMany { count }),
    }
}

fn failed<E: std::error::Error>(first: Option<&MsrValue>) -> impl FnOnce(E) -> SavedError<E> {
    let index = first.map_or(0, |msr| msr.index);
    move |source| SavedError::Host { index, source }
}

/// Writes all MSRs and returns the rejected ones.
fn write<A: MsrAccess>(
    host: &mut A,
    values: &[MsrValue],
) -> Result<Vec<MsrValue>, SavedError<A::Error>> {
    let mut rejected = Vec::new();
    let mut rest = values;
    while !rest.is_empty() {
        let batch = rest.get(..rest.len().min(MAX_BATCH)).unwrap_or(rest);
        let done = host
            .set(batch)
            .map_err(failed(batch.first()))?
            .min(batch.len());
        rejected.extend(batch.get(done));
        rest = rest.get(batch.len().min(done + 1)..).unwrap_or(&[]);
    }
    Ok(rejected)
}
