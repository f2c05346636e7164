// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSR handlers by index, in a table that doesn't change once it is built.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::handler::AnyHandler;
use crate::{MsrHandler, MsrRange, Outcome};

/// Why a handler was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// Its range overlaps another handler's.
    #[error("MSR range {new} overlaps {existing}, give each MSR to one handler")]
    Overlap {
        /// The refused range.
        new: MsrRange,
        /// The range that is already in the table.
        existing: MsrRange,
    },
}

/// A handler was refused. The builder still has the earlier handlers.
///
/// `?` converts it to a [`DispatchError`].
///
/// ```
/// use para_msr::MsrDispatchBuilder;
/// use para_msr::handlers::Constant;
///
/// let msrs = MsrDispatchBuilder::new().insert(0x8b, Constant::new(1))?;
/// // A user's own MSR, unless it has a handler already.
/// let msrs = msrs.insert(0x8b, Constant::new(2)).unwrap_or_else(|refused| {
///     println!("{refused}");
///     refused.builder
/// });
/// assert_eq!(msrs.ranges().count(), 1);
/// # Ok::<(), para_msr::DispatchError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct InsertError {
    /// The builder without the refused handler.
    pub builder: MsrDispatchBuilder,
    /// Why the handler was refused.
    pub reason: DispatchError,
}

impl From<InsertError> for DispatchError {
    fn from(error: InsertError) -> Self {
        error.reason
    }
}

struct Entry {
    range: MsrRange,
    handler: Box<dyn AnyHandler>,
}

/// One vCPU's handlers under construction.
#[derive(Default)]
pub struct MsrDispatchBuilder {
    /// Sorted, without overlap.
    entries: Vec<Entry>,
}

impl fmt::Debug for MsrDispatchBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.entries.iter().map(|entry| entry.range))
            .finish()
    }
}

impl MsrDispatchBuilder {
    /// A builder without handlers: every access is [`Outcome::NotHandled`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler for an MSR or a range of MSRs.
    ///
    /// # Errors
    /// Another handler has one of these MSRs. The error names both ranges and returns the builder.
    pub fn insert(
        mut self,
        range: impl Into<MsrRange>,
        handler: impl MsrHandler + 'static,
    ) -> Result<Self, InsertError> {
        let new = range.into();
        // The first range that doesn't end before the new one.
        let at = self
            .entries
            .partition_point(|entry| entry.range.last() < new.first());
        let there = self.entries.get(at).map(|entry| entry.range);
        if let Some(existing) = there.filter(|range| range.overlaps(new)) {
            return Err(InsertError {
                builder: self,
                reason: DispatchError::Overlap { new, existing },
            });
        }
        let entry = Entry {
            range: new,
            handler: Box::new(handler),
        };
        self.entries.insert(at, entry);
        Ok(self)
    }

    /// The ranges that have a handler so far, in ascending order. A filter must deny them.
    pub fn ranges(&self) -> impl Iterator<Item = MsrRange> + '_ {
        self.entries.iter().map(|entry| entry.range)
    }

    /// Freezes the table.
    pub fn build(self) -> MsrDispatch {
        let (ranges, handlers): (Vec<_>, Vec<_>) = self
            .entries
            .into_iter()
            .map(|entry| (entry.range, entry.handler))
            .unzip();
        let counters = MsrCounters::new(&ranges);
        MsrDispatch {
            ranges: ranges.into_boxed_slice(),
            handlers: handlers.into_boxed_slice(),
            counters,
        }
    }
}

/// One vCPU's MSRs in user space: an immutable table of handlers, owned by the vCPU's thread.
///
/// An access takes a binary search, a virtual call and two relaxed stores, with no lock and no allocation. The
/// default table has no handlers.
///
/// ```
/// use para_msr::handlers::{Constant, Shadow};
/// use para_msr::{MsrDispatchBuilder, MsrRange, Outcome};
///
/// let mut msrs = MsrDispatchBuilder::new()
///     .insert(0x8b, Constant::new(0x1_0000_0000))? // IA32_BIOS_SIGN_ID: the microcode's revision
///     .insert(MsrRange::new(0x4000_0100, 0x4000_0105)?, Shadow::<6>::new(0x4000_0100, 0)?)?
///     .build();
/// let counters = msrs.counters(); // for another thread
///
/// assert_eq!(msrs.write(0x4000_0101, 5), Outcome::Handled(()));
/// assert_eq!(msrs.read(0x4000_0101), Outcome::Handled(5));
/// assert_eq!(msrs.write(0x8b, 0), Outcome::GpException);
/// assert_eq!(msrs.read(0x10), Outcome::NotHandled);
/// assert_eq!(counters.get(0x8b).map(|count| (count.writes, count.faults)), Some((1, 1)));
/// assert_eq!(counters.not_handled(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MsrDispatch {
    /// Sorted, without overlap. Separate from the handlers, so that a search touches few cache lines.
    ranges: Box<[MsrRange]>,
    /// One per range, in the same order.
    handlers: Box<[Box<dyn AnyHandler>]>,
    counters: MsrCounters,
}

impl Default for MsrDispatch {
    fn default() -> Self {
        MsrDispatchBuilder::new().build()
    }
}

