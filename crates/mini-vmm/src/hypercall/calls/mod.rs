// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercalls that reach the VMM: a handler answers them by number, and its answer goes to RAX.
//!
//! The route decides which calls reach it: all on `pio` and `forward`, none on `vendor`, where KVM answers itself. So
//! KVM's own numbers are answered here as KVM answers them, and a guest need not know its route. The numbers of
//! [`para_abi::vmm`] are this VMM's own.
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
//! | `VMM_HC_SNAPSHOT` +4 | flags (0) | 0, or a clone's number; `-KVM_EAGAIN`: within a second of another one; `-KVM_E2BIG`: the directory is full; `-KVM_EIO`: no snapshot; unknown without `--snapshot-dir` |
//!
//! Anything else is `-KVM_ENOSYS` (-1000), and from a CPL other than 0 everything is `-KVM_EPERM` (-1),
//! as in KVM. The source of KVM's numbers is Linux' `Documentation/virt/kvm/x86/hypercalls.rst`.
//!
//! The handler is set before the first vCPU runs, so finding it takes no lock and no allocation.
//!
//! [`Outcome::GuestExit`]: crate::outcome::Outcome::GuestExit

mod clock;
mod console;
mod host;
mod interrupts;
mod machine;
mod mapping;
mod snapshot;
mod vmm;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use para_abi::{Call, KvmErrno};

pub use self::clock::{Clock, Pair};
pub use self::console::ConsoleSink;
pub(crate) use self::host::KvmClock;
use self::machine::NUMBERS;
pub use self::machine::Services;
pub use self::snapshot::SelfSnapshots;

/// The caller of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The vCPU's index from 0, which is also its APIC ID.
    pub vcpu: u32,
    /// Its privilege level, 0 to 3.
    pub cpl: u8,
    /// Whether it is in 64-bit mode. Otherwise the answer is truncated to 32 bits when it is written to the register.
    pub long_mode: bool,
}

/// A handler's answer: the value for RAX, or an error that is returned as a negative value.
pub type Answer = Result<u64, KvmErrno>;

/// Answers calls. It runs on the calling vCPU's thread, so it must neither block nor trust an argument.
pub trait Handler: Send + Sync {
    /// The answer to `caller`, whose CPL is 0; [`KvmErrno::KVM_ENOSYS`] for an unknown number. Arguments that the
    /// number doesn't define hold whatever is in the caller's registers.
    fn call(&self, caller: &Caller, call: &Call) -> Answer;
}

impl<F: Fn(&Caller, &Call) -> Answer + Send + Sync> Handler for F {
    fn call(&self, caller: &Caller, call: &Call) -> Answer {
        self(caller, call)
    }
}

/// One vCPU's counts: one for each of [`NUMBERS`], then those without a name. They have their own cache lines (CPUs
/// fetch them in pairs), so that vCPUs don't contend. Only the vCPU's thread writes them, so counting is a load and a
/// store.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts([AtomicU64; NUMBERS.len() + 3]);

const OTHER: usize = NUMBERS.len();
const UNKNOWN: usize = OTHER + 1;
const UNPRIVILEGED: usize = OTHER + 2;

/// How often hypercalls were called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The count of each number, with its name, sorted by number.
    pub calls: Vec<(u64, &'static str, u64)>,
    /// Calls of numbers that a library user's handler answers.
    pub other: u64,
    /// Calls of unknown numbers.
    pub unknown: u64,
    /// Calls from a CPL other than 0.
    pub unprivileged: u64,
}

impl Counters {
    /// All calls.
    pub fn total(&self) -> u64 {
        let answered = self.calls.iter().map(|(.., calls)| *calls);
        let others = [self.other, self.unknown, self.unprivileged];
        answered
            .chain(others)
            .fold(0, |sum, calls| sum.saturating_add(calls))
    }
}

