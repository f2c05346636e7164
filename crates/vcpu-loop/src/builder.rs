// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a spawn takes, and what a failed spawn or a stop returns.

use std::any::Any;
use std::fmt;

use crate::error::Error;
use crate::hooks::{StartHook, StateHooks};
use crate::state::State;
use crate::vcpu::{BoxError, ManagedVcpu, VcpuId, VcpuIo};

/// A vCPU and the options of its thread, for [`VcpuSet::spawn_with`](crate::VcpuSet::spawn_with).
pub struct VcpuBuilder<V, I, S> {
    pub(crate) id: VcpuId,
    pub(crate) vcpu: V,
    pub(crate) io: I,
    pub(crate) hooks: StateHooks<V, I, S>,
    pub(crate) on_start: Option<StartHook<V, I>>,
    pub(crate) name: Option<String>,
    pub(crate) stack_size: Option<usize>,
}

impl<V, I, S> fmt::Debug for VcpuBuilder<V, I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuBuilder")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("stack_size", &self.stack_size)
            .finish_non_exhaustive()
    }
}

impl<V: ManagedVcpu, I: VcpuIo> VcpuBuilder<V, I, V::State> {
    /// A vCPU on a thread `vcpu<id>` with the standard library's stack size. Its saved state has no I/O object's state.
    pub fn new(id: impl Into<VcpuId>, vcpu: V, io: I) -> Self {
        VcpuBuilder {
            id: id.into(),
            vcpu,
            io,
            hooks: StateHooks::vcpu_only(),
            on_start: None,
            name: None,
            stack_size: None,
        }
    }
}

impl<V, I, S> VcpuBuilder<V, I, S> {
    /// Saves and restores by these hooks, to include the I/O object's own state.
    #[must_use]
    pub fn state_hooks<T>(self, hooks: StateHooks<V, I, T>) -> VcpuBuilder<V, I, T> {
        VcpuBuilder {
            id: self.id,
            vcpu: self.vcpu,
            io: self.io,
            hooks,
            on_start: self.on_start,
            name: self.name,
            stack_size: self.stack_size,
        }
    }

    /// Runs `hook` first on the vCPU's thread, for affinity, scheduling and seccomp.
    ///
    /// The kick signal is unblocked after it. If the hook fails, the vCPU never runs: it sends one
    /// [`VcpuEvent::Fatal`](crate::VcpuEvent::Fatal), and a resume fails with [`Error::Start`].
    #[must_use]
    pub fn on_start(
        mut self,
        hook: impl FnOnce(&mut V, &mut I) -> Result<(), BoxError> + Send + 'static,
    ) -> Self {
        self.on_start = Some(Box::new(hook));
        self
    }

    /// The thread's name, of which Linux shows the first 15 bytes. The spawn refuses a name with a NUL byte.
    #[must_use]
    pub fn thread_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The thread's stack, in bytes; the host may round it up.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }
}

/// A failed spawn. It returns the vCPU, because KVM doesn't create a second one with the same id.
pub struct SpawnError<V, I> {
    /// Why.
    pub error: Error,
    /// The vCPU, unchanged.
    pub vcpu: V,
    /// Its I/O object.
    pub io: I,
}

impl<V, I> fmt::Debug for SpawnError<V, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<V, I> fmt::Display for SpawnError<V, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<V, I> std::error::Error for SpawnError<V, I> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<V, I> From<SpawnError<V, I>> for Error {
    /// Drops the vCPU.
    fn from(failed: SpawnError<V, I>) -> Self {
        failed.error
    }
}

/// A vCPU that was stopped, with its I/O object. It can be spawned again, even in another set.
#[non_exhaustive]
pub struct Stopped<V, I> {
    /// Its id.
    pub id: VcpuId,
    /// Its state before the stop. A [`State::Running`] vCPU was taken out of the guest with nothing pending. One that
    /// [failed](State::Failed) may be in the middle of anything, and one that [ended](State::Ended) needs a
    /// restored state.
    pub state: State,
    /// The vCPU.
    pub vcpu: V,
    /// Its I/O object.
    pub io: I,
}

impl<V, I> fmt::Debug for Stopped<V, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopped")
            .field("id", &self.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// A [`Stopped`] vCPU as a set returns it, without its types.
pub struct StoppedVcpu {
    id: VcpuId,
    state: State,
    stopped: Box<dyn Any + Send>,
}

impl fmt::Debug for StoppedVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoppedVcpu")
            .field("id", &self.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl StoppedVcpu {
    pub(crate) fn new<V: Send + 'static, I: Send + 'static>(stopped: Stopped<V, I>) -> Self {
        StoppedVcpu {
            id: stopped.id,
            state: stopped.state,
            stopped: Box::new(stopped),
        }
    }

    /// Its id.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Its state before the stop, see [`Stopped::state`].
    pub fn state(&self) -> State {
        self.state
    }

    /// The vCPU and its I/O object, of the types that it was spawned with.
    ///
    /// # Errors
    /// They have other types. The vCPU is returned.
    pub fn downcast<V: 'static, I: 'static>(self) -> Result<Stopped<V, I>, Self> {
        let StoppedVcpu { id, state, stopped } = self;
        stopped
            .downcast()
            .map(|stopped| *stopped)
            .map_err(|stopped| StoppedVcpu { id, state, stopped })
    }
}
