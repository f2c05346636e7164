// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ready-made handlers for the MSRs that most VMMs emulate.
//!
//! | handler | RDMSR | WRMSR |
//! |---|---|---|
//! | [`Constant`] | one value | #GP |
//! | [`ReadOnly`] | the inner handler's | #GP |
//! | [`WriteIgnore`] | the inner handler's | dropped |
//! | [`Shadow`] | the last value written | stored; reserved bits #GP, fixed bits stay |
//! | [`PerVcpu`] | this vCPU's entry in a shared table | #GP, or stored |
//! | [`OnWrite`] | the inner handler's | the inner handler's, then calls the VMM |
//! | [`StopOnWrite`] | the inner handler's | the inner handler's, then the vCPU stops |
//! | [`LogGp`] | #GP, logged with a limit | #GP, logged with a limit |
//!
//! # The MSRs that VMMs emulate most often
//!
//! ```
//! use para_msr::handlers::{Constant, LogGp, OnWrite, PerVcpuValues, Shadow, WriteIgnore};
//! use para_msr::{MsrDispatchBuilder, MsrRange, Outcome};
//!
//! let vp_index = PerVcpuValues::new(2, |vcpu| vcpu as u64);
//! let mut msrs = MsrDispatchBuilder::new()
//!     // IA32_MISC_ENABLE: fast strings on; BTS and PEBS "unavailable" bits that a guest can't change.
//!     .insert(0x1a0, Shadow::<1>::new(0x1a0, 0x1801)?.fixed(0x1800))?
//!     // IA32_BIOS_SIGN_ID: the microcode revision in the high half. Linux writes 0 before it reads.
//!     .insert(0x8b, WriteIgnore(Constant::new(0x1_0000_0000)))?
//!     // MSR_PLATFORM_INFO: CPUID faulting (bit 31), a ratio of 20 (bits 15:8).
//!     .insert(0xce, Constant::new(1 << 31 | 20 << 8))?
//!     // MSR_CORE_THREAD_COUNT: 2 cores (bits 31:16), 2 threads (bits 15:0).
//!     .insert(0x35, Constant::new(2 << 16 | 2))?
//!     // Hyper-V's crash parameters and control: "notify" and "message" are supported (TLFS, 3.7).
//!     .insert(MsrRange::new(0x4000_0100, 0x4000_0104)?, Shadow::<5>::new(0x4000_0100, 0)?)?
//!     .insert(0x4000_0105, WriteIgnore(Constant::new(0b11 << 62)))?
//!     // MSR_KVM_MIGRATION_CONTROL: only bit 0 exists; 1 means that the guest may be migrated.
//!     .insert(0x4b56_4d08, Shadow::<1>::new(0x4b56_4d08, 1)?.reserved(!1))?
//!     // HV_X64_MSR_VP_INDEX: a value per vCPU.
//!     .insert(0x4000_0002, vp_index.handler(1))?
//!     // Logs guests that read the RAPL unit.
//!     .insert(0x606, LogGp::new("MSR_RAPL_POWER_UNIT"))?
//!     .build();
//!
//! assert_eq!(msrs.write(0x1a0, 0), Outcome::Handled(()));
//! assert_eq!(msrs.read(0x1a0), Outcome::Handled(0x1800));
//! assert_eq!(msrs.write(0x8b, 0), Outcome::Handled(()));
//! assert_eq!(msrs.read(0x8b), Outcome::Handled(0x1_0000_0000));
//! assert_eq!((msrs.read(0xce), msrs.write(0xce, 0)), (Outcome::Handled(0x8000_1400), Outcome::GpException));
//! assert_eq!(msrs.read(0x35), Outcome::Handled(0x2_0002));
//! assert_eq!(msrs.write(0x4000_0104, 0xdead), Outcome::Handled(()));
//! assert_eq!(msrs.read(0x4000_0104), Outcome::Handled(0xdead));
//! assert_eq!(msrs.write(0x4000_0105, 1 << 63), Outcome::Handled(()));
//! assert_eq!(msrs.write(0x4b56_4d08, 2), Outcome::GpException);
//! assert_eq!(msrs.write(0x4b56_4d08, 0), Outcome::Handled(()));
//! assert_eq!(msrs.read(0x4b56_4d08), Outcome::Handled(0));
//! assert_eq!(msrs.read(0x4000_0002), Outcome::Handled(1));
//! assert_eq!(msrs.read(0x606), Outcome::GpException);
//! // The crash parameters afterwards:
//! let crash = msrs.handler::<Shadow<5>>(0x4000_0100).map(|shadow| *shadow.values());
//! assert_eq!(crash, Some([0, 0, 0, 0, 0xdead]));
//! # let _ = |shadow: Shadow<1>| OnWrite::new(shadow, |_, _| ());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{MsrHandler, MsrRange, Outcome};

