// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one door by which a run is controlled: commands, the state that they lead to, and their answers.
//!
//! A client puts a command into a queue, rings an eventfd, and waits for the answer. The control loop does one command
//! after another, and waits for vCPUs. So everybody waits in one order, client, control loop, vCPU, and never the other
//! way: devices and exit handlers only report outcomes, which needs no answer. They must not send commands.

mod door;
mod state;

use std::io;

use crate::config::VmSpec;
use crate::hypercall::calls::Counters;
use crate::machine;
use crate::machine::MachineState;

pub(crate) use door::{Client, Door, door};
pub use state::{Command, State};
pub(crate) use state::{Incident, Response, occur, step};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run is over.
    #[error("the machine has ended; wait for it to learn how")]
    Ended,
    /// Not in this state.
    #[error("can't {command} a machine that is {state}; {}", way_out(*state))]
    Refused {
        /// What was asked for.
        command: Command,
        /// In which state.
        state: State,
    },
    /// The machine's devices have no power button.
    #[error("this machine has no power button; stop it instead")]
    NoPowerButton,
    /// The power button's interrupt can't be raised.
    #[error(
        "can't reach the guest's power button ({0}); raise the limit on open files (ulimit -n)"
    )]
    PowerButton(io::Error),
    /// The machine did not do it. It is in the state that it was in.
    #[error(transparent)]
    Machine(#[from] machine::Error),
}

/// What helps where a command is refused.
fn way_out(state: State) -> &'static str {
    match state {
        State::Running => "pause it first",
        _ => "wait for its end, or stop it",
    }
}

impl Error {
    /// The answer to a command that [`step`] refuses in `state`.
    pub(crate) fn refused(command: Command, state: State) -> Self {
        match state {
            State::Ended => Error::Ended,
            _ => Error::Refused { command, state },
        }
    }
}

/// What a command that was done leads to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Command::Save`].
    Saved(Box<MachineState>),
    /// To [`Command::Describe`].
    Described(Box<Description>),
}

/// What runs, and what was counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// Where the run stands.
    pub state: State,
    /// The machine.
    pub spec: VmSpec,
    /// How often it was reset. The counters below began at 0 each time.
    pub resets: u64,
    /// Exits of each vCPU, in order.
    pub exits: Vec<u64>,
    /// Hypercalls that reached the VMM.
    pub hypercalls: Counters,
}
