// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercalls that reach the VMM: a number leads to a handler, and its answer goes to RAX.
//!
//! Which calls reach it is the route's business: every one on `pio` and `forward`, none on `vendor`,
//! where KVM answers itself. So KVM's own numbers are answered here as KVM answers them, and a guest
//! need not know its route; the numbers of [`para_abi::vmm`] are for this VMM.
//!
//! | number | arguments | answer |
//! |---|---|---|
//! | `KVM_HC_VAPIC_POLL_IRQ` 1 | none | 0: the exit was the point |
//! | `KVM_HC_KICK_CPU` 5 | reserved, APIC ID | 0, whether or not there is such a vCPU |
//! | `KVM_HC_CLOCK_PAIRING` 9 | GPA of 64 bytes, clock (0) | 0; `-KVM_EOPNOTSUPP`: another clock, or a host without the pair; `-KVM_EFAULT`: not RAM |
//! | `KVM_HC_SEND_IPI` 10 | bitmap low, bitmap high, first APIC ID, ICR | how many vCPUs took it; `-KVM_EINVAL`: a shorthand or logical destination |
//! | `KVM_HC_SCHED_YIELD` 11 | APIC ID | 0, after the host ran something else if there was something |
//! | `KVM_HC_MAP_GPA_RANGE` 12 | GPA, pages, attributes | 0 for plain RAM that is to stay plain; `-KVM_EINVAL`: no such RAM; `-KVM_EOPNOTSUPP`: encryption |
//! | `VMM_HC_NOP` 0x4d560000 | none | 0 |
//! | `VMM_HC_BOOT_MARK` +1 | mark | 0; the time since the VMM's start is logged |
//! | `VMM_HC_EXIT` +2 | status | none: the run is over with [`Outcome::GuestExit`]; `-KVM_EINVAL`: above 255 |
//! | `VMM_HC_CONSOLE_WRITE` +3 | GPA, length | the length; `-KVM_E2BIG`: above 4096; `-KVM_EFAULT`: not RAM; unknown with `--serial off` |
//!
//! Anything else is `-KVM_ENOSYS` (-1000), and from a CPL other than 0 everything is `-KVM_EPERM` (-1),
//! as in KVM. The source of KVM's numbers is Linux' `Documentation/virt/kvm/x86/hypercalls.rst`.
//!
//! The registry is frozen before the first vCPU runs: no lock and no allocation to find a handler.
//!
//! [`Outcome::GuestExit`]: crate::outcome::Outcome::GuestExit

mod clock;
mod console;
mod host;
mod interrupts;
mod machine;
mod mapping;
mod vmm;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use para_abi::{Call, KvmErrno};

pub use self::clock::{Clock, Pair};
pub use self::console::{CONSOLE_WRITE_MAX, ConsoleSink};
pub use self::host::{KvmClock, KvmInterrupts};
pub use self::interrupts::{Interrupts, Ipi};
pub use self::machine::Services;
pub use vcpu_loop::kvm::TscOffset;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The vCPU, counted from 0; its APIC ID is the same number.
    pub vcpu: u32,
    /// Its privilege level, 0 to 3.
    pub cpl: u8,
    /// Whether it is in 64-bit mode. The answer to another caller is truncated to 32 bits by whoever
    /// writes it to the register.
    pub long_mode: bool,
}

/// What a handler says: the value for RAX, or an error that becomes a negative one.
pub type Answer = Result<u64, KvmErrno>;

/// Answers one number. It runs on the caller's vCPU thread, so it must neither block nor trust an
/// argument.
pub trait Handler: Send + Sync {
    /// The answer to `caller`, who has CPL 0. Arguments that the number does not have are what the
    /// caller's registers happen to hold.
    fn call(&self, caller: &Caller, args: &[u64; 6]) -> Answer;
}

impl<F: Fn(&Caller, &[u64; 6]) -> Answer + Send + Sync> Handler for F {
    fn call(&self, caller: &Caller, args: &[u64; 6]) -> Answer {
        self(caller, args)
    }
}

/// A number and who answers it.
struct Entry {
    number: u64,
    name: &'static str,
    handler: Box<dyn Handler>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.name, self.number)
    }
}

/// Counts of one vCPU, in cache lines of their own (CPUs fetch them in pairs): no other vCPU waits for them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; COUNTS_PER_LINE]);

const COUNTS_PER_LINE: usize = 128 / size_of::<AtomicU64>();

/// What one vCPU called. Only its thread counts, so a count is a load and a store.
#[derive(Debug)]
struct Counts(Box<[Line]>);

impl Counts {
    /// Where calls of numbers that nobody answers are counted, and calls from outside of CPL 0; entries come behind.
    const UNKNOWN: usize = 0;
    const UNPRIVILEGED: usize = 1;
    const ENTRIES: usize = 2;

    fn new(entries: usize) -> Self {
        let lines = (Self::ENTRIES + entries).div_ceil(COUNTS_PER_LINE);
        Counts((0..lines).map(|_| Line::default()).collect())
    }

    fn count(&self, which: usize) -> Option<&AtomicU64> {
        self.0
            .get(which / COUNTS_PER_LINE)?
            .0
            .get(which % COUNTS_PER_LINE)
    }

    fn add(&self, which: usize) {
        if let Some(count) = self.count(which) {
            let more = count.load(Ordering::Relaxed).wrapping_add(1);
            count.store(more, Ordering::Relaxed);
        }
    }