/// The rest of a handler whose state is all in another one, in its field `$inner`.
macro_rules! state_of {
    ($inner:tt) => {
        fn reset(&mut self) {
            self.$inner.reset();
        }
        fn save(&self, keep: &mut dyn FnMut(u32, u64)) {
            self.$inner.save(keep);
        }
        fn restore(&mut self, index: u32, value: u64) -> Outcome<()> {
            self.$inner.restore(index, value)
        }
    };
}

/// One value for every index. Writes are #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    value: u64,
}

impl Constant {
    /// Reads return `value`.
    pub const fn new(value: u64) -> Self {
        Constant { value }
    }
}

impl MsrHandler for Constant {
    fn read(&mut self, _: u32) -> Outcome<u64> {
        Outcome::Handled(self.value)
    }
    fn write(&mut self, _: u32, _: u64) -> Outcome<()> {
        Outcome::GpException
    }
}

/// Reads go to the inner handler, writes are #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOnly<H>(pub H);

impl<H: MsrHandler> MsrHandler for ReadOnly<H> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        self.0.read(index)
    }
    fn write(&mut self, _: u32, _: u64) -> Outcome<()> {
        Outcome::GpException
    }
    state_of!(0);
}

/// Reads go to the inner handler, writes succeed without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIgnore<H>(pub H);

impl<H: MsrHandler> MsrHandler for WriteIgnore<H> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        self.0.read(index)
    }
    fn write(&mut self, _: u32, _: u64) -> Outcome<()> {
        Outcome::Handled(())
    }
    state_of!(0);
}

/// `N` consecutive MSRs that read back what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow<const N: usize> {
    base: u32,
    initial: u64,
    reserved: u64,
    fixed: u64,
    values: [u64; N],
}

/// A row of MSRs that is empty or extends past the last index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a row of {count} MSRs from {base:#x} is empty or ends past the last index 0xffffffff, change the count"
)]
pub struct NoSuchRow {
    /// The first MSR.
    pub base: u32,
    /// The number of MSRs.
    pub count: usize,
}

impl<const N: usize> Shadow<N> {
    /// The MSRs `base` to `base + N - 1`, each with the value `initial`.
    ///
    /// # Errors
    /// `N` is 0, or the last MSR would be past 0xffffffff.
    pub const fn new(base: u32, initial: u64) -> Result<Self, NoSuchRow> {
        if N == 0 || N as u64 > u32::MAX as u64 - base as u64 + 1 {
            return Err(NoSuchRow { base, count: N });
        }
        Ok(Shadow {
            base,
            initial,
            reserved: 0,
            fixed: 0,
            values: [initial; N],
        })
    }

    /// A write that sets one of these bits is #GP and changes nothing.
    #[must_use]
    pub const fn reserved(mut self, bits: u64) -> Self {
        self.reserved = bits;
        self
    }

    /// Writes don't change these bits.
    #[must_use]
    pub const fn fixed(mut self, bits: u64) -> Self {
        self.fixed = bits;
        self
    }

    /// The range to insert the handler with.
    pub fn range(&self) -> MsrRange {
        // `new` checked both ends.
        let last = self.base.saturating_add((N as u32).saturating_sub(1));
        MsrRange::new(self.base, last).unwrap_or(MsrRange::single(self.base))
    }

    /// The current values of the MSRs, from the first to the last.
    pub const fn values(&self) -> &[u64; N] {
        &self.values
    }

    fn slot(&mut self, index: u32) -> Option<&mut u64> {
        self.values.get_mut(index.checked_sub(self.base)? as usize)
    }
}

