// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU on a thread of the caller's own.

use std::fmt;

use crate::builder::Stopped;
use crate::thread::Worker;
use crate::vcpu::{ManagedVcpu, VcpuIo};

/// A vCPU of a set that runs where the caller wants it, made by [`VcpuSet::attach`](crate::VcpuSet::attach).
///
/// Its controllers notice no difference, except that requests are answered only while
/// [`run_here`](VcpuRunner::run_here) runs: one that comes before waits for it. Once the runner was dropped, they
/// fail with [`Error::Gone`](crate::Error::Gone).
#[must_use = "the vCPU answers requests only while it runs"]
pub struct VcpuRunner<V, I, S>(pub(crate) Worker<V, I, S>);

impl<V, I, S> fmt::Debug for VcpuRunner<V, I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuRunner")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}

impl<V: ManagedVcpu + 'static, I: VcpuIo, S> VcpuRunner<V, I, S> {
    /// Makes the calling thread the vCPU's until the vCPU is stopped, or its set is gone. The thread gets the kick
    /// signal meanwhile. Whether that was blocked before is restored afterwards.
    pub fn run_here(self) -> Stopped<V, I> {
        let signal = self.0.signal;
        let was_blocked = signal.is_blocked();
        let stopped = self.0.main();
        if was_blocked {
            signal.block();
        }
        stopped
    }
}
