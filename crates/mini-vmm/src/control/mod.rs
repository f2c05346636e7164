// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one door by which a run is controlled: commands, and the state that they lead to.

mod state;

pub use state::{Command, Incident, Response, State, occur, step};
