// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Code of the caller's that runs on a vCPU's thread.

use std::any::Any;
use std::fmt;

use crate::vcpu::{BoxError, ManagedVcpu};

/// The controller's own code, for a vCPU whose type the set has forgotten. It does nothing on another type.
pub(crate) type Call = Box<dyn FnOnce(&mut dyn Any) + Send>;

/// Runs on a vCPU's thread before its first entry.
pub(crate) type StartHook<V, I> = Box<dyn FnOnce(&mut V, &mut I) -> Result<(), BoxError> + Send>;

type SaveHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I) -> Result<S, BoxError> + Send>;
type RestoreHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I, S) -> Result<(), BoxError> + Send>;

/// How a vCPU and its I/O object become one saved state, and back.
///
/// Needed when the I/O object has state of its own, such as per-vCPU MSRs. Both run on the vCPU's
/// thread, while it is paused.
pub struct StateHooks<V, I, S> {
    pub(crate) save: SaveHook<V, I, S>,
    pub(crate) restore: RestoreHook<V, I, S>,
}

impl<V, I, S> fmt::Debug for StateHooks<V, I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateHooks").finish_non_exhaustive()
    }
}

impl<V, I, S> StateHooks<V, I, S> {
    /// Hooks of the caller's own.
    ///
    /// A `restore` hook should check what it can before it changes anything, and say [`Unchanged`] where that fails;
    /// then restore the vCPU and pass its error on, by itself or as a [`source`](std::error::Error::source). After
    /// `Unchanged`, or an error of which the vCPU says [`SaveVcpu::left_unchanged`], the vCPU stays what it was, paused
    /// or ended. Any other error ends it until a restore succeeds.
    ///
    /// [`Unchanged`]: crate::Unchanged
    /// [`SaveVcpu::left_unchanged`]: crate::SaveVcpu::left_unchanged
    pub fn new(
        save: impl FnMut(&mut V, &mut I) -> Result<S, BoxError> + Send + 'static,
        restore: impl FnMut(&mut V, &mut I, S) -> Result<(), BoxError> + Send + 'static,
    ) -> Self {
        StateHooks {
            save: Box::new(save),
            restore: Box::new(restore),
        }
    }
}

impl<V: ManagedVcpu, I> StateHooks<V, I, V::State> {
    /// The vCPU's state alone.
    pub fn vcpu_only() -> Self {
        StateHooks::new(
            |vcpu: &mut V, _: &mut I| vcpu.save().map_err(Into::into),
            |vcpu: &mut V, _: &mut I, state: V::State| vcpu.restore(&state).map_err(Into::into),
        )
    }
}
