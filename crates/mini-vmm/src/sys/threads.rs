// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a thread inherits from the one that starts it, and should not keep.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs on which a thread may run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affinity(Option<CpuSet>);

impl Affinity {
    /// Those of the calling thread.
    pub(crate) fn current() -> Self {
        // Fails on a host with more CPUs than a set has. Then threads keep what they inherit.
        Affinity(sched_getaffinity(None).ok())
    }

    /// Lets the calling thread run on these.
    pub(crate) fn apply(self) {
        if let Affinity(Some(cpus)) = self {
            // Fails if the host has taken all these CPUs away. Then the thread runs where its creator does.
            let _ = sched_setaffinity(None, &cpus);
        }
    }
}

/// Blocks all signals in the calling thread. Signals for the process are handled by other threads.
///
/// Signals of faults end the process also when they are blocked.
pub(crate) fn block_all_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initializes the set that it gets, and `pthread_sigmask` reads it. The null pointer says that
    // the previous mask is not wanted.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}
