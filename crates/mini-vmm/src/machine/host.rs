// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host, shared by all machines of a run.

use std::fmt;
use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::hypercall::para::{Probe, probe};

/// The host's KVM, and what was probed about it. After a reset the next machine opens and probes nothing again. Clones
/// are the same host.
#[derive(Clone)]
pub struct Host {
    pub(super) kvm: Arc<Kvm>,
    /// Tests whether KVM completes hypercalls.
    pub(super) probe: Probe,
}

impl Host {
    /// A host that is not probed yet.
    pub fn new(kvm: Kvm) -> Self {
        let kvm = Arc::new(kvm);
        let probe = probe(Arc::clone(&kvm));
        Host { kvm, probe }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.kvm).finish()
    }
}
