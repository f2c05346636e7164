// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The outcome of an MSR access, and the trait that decides it.

use std::any::Any;

use crate::saved::MsrValue;

/// The outcome of an MSR access for the guest.
///
/// A VMM answers [`Handled`](Self::Handled) and [`Stop`](Self::Stop) with success and everything else with #GP(0),
/// including variants of later versions: [`or_gp`](Self::or_gp) does that. With feature `kvm`, `MsrDispatch::answer`
/// does the whole job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "an access that nobody answers must become #GP"]
#[non_exhaustive]
pub enum Outcome<T> {
    /// No handler answers for this MSR, so the VMM decides. Without a policy of its own it should inject
    /// #GP(0), as hardware does.
    NotHandled,
    /// The access succeeds. RDMSR returns the value.
    Handled(T),
    /// The access raises #GP(0) at the instruction and has no other effect.
    GpException,
    /// The access succeeds like [`Handled`](Self::Handled), but the vCPU must not run guest code afterwards until
    /// the VMM allows it. The guest has crashed, for example, or asked for a reset. The instruction itself still
    /// completes.
    Stop(T),
    /// The WRMSR succeeds if KVM accepts this value through `KVM_SET_MSRS`, and is #GP(0) otherwise. For a
    /// handler that inspects writes to an MSR that KVM implements, or maps one MSR to another.
    ///
    /// KVM checks the host's writes less strictly than a guest's, so the handler must refuse what hardware would
    /// refuse. A VMM that can't reach the vCPU injects #GP(0). As the answer to RDMSR, this is #GP(0) too.
    SetInKvm(MsrValue),
}

impl<T> Outcome<T> {
    /// The value if the access succeeds, `None` if the guest gets #GP(0). An access without a handler is
    /// #GP(0), which should be a VMM's default.
    ///
    /// This drops the request of [`Stop`](Self::Stop) and the value of [`SetInKvm`](Self::SetInKvm). If
    /// a handler uses them, match on the outcome itself.
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

/// Handles the accesses of *one* vCPU to some MSRs. The vCPU's thread owns it, so its own state needs no
/// lock. State that several vCPUs share goes in an `Arc`, with atomics or a lock.
///
/// Index and value come from the guest. A handler must not panic, block or log without limit. It is `Sync`
/// because some VMMs require that of their vCPUs; only [`save`](Self::save) is called through a shared reference.
///
/// ```
/// use para_msr::saved::MsrValue;
/// use para_msr::{MsrDispatchBuilder, MsrHandler, Outcome};
///
/// /// `IA32_MISC_ENABLE`, which KVM implements, but fast strings can't be disabled.
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
    /// RDMSR of `index`, which is in the range that the handler was inserted with.
    fn read(&mut self, index: u32) -> Outcome<u64>;

    /// WRMSR of `value` to `index`, which is in the range that the handler was inserted with.
    fn write(&mut self, index: u32, value: u64) -> Outcome<()>;

    /// The vCPU is reset: go back to the values after power-on. Does nothing by default.
    fn reset(&mut self) {}

    /// Passes index and value of every MSR with state to `keep`. None by default. KVM doesn't save what
    /// user space handles, so a handler with state must implement this.
    fn save(&self, keep: &mut dyn FnMut(u32, u64)) {
        let _ = keep;
    }

    /// Restores a value from [`save`](Self::save). It may come from another process or be forged. The default,
    /// [`Outcome::NotHandled`], means that the handler has no such value. The restore succeeded if [`Outcome::or_gp`]
    /// returns `Some`; [`Outcome::Stop`] stops no vCPU here, and [`Outcome::SetInKvm`] counts as a failure.
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

/// A handler that can be downcast to its type. (Upcasting to `dyn Any` needs Rust 1.86.)
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
