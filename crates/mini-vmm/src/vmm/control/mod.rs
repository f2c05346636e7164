// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The only way to control a run: commands, the states that they lead to, and their answers.
//!
//! A client puts a command into a queue, writes an eventfd, and waits for the answer. The control loop does one command
//! at a time, and waits for vCPUs. To avoid deadlocks, waiting goes in one direction only: client, control loop, vCPU.
//! So devices and exit handlers must not send commands. They report outcomes, which need no answer.

mod change;
mod door;
mod state;

use std::io;
use std::time::Duration;

use virtio_models::balloon::HintError;
use virtio_models::block::ReplaceError;

use crate::config::{self, VmSpec};
use crate::devices::SlotError;
use crate::hypercall::calls::Counters;
use crate::machine;
use crate::machine::MachineState;
use crate::snapshot;
pub use crate::snapshot::Pages;

pub use change::{BalloonChange, BalloonReport, DiskChange, HintOrder, NetChange};
pub(crate) use door::{Answered, Client, Door, Envelope, Shown, door};
pub use state::{Asked, Command, Listing, SnapshotOrder, State, Then};
pub(crate) use state::{Incident, Response, occur, step};

/// How long a guest may take to give up a device.
pub const GIVE_UP: Duration = Duration::from_secs(30);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run is over.
    #[error("the machine has ended; wait for it to learn how")]
    Ended,
    /// The command is not possible in this state.
    #[error("can't {command} a machine that is {state}; {}", way_out(*state))]
    Refused {
        /// The command.
        command: Box<Command>,
        /// The state of the run.
        state: State,
    },
    /// Too many commands wait for their answers.
    #[error("many commands wait for this machine already; wait for their answers")]
    Busy,
    /// The machine's devices have no power button.
    #[error("this machine has no power button; stop it instead")]
    NoPowerButton,
    /// The power button's interrupt can't be raised.
    #[error(
        "can't reach the guest's power button ({0}); raise the limit on open files (ulimit -n)"
    )]
    PowerButton(io::Error),
    /// The machine has no such device.
    #[error("the machine has no such device; its description tells which ones it has")]
    NoDevice,
    /// A device can't be added.
    #[error("no new device: {0}")]
    Slot(#[from] SlotError),
    /// Another device has that slot, or what the new one needs for itself.
    #[error("no new device: {0}")]
    NotPossible(config::Error),
    /// The guest has not given up a device.
    #[error(
        "the guest has not given up the device in {} seconds; let its programs leave it and try again, or remove it by force",
        GIVE_UP.as_secs()
    )]
    NotGivenUp,
    /// The device is being removed.
    #[error("the device is being removed already; wait for that")]
    Leaving,
    /// The image can't take the place of the old one.
    #[error("the disk keeps its image, because {0}; name another image")]
    Image(#[from] ReplaceError),
    /// The guest gives no hints at free pages.
    #[error("{0}; wait until its driver runs")]
    NoHints(#[from] HintError),
    /// The machine failed to do it. The state is unchanged.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The host doesn't tell about memory.
    #[error("can't read /proc/self/pagemap ({0}); let this process read it")]
    Pagemap(io::Error),
    /// There is no snapshot. The state is unchanged.
    #[error("no snapshot: {0}")]
    Snapshot(#[from] snapshot::Error),
}

/// The next step for a refused command.
fn way_out(state: State) -> &'static str {
    match state {
        State::Running => "pause it first",
        _ => "wait for its end, or stop it",
    }
}

impl Error {
    /// The error for a command that [`step`] refuses in `state`.
    pub(crate) fn refused(command: Command, state: State) -> Self {
        match state {
            State::Ended => Error::Ended,
            _ => Error::Refused {
                command: Box::new(command),
                state,
            },
        }
    }
}

/// The answer to a command that succeeded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// Done, without further data.
    Done,
    /// The answer to [`Command::Save`].
    Saved(Box<MachineState>),
    /// The answer to [`Command::Describe`].
    Described(Box<Description>),
    /// The answer to [`Command::ListMemory`].
    Listed(Pages),
    /// The answer to [`Command::AskBalloon`].
    Balloon(BalloonReport),
}

/// The machine of a run, its state and its counters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// The state of the run.
    pub state: State,
    /// The machine's description.
    pub spec: VmSpec,
    /// How often it was reset. The counters below restart from 0 each time.
    pub resets: u64,
    /// The number of exits of each vCPU, in order.
    pub exits: Vec<u64>,
    /// Hypercalls that reached the VMM.
    pub hypercalls: Counters,
}
