// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an MSR access comes to, and what answers it.

use std::any::Any;

use crate::saved::MsrValue;

/// What an MSR access comes to for the guest.
///
/// A VMM answers [`Handled`](Self::Handled) and [`Stop`](Self::Stop) by success and everything else by #GP(0), also
/// what later versions of this crate may add: [`or_gp`](Self::or_gp). With feature `kvm`, `MsrDispatch::answer` does
/// all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "an access that nobody answers must become #GP"]
#[non_exhaustive]
pub enum Outcome<T> {
    /// Nobody answers for this MSR. The VMM decides; without a policy of its own it should inject #GP(0),
    /// because that is what hardware does.
    NotHandled,
    /// The access succeeds: RDMSR gives the value, WRMSR goes on.
    Handled(T),
    /// The access raises #GP(0) at the instruction and has no other effect.
    GpException,
    /// The access succeeds as [`Handled`](Self::Handled) does, and the vCPU must not run guest code after it until
    /// the VMM lets it: the guest has crashed, or asked for a reset. The instruction itself still completes.
    Stop(T),
    /// The WRMSR succeeds if KVM takes this value by `KVM_SET_MSRS`, and is #GP(0) otherwise. For a handler that
    /// looks at writes of an MSR that KVM has, or turns one MSR into another.
    ///
    /// KVM checks less for the host than for a guest: the handler refuses what hardware would refuse. A VMM without
    /// a vCPU at hand injects #GP(0). So it is also if a handler answers a RDMSR by this.
    SetInKvm(MsrValue),
}

impl<T> Outcome<T> {
    /// The value, if the access succeeds; `None` where the guest gets #GP(0). An access that nobody answers
    /// is #GP(0) too, which is the default that a VMM should have.
    ///
    /// It tells neither that the vCPU must stop nor what KVM is to be given: for handlers that answer by
    /// [`Stop`](Self::Stop) or [`SetInKvm`](Self::SetInKvm), look at the outcome itself.
    ///
    /// ```
    /// use para_msr::Outcome;
    ///
    /// assert_eq!(Outcome::Handled(7).or_gp(), Some(7));
    /// assert_eq!(Outcome::Stop(7).or_gp(), Some(7));
    /// assert_eq!(Outcome::<u64>::NotHandled.or_gp(), None);
    /// ```
    pub fn or_gp(self) -> Option<T> {
        match self {
            Outcome::Handled(value) | Outcome::Stop(value) => Some(value),
            Outcome::NotHandled | Outcome::GpException | Outcome::SetInKvm(_) => None,
        }
    }
}

/// Answers the accesses of *one* vCPU to some MSRs, owned by that vCPU's thread, so it needs no lock for its
/// own state. What several vCPUs share, a handler holds in an `Arc`, with atomics or a lock of its own.
///
/// Both index and value come from the guest. A handler must not panic, block or log without bound. It is `Sync`
/// because some VMMs want that of their vCPUs; nothing is ever called through a shared reference but
/// [`save`](Self::save).
///
/// ```
/// use para_msr::saved::MsrValue;
/// use para_msr::{MsrDispatchBuilder, MsrHandler, Outcome};
///
/// /// `IA32_MISC_ENABLE`, which KVM keeps, without a way to switch fast strings off.
/// struct FastStrings;
///
/// impl MsrHandler for FastStrings {
///     fn read(&mut self, _: u32) -> Outcome<u64> {
///         Outcome::NotHandled // The filter denies writes only.
///     }
///     fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
///         Outcome::SetInKvm(MsrValue { index, value: value | 1 })
///     }
/// }
///
/// let mut msrs = MsrDispatchBuilder::new().insert(0x1a0, FastStrings)?.build();
/// assert_eq!(msrs.write(0x1a0, 2), Outcome::SetInKvm(MsrValue { index: 0x1a0, value: 3 }));
/// # Ok::<(), para_msr::DispatchError>(())
/// ```
pub trait MsrHandler: Send + Sync {
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
    /// [`Outcome::NotHandled`], the default, says that the handler keeps no such value. Only what
    /// [`Outcome::or_gp`] calls a success is one: no vCPU stops here, and KVM's values are not saved so.
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