impl<const N: usize> MsrHandler for Shadow<N> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        match self.slot(index) {
            Some(value) => Outcome::Handled(*value),
            None => Outcome::NotHandled,
        }
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        let Shadow {
            reserved,
            fixed,
            initial,
            ..
        } = *self;
        match self.slot(index) {
            None => Outcome::NotHandled,
            Some(_) if value & reserved != 0 => Outcome::GpException,
            Some(slot) => {
                *slot = value & !fixed | initial & fixed;
                Outcome::Handled(())
            }
        }
    }
    fn reset(&mut self) {
        self.values = [self.initial; N];
    }
    fn save(&self, keep: &mut dyn FnMut(u32, u64)) {
        (self.base..=u32::MAX)
            .zip(self.values)
            .for_each(|(index, value)| keep(index, value));
    }
    fn restore(&mut self, index: u32, value: u64) -> Outcome<()> {
        // A saved value is untrusted: accept only the initial value, or one that the guest could have written.
        let initial = self.initial;
        match self.slot(index) {
            Some(slot) if value == initial => {
                *slot = value;
                Outcome::Handled(())
            }
            _ => self.write(index, value),
        }
    }
}

/// One value per vCPU, in a table that its handlers share. Any thread may read and change it.
#[derive(Clone, Debug)]
pub struct PerVcpuValues {
    values: Arc<[AtomicU64]>,
}

impl PerVcpuValues {
    /// A table for vCPUs 0 to `vcpus - 1`.
    pub fn new(vcpus: usize, value: impl FnMut(usize) -> u64) -> Self {
        PerVcpuValues {
            values: (0..vcpus).map(value).map(AtomicU64::new).collect(),
        }
    }

    /// A vCPU's value, `None` if the table has no such vCPU.
    pub fn get(&self, vcpu: usize) -> Option<u64> {
        Some(self.values.get(vcpu)?.load(Ordering::Relaxed))
    }

    /// Changes a vCPU's value, as the guest reads it. Returns whether the table has this vCPU.
    pub fn set(&self, vcpu: usize, value: u64) -> bool {
        let slot = self.values.get(vcpu);
        if let Some(slot) = slot {
            slot.store(value, Ordering::Relaxed);
        }
        slot.is_some()
    }

    /// A handler for one vCPU, read-only for the guest. A vCPU that isn't in the table gets #GP.
    pub fn handler(&self, vcpu: usize) -> PerVcpu {
        PerVcpu {
            table: self.clone(),
            vcpu,
            writable: false,
        }
    }

    /// A handler for one vCPU that the guest can read and write.
    pub fn writable_handler(&self, vcpu: usize) -> PerVcpu {
        PerVcpu {
            writable: true,
            ..self.handler(vcpu)
        }
    }
}

/// One vCPU's entry in a [`PerVcpuValues`], for every index.
///
/// It is not saved or reset with the vCPU, because the VMM owns the table.
#[derive(Clone, Debug)]
pub struct PerVcpu {
    table: PerVcpuValues,
    vcpu: usize,
    writable: bool,
}

impl MsrHandler for PerVcpu {
    fn read(&mut self, _: u32) -> Outcome<u64> {
        match self.table.get(self.vcpu) {
            Some(value) => Outcome::Handled(value),
            None => Outcome::GpException,
        }
    }
    fn write(&mut self, _: u32, value: u64) -> Outcome<()> {
        match self.writable && self.table.set(self.vcpu, value) {
            true => Outcome::Handled(()),
            false => Outcome::GpException,
        }
    }
}

/// The inner handler, plus a callback after each write that it accepted, on the vCPU's thread. There is no
/// callback for a value that KVM may still refuse ([`Outcome::SetInKvm`]).
///
/// ```
/// use std::sync::mpsc::channel;
/// use para_msr::handlers::{Constant, OnWrite, WriteIgnore};
/// use para_msr::{MsrDispatchBuilder, Outcome};
///
/// let (sender, crashes) = channel();
/// // HV_X64_MSR_CRASH_CTL: bit 63 means that the guest's kernel has crashed.
/// let control = OnWrite::new(WriteIgnore(Constant::new(1 << 63)), move |_, value| {
///     if value >> 63 == 1 {
///         let _ = sender.send("crashed");
///     }
/// });
/// let mut msrs = MsrDispatchBuilder::new().insert(0x4000_0105, control)?.build();
/// assert_eq!(msrs.write(0x4000_0105, 1 << 63), Outcome::Handled(()));
/// assert_eq!(crashes.try_recv(), Ok("crashed"));
/// # Ok::<(), para_msr::DispatchError>(())
/// ```
#[derive(Clone)]
pub struct OnWrite<H, F> {
    inner: H,
    tell: F,
}

