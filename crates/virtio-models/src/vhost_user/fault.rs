// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a backend.

use std::io;

use thiserror::Error;

use super::wire::Request;

/// Why a backend can't be used. The messages continue the phrase "the vhost-user backend ".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// Nobody can be reached.
    #[error("can't be reached ({0}); start it first")]
    Unreachable(#[source] io::Error),
    /// It closed the connection.
    #[error("has closed the connection; look at its messages")]
    Closed,
    /// It doesn't answer.
    #[error(
        "does not answer {0:?} in time; is it one for vhost-user, and does it serve another machine?"
    )]
    Silent(Request),
    /// Its answer is not one.
    #[error("answers {0:?} with something else; is it one for vhost-user?")]
    Answer(Request),
    /// It refuses a message.
    #[error("refuses {0:?}; look at its messages")]
    Refused(Request),
    /// It says something that it was not asked for.
    #[error("says something unasked; use another version of it")]
    Unasked,
    /// The host refuses something.
    #[error("can't be talked to ({0}); raise the limit on open files")]
    Host(#[from] io::Error),
    /// It has no feature that is necessary.
    #[error("has no {0}, which this device needs; use another version of it")]
    Lacks(&'static str),
    /// It has too few queues.
    #[error("has {has} queues, and the device needs {wanted}; ask for fewer with `queues=`")]
    Queues {
        /// How many it has.
        has: u64,
        /// How many the device has.
        wanted: u64,
    },
    /// Its configuration can't be.
    #[error("describes a device that can't be: {0}; use another version of it")]
    Config(&'static str),
    /// After a new connection it isn't what it was.
    #[error("has other features or queues than the one before; start the same one again")]
    Changed,
    /// Another device has the connection.
    #[error("serves another device; give each device a backend of its own")]
    InUse,
    /// Guest memory is not in files, so no other process can have it.
    #[error("can't have guest memory, which is private to this process")]
    PrivateMemory,
}

impl Fault {
    /// The reason why a device stops, or doesn't start.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Fault::Closed => {
                "its vhost-user backend has ended; start it again, and then the guest's driver"
            }
            Fault::Unreachable(_) => {
                "its vhost-user backend can't be reached; start it, and then the guest's driver"
            }
            Fault::Silent(_) => "its vhost-user backend does not answer in time",
            Fault::Refused(_) => "its vhost-user backend refuses the guest's queues or memory",
            Fault::Changed => {
                "its vhost-user backend has other features or queues than the one before"
            }
            Fault::InUse => "its vhost-user backend serves another device",
            Fault::Host(_) => "the host has no descriptor left for its queues",
            Fault::PrivateMemory => {
                "its vhost-user backend can't have guest memory, which is private to this process"
            }
            _ => "its vhost-user backend breaks the protocol",
        }
    }
}
