// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The caller's code that runs on a vCPU's thread.

use std::any::Any;
use std::fmt;

use crate::vcpu::{BoxError, ManagedVcpu};

/// The controller's code for a vCPU of any type. It does nothing if the vCPU has another type than it expects.
pub(crate) type Call = Box<dyn FnOnce(&mut dyn Any) + Send>;

/// Runs on a vCPU's thread before its first entry.
pub(crate) type StartHook<V, I> = Box<dyn FnOnce(&mut V, &mut I) -> Result<(), BoxError> + Send>;

type SaveHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I) -> Result<S, BoxError> + Send>;
type RestoreHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I, S) -> Result<(), BoxError> + Send>;

/// Saves a vCPU and its I/O object as one state, and restores them.
///
/// Needed if the I/O object has its own state, such as per-vCPU MSRs. Both hooks run on the vCPU's thread, while the
/// vCPU is paused (or has ended, for a restore).
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
    /// Hooks from two closures.
    ///
    /// A `restore` hook should first check what it can, and return [`Unchanged`] if a check fails. Then it restores the
    /// vCPU and returns the vCPU's error, either directly or as a [`source`](std::error::Error::source). After
    /// `Unchanged`, or a vCPU's error for which [`SaveVcpu::left_unchanged`] is true, the vCPU stays paused or ended,
    /// as before. Any other error ends it until a restore succeeds.
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