    fn get(&self, which: usize) -> u64 {
        let count = self.count(which);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// A number was registered twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hypercall {number:#x} of {second} already belongs to {first}; take another number")]
pub struct NumberTaken {
    /// The number.
    pub number: u64,
    /// Whose it is.
    pub first: &'static str,
    /// Who else wanted it.
    pub second: &'static str,
}

/// Collects handlers before the registry is frozen.
#[derive(Debug, Default)]
pub struct HypercallsBuilder {
    entries: Vec<Entry>,
}

impl HypercallsBuilder {
    /// A registry without numbers.
    pub fn new() -> Self {
        HypercallsBuilder::default()
    }

    /// Has `handler` answer `number`; `name` is for messages and counters.
    ///
    /// # Errors
    /// [`NumberTaken`] when somebody answers it already.
    pub fn insert(
        &mut self,
        number: u64,
        name: &'static str,
        handler: impl Handler + 'static,
    ) -> Result<&mut Self, NumberTaken> {
        match self.entries.binary_search_by_key(&number, |e| e.number) {
            Ok(at) => Err(NumberTaken {
                number,
                first: self.entries[at].name,
                second: name,
            }),
            Err(at) => {
                let entry = Entry {
                    number,
                    name,
                    handler: Box::new(handler),
                };
                self.entries.insert(at, entry);
                Ok(self)
            }
        }
    }

    /// Freezes the registry, for calls of so many vCPUs. Those of others are answered as well, and not counted.
    pub fn build(self, vcpus: u8) -> Arc<Hypercalls> {
        let entries = self.entries.len();
        Arc::new(Hypercalls {
            entries: self.entries.into(),
            counts: (0..vcpus).map(|_| Counts::new(entries)).collect(),
        })
    }
}

/// How often a registry was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Calls of each number with its name, in the order of numbers.
    pub calls: Vec<(u64, &'static str, u64)>,
    /// Calls of numbers that nobody answers.
    pub unknown: u64,
    /// Calls from a CPL other than 0.
    pub unprivileged: u64,
}

impl Counters {
    /// All calls.
    pub fn total(&self) -> u64 {
        let answered = self.calls.iter().map(|(.., calls)| *calls);
        let refused = [self.unknown, self.unprivileged];
        answered
            .chain(refused)
            .fold(0, |sum, calls| sum.saturating_add(calls))
    }
}

/// What was called, as one line.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.calls.iter().map(|(_, name, calls)| (*name, *calls));
        let refused = [
            ("unknown", self.unknown),
            ("unprivileged", self.unprivileged),
        ];
        let mut separator = "";
        for (name, calls) in named.chain(refused).filter(|(_, calls)| *calls > 0) {
            write!(f, "{separator}{name} {calls}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The frozen registry that all vCPUs share.
///
/// # Example
/// ```
/// use mini_vmm::hypercall::calls::{Caller, HypercallsBuilder};
/// use para_abi::{Call, KvmErrno};
///
/// let mut calls = HypercallsBuilder::new();
/// calls.insert(7, "double", |_: &Caller, args: &[u64; 6]| {
///     args[0].checked_mul(2).ok_or(KvmErrno::KVM_EINVAL)
/// })?;
/// let calls = calls.build(1);
///
/// let kernel = Caller { vcpu: 0, cpl: 0, long_mode: true };
/// let call = |nr, arg| Call { nr, args: [arg, 0, 0, 0, 0, 0] };
/// assert_eq!(calls.call(&kernel, &call(7, 21)), 42);
/// assert_eq!(calls.call(&kernel, &call(7, u64::MAX)) as i64, -22);
/// assert_eq!(calls.call(&kernel, &call(8, 21)) as i64, -1000);
/// assert_eq!(calls.call(&Caller { cpl: 3, ..kernel }, &call(7, 21)) as i64, -1);
/// # Ok::<(), mini_vmm::hypercall::calls::NumberTaken>(())
/// ```
#[derive(Debug)]
pub struct Hypercalls {
    entries: Box<[Entry]>,
    /// One per vCPU.
    counts: Box<[Counts]>,
}

impl Hypercalls {
    /// Answers `call`: the value for RAX. The caller's CPL is looked at first, as in KVM. It comes from the caller's
    /// own thread.
    pub fn call(&self, caller: &Caller, call: &Call) -> u64 {
        let count = |which| {
            if let Some(counts) = self.counts.get(caller.vcpu as usize) {
                counts.add(which);
            }
        };
        if caller.cpl != 0 {
            count(Counts::UNPRIVILEGED);
            return KvmErrno::KVM_EPERM.as_ret();
        }
        match self.entries.binary_search_by_key(&call.nr, |e| e.number) {
            Ok(at) => {
                count(Counts::ENTRIES + at);
                let answer = self.entries[at].handler.call(caller, &call.args);
                answer.unwrap_or_else(KvmErrno::as_ret)
            }
            Err(_) => {
                count(Counts::UNKNOWN);
                KvmErrno::KVM_ENOSYS.as_ret()
            }
        }
    }

    /// How often it was called so far, by all vCPUs.
    pub fn counters(&self) -> Counters {
        let sum = |which| {
            let counts = self.counts.iter().map(|counts| counts.get(which));
            counts.fold(0u64, u64::saturating_add)
        };
        let entries = self.entries.iter().enumerate();
        let calls = entries.map(|(at, e)| (e.number, e.name, sum(Counts::ENTRIES + at)));
        Counters {
            calls: calls.collect(),
            unknown: sum(Counts::UNKNOWN),
            unprivileged: sum(Counts::UNPRIVILEGED),
        }
    }
}

#[cfg(test)]
mod tests;
