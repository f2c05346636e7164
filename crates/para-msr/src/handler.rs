// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an MSR access comes to, and what answers it.

use std::any::Any;

/// What an MSR access comes to for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "an access that nobody answers must become #GP"]
pub enum Outcome<T> {
    /// Nobody answers for this MSR. The VMM decides; without a policy of its own it should inject #GP(0),
    /// because that is what hardware does.
    NotHandled,
    /// The access succeeds: RDMSR gives the value, WRMSR goes on.
    Handled(T),
    /// The access raises #GP(0) at the instruction and has no other effect.
    GpException,
}

impl<T> Outcome<T> {
    /// The value, if the access succeeds; `None` where the guest gets #GP(0). An access that nobody answers
    /// is #GP(0) too, which is the default that a VMM should have.
    ///
    /// ```
    /// use para_msr::Outcome;
    ///
    /// assert_eq!(Outcome::Handled(7).or_gp(), Some(7));
    /// assert_eq!(Outcome::<u64>::NotHandled.or_gp(), None);
    /// ```
    pub fn or_gp(self) -> Option<T> {
        match self {
            Outcome::Handled(value) => Some(value),
            Outcome::NotHandled | Outcome::GpException => None,
        }
    }
}

/// Answers the accesses of *one* vCPU to some MSRs, owned by that vCPU's thread, so it needs no lock for its
/// own state. What several vCPUs share, a handler holds in an `Arc`, with atomics or a lock of its own.
///
/// Both index and value come from the guest. A handler must not panic, block or log without bound.
pub trait MsrHandler: Send {
    /// RDMSR of `index`, which lies in the range that the handler was inserted with.
    fn read(&mut self, index: u32) -> Outcome<u64>;

    /// WRMSR of `value` to `index`, which lies in the range that the handler was inserted with.
    fn write(&mut self, index: u32, value: u64) -> Outcome<()>;

    /// The vCPU is reset: back to the values after power-on. By default there is nothing to do.
    fn reset(&mut self) {}

    /// Passes every MSR that has a value worth saving to `keep`, as index and value. None by default: KVM
    /// saves nothing of what user space answers for, so whoever has state must say so here.
    fn save(&self, keep: &mut dyn FnMut(u32, u64)) {
        let _ = keep;
    }

    /// Takes back a value that [`save`](Self::save) gave, maybe in another process, maybe forged.
    /// [`Outcome::NotHandled`], the default, says that the handler keeps no such value.
    fn restore(&mut self, index: u32, value: u64) -> Outcome<()> {
        let _ = (index, value);
        Outcome::NotHandled
    }
}

impl<H: MsrHandler + ?Sized> MsrHandler for Box<H> {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        (**self).read(index)
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        (**self).write(index, value)
    }
    fn reset(&mut self) {
        (**self).reset();
    }
    fn save(&self, keep: &mut dyn FnMut(u32, u64)) {
        (**self).save(keep);
    }
    fn restore(&mut self, index: u32, value: u64) -> Outcome<()> {
        (**self).restore(index, value)
    }
}

/// A handler that can be found again by its type. (`dyn Trait` to `dyn Any` needs Rust 1.86.)
pub(crate) trait AnyHandler: MsrHandler {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<H: MsrHandler + 'static> AnyHandler for H {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
