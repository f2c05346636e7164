// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this host can do.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What the host can do.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    kvm: PathBuf,
    exists: bool,
}

impl Report {
    /// Whether a stock kernel can run here.
    pub fn ok(&self) -> bool {
        self.exists
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = if self.exists { "found" } else { "not found" };
        write!(f, "{}: {state}", self.kvm.display())
    }
}

/// Looks at the host's KVM.
pub fn probe(kvm: &Path) -> Report {
    Report {
        kvm: kvm.to_owned(),
        exists: kvm.exists(),
    }
}
