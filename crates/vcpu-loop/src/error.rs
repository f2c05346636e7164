// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong while controlling vCPUs.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{BoxError, VcpuId};
use crate::state::{Request, State};

/// An error of a [`VcpuSet`](crate::VcpuSet).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id is taken.
    #[error("vCPU {id} exists already, give each vCPU its own id")]
    DuplicateId {
        /// The id.
        id: VcpuId,
    },
    /// No vCPU has this id.
    #[error("there is no vCPU {id}")]
    NoSuchVcpu {
        /// The id.
        id: VcpuId,
    },
    /// There must be one state per vCPU.
    #[error("{given} saved states were given for {vcpus} vCPUs, give one per vCPU")]
    WrongStateCount {
        /// How many states were given.
        given: usize,
        /// How many vCPUs there are.
        vcpus: usize,
    },
    /// The kick signal's handler could not be installed.
    #[error("can't install a handler for the kick signal {signal}, choose another signal")]
    Signal {
        /// Its number.
        signal: i32,
        /// Why.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error(
        "can't start a thread for vCPU {id}, check its name, its stack size and the process's limits"
    )]
    Thread {
        /// For which vCPU.
        id: VcpuId,
        /// Why.
        source: io::Error,
    },
    /// The program has another handler for the kick signal, which was not replaced.
    #[error(
        "signal {signal} already has another handler, choose another kick signal (KickSignal::real_time)"
    )]
    SignalTaken {
        /// Its number.
        signal: i32,
    },
    /// The start hook failed, so the vCPU never runs.
    #[error("vCPU {id} could not start, the cause below says why")]
    Start {
        /// Which vCPU.
        id: VcpuId,
        /// Why.
        source: StartError,
    },
    /// Not every vCPU answered in time. The request stays in the mailboxes, so these vCPUs obey it when they can.
    #[error(
        "{} did not answer the {request} request within {waited:?}, a device may be blocking it",
        ids(missed)
    )]
    Deadline {
        /// What was asked.
        request: Request,
        /// Which vCPUs did not answer.
        missed: Vec<VcpuId>,
        /// The deadline for all of them together.
        waited: Duration,
    },
    /// A vCPU is in a state that doesn't allow the request.
    #[error("vCPU {id} is {state} and refuses the {request} request")]
    Refused {
        /// Which vCPU.
        id: VcpuId,
        /// What was asked.
        request: Request,
        /// Its state.
        state: State,
    },
    /// The host, or a hook, failed a vCPU's request.
    #[error("vCPU {id} could not {request}")]
    Host {
        /// Which vCPU.
        id: VcpuId,
        /// What was asked.
        request: Request,
        /// Why.
        source: BoxError,
    },
    /// The vCPU has another type than the closure expects.
    #[error("vCPU {id} is not a {wanted}, name the type that it was spawned with")]
    WrongType {
        /// Which vCPU.
        id: VcpuId,
        /// The type's name.
        wanted: &'static str,
    },
    /// A vCPU's thread is gone; its last event says why.
    #[error("the thread of vCPU {id} is gone, its last event says why")]
    Gone {
        /// Which vCPU.
        id: VcpuId,
    },
}

/// The error of a restore hook that changed nothing: the vCPU can continue with its old state. It prints as the error
/// inside.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unchanged(#[from] pub BoxError);

/// A [start hook](crate::VcpuBuilder::on_start) failed. Its error is the [`source`](StdError::source).
#[derive(Clone, Debug)]
pub struct StartError(Arc<dyn StdError + Send + Sync>);

impl StartError {
    pub(crate) fn new(error: BoxError) -> Self {
        StartError(error.into())
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("its start hook failed")
    }
}

impl StdError for StartError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// `Result` of a [`VcpuSet`](crate::VcpuSet).
pub type Result<T> = std::result::Result<T, Error>;

fn ids(missed: &[VcpuId]) -> String {
    let list: Vec<String> = missed.iter().map(VcpuId::to_string).collect();
    format!(
        "vCPU{} {}",
        if list.len() == 1 { "" } else { "s" },
        list.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_deadline_names_who_missed_it() {
        let error = Error::Deadline {
            request: Request::Pause,
            missed: vec![VcpuId(1), VcpuId(3)],
            waited: Duration::from_secs(2),
        };
        assert_eq!(
            error.to_string(),
            "vCPUs 1, 3 did not answer the pause request within 2s, a device may be blocking it"
        );
    }
}