impl fmt::Debug for MsrDispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsrDispatch")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl MsrDispatch {
    /// RDMSR.
    pub fn read(&mut self, index: u32) -> Outcome<u64> {
        self.access(index, Kind::Read, |handler| handler.read(index))
    }

    /// WRMSR.
    pub fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        self.access(index, Kind::Write, |handler| handler.write(index, value))
    }

    fn access<T>(
        &mut self,
        index: u32,
        kind: Kind,
        access: impl FnOnce(&mut dyn AnyHandler) -> Outcome<T>,
    ) -> Outcome<T> {
        let Some((at, handler)) = self.find_mut(index) else {
            self.counters.shared.nobody.bump();
            return Outcome::NotHandled;
        };
        let outcome = access(handler);
        self.counters.count(at, kind, &outcome);
        outcome
    }

    fn position(&self, index: u32) -> Option<usize> {
        let at = self.ranges.partition_point(|range| range.last() < index);
        self.ranges.get(at)?.contains(index).then_some(at)
    }

    fn find_mut(&mut self, index: u32) -> Option<(usize, &mut dyn AnyHandler)> {
        let at = self.position(index)?;
        Some((at, self.handlers.get_mut(at)?.as_mut()))
    }

    /// A handle on the live counters. Any thread may keep it and read it without a lock.
    pub fn counters(&self) -> MsrCounters {
        self.counters.clone()
    }

    /// The ranges that have a handler, in ascending order.
    pub fn ranges(&self) -> &[MsrRange] {
        &self.ranges
    }

    /// The handler of `index`, if there is one and it is an `H`.
    pub fn handler<H: MsrHandler + 'static>(&self, index: u32) -> Option<&H> {
        let handler = self.handlers.get(self.position(index)?)?;
        (**handler).as_any().downcast_ref()
    }

    /// The same, mutable: to save and restore state that only the handler's type knows.
    pub fn handler_mut<H: MsrHandler + 'static>(&mut self, index: u32) -> Option<&mut H> {
        self.find_mut(index)?.1.as_any_mut().downcast_mut()
    }

    /// Resets all handlers, because the vCPU is reset. Counters keep their values.
    pub fn reset(&mut self) {
        self.handlers.iter_mut().for_each(|handler| handler.reset());
    }

    /// The values that handlers keep, in ascending order of their ranges. A handler's values outside its range
    /// are dropped. KVM's own MSR state doesn't contain these values.
    pub fn save(&self) -> Vec<(u32, u64)> {
        let mut values = Vec::new();
        for (range, handler) in self.ranges.iter().zip(&self.handlers) {
            handler.save(&mut |index, value| {
                if range.contains(index) {
                    values.push((index, value));
                }
            });
        }
        values
    }

    /// Restores saved values to their handlers. Returns the indices that have no handler or that a
    /// handler refused; the other values are restored anyway.
    pub fn restore(&mut self, values: &[(u32, u64)]) -> Vec<u32> {
        let mut refused = Vec::new();
        for &(index, value) in values {
            let taken = self
                .find_mut(index)
                .is_some_and(|(_, handler)| handler.restore(index, value).or_gp().is_some());
            if !taken {
                refused.push(index);
            }
        }
        refused
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

/// A counter that one thread writes and any thread reads. Accesses take `&mut self`, so there is only one
/// writer. A load and a store are enough, and cheaper than a locked addition.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn bump(&self) {
        let next = self.get().wrapping_add(1);
        self.0.store(next, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct RangeCounters {
    range: MsrRange,
    reads: Counter,
    writes: Counter,
    faults: Counter,
    declined: Counter,
}

#[derive(Debug)]
struct Shared {
    /// In ascending order of their ranges.
    ranges: Box<[RangeCounters]>,
    nobody: Counter,
}

/// How often a vCPU's MSRs were accessed: a shared handle that any thread can read while the vCPU runs. Several
/// counts read together may differ by accesses in progress.
#[derive(Clone, Debug)]
pub struct MsrCounters {
    shared: Arc<Shared>,
}

/// The accesses to one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsrCount {
    /// The range.
    pub range: MsrRange,
    /// RDMSRs, whatever their outcome.
    pub reads: u64,
    /// WRMSRs, whatever their outcome.
    pub writes: u64,
    /// Accesses of both kinds that raised #GP(0), except those that KVM refused ([`Outcome::SetInKvm`]).
    pub faults: u64,
    /// Accesses of both kinds that the handler declined ([`Outcome::NotHandled`]).
    pub declined: u64,
}

impl MsrCounters {
    fn new(ranges: &[MsrRange]) -> Self {
        let counters = |range: &MsrRange| RangeCounters {
            range: *range,
            reads: Counter::default(),
            writes: Counter::default(),
            faults: Counter::default(),
            declined: Counter::default(),
        };
        MsrCounters {
            shared: Arc::new(Shared {
                ranges: ranges.iter().map(counters).collect(),
                nobody: Counter::default(),
            }),
        }
    }

    fn count<T>(&self, at: usize, kind: Kind, outcome: &Outcome<T>) {
        let Some(counters) = self.shared.ranges.get(at) else {
            return;
        };
        match kind {
            Kind::Read => counters.reads.bump(),
            Kind::Write => counters.writes.bump(),
        }
        match outcome {
            Outcome::Handled(_) | Outcome::Stop(_) | Outcome::SetInKvm(_) => {}
            Outcome::GpException => counters.faults.bump(),
            Outcome::NotHandled => counters.declined.bump(),
        }
    }

    /// The counts of each range, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = MsrCount> + '_ {
        self.shared.ranges.iter().map(|counters| MsrCount {
            range: counters.range,
            reads: counters.reads.get(),
            writes: counters.writes.get(),
            faults: counters.faults.get(),
            declined: counters.declined.get(),
        })
    }

    /// The counts of the range that contains an MSR.
    pub fn get(&self, index: u32) -> Option<MsrCount> {
        self.iter().find(|count| count.range.contains(index))
    }

    /// Accesses to MSRs without a handler. Accesses that a handler declined are counted in its range.
    pub fn not_handled(&self) -> u64 {
        self.shared.nobody.get()
    }
}
