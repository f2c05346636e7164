// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU on a thread of the caller.

use std::fmt;

use crate::builder::Stopped;
use crate::thread::Worker;
use crate::vcpu::{ManagedVcpu, VcpuIo};

/// A vCPU of a set that runs on a thread of the caller, from [`VcpuSet::attach`](crate::VcpuSet::attach).
///
/// It is controlled like any other vCPU, but it answers requests only while [`run_here`](VcpuRunner::run_here) runs.
/// Earlier requests wait for it. Once the runner is dropped, requests fail with [`Error::Gone`](crate::Error::Gone).
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
    /// Runs the vCPU on the calling thread until the vCPU is stopped, or its set is dropped. The kick signal is
    /// unblocked meanwhile; if the thread blocked it before, it is blocked again afterwards.
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