impl<H: fmt::Debug, F> fmt::Debug for OnWrite<H, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnWrite").field(&self.inner).finish()
    }
}

impl<H: MsrHandler, F: FnMut(u32, u64) + Send + Sync> OnWrite<H, F> {
    /// Calls `tell` with index and value of every write that `inner` accepted.
    pub const fn new(inner: H, tell: F) -> Self {
        OnWrite { inner, tell }
    }
}

impl<H: MsrHandler, F: FnMut(u32, u64) + Send + Sync> MsrHandler for OnWrite<H, F> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        self.inner.read(index)
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        let outcome = self.inner.write(index, value);
        if outcome.or_gp().is_some() {
            (self.tell)(index, value);
        }
        outcome
    }
    state_of!(inner);
}

/// The inner handler, and the vCPU stops after each write that it accepted ([`Outcome::Stop`]).
///
/// ```
/// use para_msr::handlers::{Constant, StopOnWrite, WriteIgnore};
/// use para_msr::{MsrDispatchBuilder, Outcome};
///
/// // HV_X64_MSR_RESET: the guest asks for a reset (TLFS, 2.6).
/// let reset = StopOnWrite(WriteIgnore(Constant::new(0)));
/// let mut msrs = MsrDispatchBuilder::new().insert(0x4000_0003, reset)?.build();
/// assert_eq!(msrs.write(0x4000_0003, 1), Outcome::Stop(()));
/// # Ok::<(), para_msr::DispatchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopOnWrite<H>(pub H);

impl<H: MsrHandler> MsrHandler for StopOnWrite<H> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        self.0.read(index)
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        match self.0.write(index, value) {
            Outcome::Handled(()) => Outcome::Stop(()),
            other => other,
        }
    }
    state_of!(0);
}

/// Limits log lines about the same event: the first four, then each power of two. 2^64 events cause 65 lines.
///
/// ```
/// let mut limit = para_msr::handlers::LogLimit::new();
/// let logged: Vec<u64> = (0..40).filter_map(|_| limit.next_line()).collect();
/// assert_eq!(logged, [1, 2, 3, 4, 8, 16, 32]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogLimit {
    seen: u64,
}

impl LogLimit {
    /// A limit that has seen no event.
    pub const fn new() -> Self {
        LogLimit { seen: 0 }
    }

    /// Counts an event. Returns the count so far if it should be logged.
    pub fn next_line(&mut self) -> Option<u64> {
        self.seen = self.seen.saturating_add(1);
        (self.seen < 4 || self.seen.is_power_of_two()).then_some(self.seen)
    }
}

/// #GP for every access, with a warning in the log, limited by [`LogLimit`].
#[derive(Clone, Copy, Debug)]
pub struct LogGp {
    name: &'static str,
    limit: LogLimit,
}

impl LogGp {
    /// `name` is the MSRs' name in the log.
    pub const fn new(name: &'static str) -> Self {
        LogGp {
            name,
            limit: LogLimit::new(),
        }
    }
}

impl MsrHandler for LogGp {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        if let Some(count) = self.limit.next_line() {
            log::warn!("{}: RDMSR of {index:#x} is #GP ({count} so far)", self.name);
        }
        Outcome::GpException
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        if let Some(count) = self.limit.next_line() {
            let name = self.name;
            log::warn!("{name}: WRMSR of {value:#x} to {index:#x} is #GP ({count} so far)");
        }
        Outcome::GpException
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_limit_lets_65_lines_through() {
        // Two counts around each power of two; from 4 on there is nothing to log in between.
        let lines = (0..64).flat_map(|shift| {
            let mut limit = LogLimit {
                seen: (1u64 << shift) - 1,
            };
            [limit.next_line(), limit.next_line()]
        });
        let lines: std::collections::BTreeSet<u64> = lines.flatten().collect();
        assert_eq!(lines.len(), 65);
        // A saturated count logs nothing.
        assert_eq!(LogLimit { seen: u64::MAX }.next_line(), None);
        let readme = include_str!("../README.md");
        assert!(readme.contains("65 lines for 2^64 accesses"));
    }
}