/// The counts in one line.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.calls.iter().map(|(_, name, calls)| (*name, *calls));
        let others = [
            ("other", self.other),
            ("unknown", self.unknown),
            ("unprivileged", self.unprivileged),
        ];
        let mut separator = "";
        for (name, calls) in named.chain(others).filter(|(_, calls)| *calls > 0) {
            write!(f, "{separator}{name} {calls}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The hypercall handler and counters that all vCPUs share.
///
/// # Example
/// A handler with its own number; [`Services::handler`] has those of a machine.
/// ```
/// use mini_vmm::hypercall::calls::{Caller, Hypercalls};
/// use para_abi::{Call, KvmErrno};
///
/// let double = |_: &Caller, call: &Call| match call.nr {
///     7 => call.args[0].checked_mul(2).ok_or(KvmErrno::KVM_EINVAL),
///     _ => Err(KvmErrno::KVM_ENOSYS),
/// };
/// let calls = Hypercalls::new(double, 1);
///
/// let kernel = Caller { vcpu: 0, cpl: 0, long_mode: true };
/// let call = |nr, arg| Call { nr, args: [arg, 0, 0, 0, 0, 0] };
/// assert_eq!(calls.call(&kernel, &call(7, 21)), 42);
/// assert_eq!(calls.call(&kernel, &call(7, u64::MAX)) as i64, -22);
/// assert_eq!(calls.call(&kernel, &call(8, 21)) as i64, -1000);
/// assert_eq!(calls.call(&Caller { cpl: 3, ..kernel }, &call(7, 21)) as i64, -1);
/// ```
pub struct Hypercalls {
    handler: Box<dyn Handler>,
    snapshots: Option<Arc<SelfSnapshots>>,
    /// One per vCPU.
    counts: Box<[Counts]>,
}

impl fmt::Debug for Hypercalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hypercalls")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Hypercalls {
    /// Makes `handler` answer the calls of `vcpus` vCPUs. Calls of further vCPUs are answered, but not counted.
    pub fn new(handler: impl Handler + 'static, vcpus: u8) -> Arc<Self> {
        Hypercalls::with_snapshots(handler, vcpus, None)
    }

    fn with_snapshots(
        handler: impl Handler + 'static,
        vcpus: u8,
        snapshots: Option<Arc<SelfSnapshots>>,
    ) -> Arc<Self> {
        Arc::new(Hypercalls {
            handler: Box::new(handler),
            snapshots,
            counts: (0..vcpus).map(|_| Counts::default()).collect(),
        })
    }

    /// Knows no numbers.
    pub fn none() -> Arc<Self> {
        Hypercalls::new(|_: &Caller, _: &Call| Err(KvmErrno::KVM_ENOSYS), 0)
    }

    /// Answers `call`: the value for RAX. The caller's CPL is checked first, as in KVM. Must be called on the caller's
    /// own thread.
    pub fn call(&self, caller: &Caller, call: &Call) -> u64 {
        let (which, answer) = match caller.cpl {
            0 => {
                let answer = self.handler.call(caller, call);
                let known = || NUMBERS.binary_search_by_key(&call.nr, |(number, _)| *number);
                let which = match answer {
                    Err(KvmErrno::KVM_ENOSYS) => UNKNOWN,
                    _ => known().unwrap_or(OTHER),
                };
                (which, answer)
            }
            _ => (UNPRIVILEGED, Err(KvmErrno::KVM_EPERM)),
        };
        if let Some(counts) = self.counts.get(caller.vcpu as usize) {
            let more = counts.0[which].load(Ordering::Relaxed).wrapping_add(1);
            counts.0[which].store(more, Ordering::Relaxed);
        }
        answer.unwrap_or_else(KvmErrno::as_ret)
    }

    /// The snapshots that the guest asks for, if it may.
    pub fn snapshots(&self) -> Option<&Arc<SelfSnapshots>> {
        self.snapshots.as_ref()
    }

    /// Whether this vCPU must leave the guest, because its call is not answered yet.
    pub(crate) fn holds(&self, vcpu: u32) -> bool {
        let snapshots = self.snapshots.as_ref();
        snapshots.is_some_and(|snapshots| snapshots.is_caller(vcpu))
    }

    /// The counts so far, of all vCPUs.
    pub fn counters(&self) -> Counters {
        let sum = |which: usize| {
            let counts = self.counts.iter();
            let counts = counts.map(|counts| counts.0[which].load(Ordering::Relaxed));
            counts.fold(0u64, u64::saturating_add)
        };
        let named = NUMBERS.iter().enumerate();
        Counters {
            calls: named
                .map(|(at, (nr, name))| (*nr, *name, sum(at)))
                .collect(),
            other: sum(OTHER),
            unknown: sum(UNKNOWN),
            unprivileged: sum(UNPRIVILEGED),
        }
    }
}

#[cfg(test)]
mod tests;
