// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run of one machine.

use crate::outcome::Outcome;
use crate::spec::VmSpec;

/// Why a machine could not be built or run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This build has no virtual machine in it.
    #[error("this build can't run machines; use --print-config or completions")]
    Absent,
}

/// Runs the machine that `spec` describes until there is an outcome.
///
/// # Errors
/// Always, in this build.
pub fn run(_spec: &VmSpec) -> Result<Outcome, Error> {
    Err(Error::Absent)
}
