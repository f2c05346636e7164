// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answering the exits of `kvm-ioctls`.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Errno, KvmMsrs};
use crate::saved::{MsrAccess, MsrValue};
use crate::{MsrDispatch, Outcome};

/// What a vCPU's thread must do after an MSR exit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a handler may have asked for more than an answer"]
#[non_exhaustive]
pub enum Answered {
    /// Nothing: enter the guest again.
    Continue,
    /// Complete the instruction (`KVM_RUN` with `immediate_exit`), and run no guest code until the VMM allows it:
    /// [`Outcome::Stop`].
    Stop,
    /// Call [`set_in_kvm`] with this value, otherwise the guest gets #GP(0): [`Outcome::SetInKvm`].
    SetInKvm(MsrValue),
}

impl MsrDispatch {
    /// Answers an exit for RDMSR or WRMSR: with success, or with #GP(0), for example if the MSR has no handler. The
    /// next `KVM_RUN` completes the instruction, and KVM advances RIP.
    ///
    /// If no handler uses [`Outcome::Stop`] or [`Outcome::SetInKvm`], there is nothing else to do.
    ///
    /// # Errors
    /// The exit is of another kind. It is returned untouched.
    ///
    /// ```no_run
    /// # fn run(vcpu: &mut kvm_ioctls::VcpuFd, msrs: &mut para_msr::MsrDispatch) -> Result<(), kvm_ioctls::Error> {
    /// use kvm_ioctls::VcpuExit;
    /// use para_msr::kvm::{Answered, set_in_kvm};
    ///
    /// loop {
    ///     match msrs.answer(vcpu.run()?) {
    ///         Ok(Answered::Continue) => {}
    ///         Ok(Answered::SetInKvm(value)) => _ = set_in_kvm(vcpu, value)?,
    ///         Ok(_) => return Ok(()),
    ///         Err(VcpuExit::Hlt) => return Ok(()),
    ///         Err(other) => println!("{other:?}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn answer<'a>(&mut self, exit: VcpuExit<'a>) -> Result<Answered, VcpuExit<'a>> {
        match exit {
            VcpuExit::X86Rdmsr(exit) => {
                let outcome = self.read(exit.index);
                let value = outcome.or_gp();
                *exit.error = value.is_none().into();
                *exit.data = value.unwrap_or(0);
                Ok(match outcome {
                    Outcome::Stop(_) => Answered::Stop,
                    _ => Answered::Continue,
                })
            }
            VcpuExit::X86Wrmsr(exit) => {
                let outcome = self.write(exit.index, exit.data);
                *exit.error = outcome.or_gp().is_none().into();
                Ok(match outcome {
                    Outcome::Stop(()) => Answered::Stop,
                    Outcome::SetInKvm(value) => Answered::SetInKvm(value),
                    _ => Answered::Continue,
                })
            }
            other => Err(other),
        }
    }
}

/// Passes the value that a handler asked for to KVM, and returns whether KVM accepted it. If so, the WRMSR that
/// exited succeeds, otherwise it is #GP(0). Call it between the exit and the next `KVM_RUN`.
///
/// # Errors
/// The ioctl failed. The guest gets #GP(0).
pub fn set_in_kvm(vcpu: &mut VcpuFd, value: MsrValue) -> Result<bool, Errno> {
    let taken = KvmMsrs(vcpu).set(&[value])? == 1;
    vcpu.get_kvm_run().__bindgen_anon_1.msr.error = u8::from(!taken);
    Ok(taken)
}
