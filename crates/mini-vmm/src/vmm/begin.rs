// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a run begins: with a kernel, or with a saved machine.

use super::control::State;
use super::run::{Controls, Origin, Vmm};
use super::{Ended, Error};
use crate::boot::{Step, Watch};
use crate::config::VmSpec;
use crate::console::{self, Console};
use crate::devices::Backends;
use crate::machine::{Frozen, ImageError, Images};
use crate::snapshot::Tracker;

/// A saved machine that is to go on.
#[derive(Debug)]
pub struct Saved {
    /// Its memory and state.
    pub frozen: Frozen,
    /// What is known about its memory.
    pub tracker: Tracker,
    /// Whether it runs at once. If not, it is paused.
    pub runs: bool,
}

/// Opens what a machine comes from. It may be stopped.
type Open<'a> = Box<dyn FnOnce(&dyn Watch) -> Result<Origin, Error> + 'a>;

/// Opens the console of a machine.
pub(super) fn open_console(spec: &VmSpec) -> Result<Console, console::Error> {
    Console::open_all(spec)
}

/// How a machine begins.
pub(super) struct Begin<'a> {
    pub spec: &'a VmSpec,
    pub open: Open<'a>,
    pub open_console: Box<dyn FnOnce() -> Result<Console, console::Error> + 'a>,
    /// The state that it begins in.
    pub state: State,
}

impl<'a> Begin<'a> {
    /// With the kernel that `spec` names.
    pub fn boot(spec: &'a VmSpec) -> Self {
        Begin {
            spec,
            open: Box::new(|watch| Ok(Images::open(spec, watch)?.into())),
            open_console: Box::new(|| open_console(spec)),
            state: State::Running,
        }
    }

    /// With a saved machine, which `spec` describes.
    pub fn thaw(spec: &'a VmSpec, saved: Saved) -> Self {
        let Saved {
            frozen,
            tracker,
            runs,
        } = saved;
        Begin {
            spec,
            open: Box::new(move |watch| {
                let go_on = || watch.go_on(Step::wait("passt"));
                let backends = Backends::open_saved(spec, &frozen.overlays, &go_on);
                let backends = backends.map_err(ImageError::from)?;
                Ok(Origin::Frozen(frozen, backends, tracker))
            }),
            open_console: Box::new(|| open_console(spec)),
            state: match runs {
                true => State::Running,
                false => State::Paused,
            },
        }
    }

    /// Runs the machine to its outcome. `started` is called before its guest runs.
    pub fn run(self, controls: Controls, started: impl FnOnce()) -> Result<Ended, Error> {
        match Vmm::new(self.spec, controls, self.open, self.open_console)? {
            Ok((vmm, built)) => {
                vmm.door.shown().set(self.state);
                started();
                vmm.run(built, self.state)
            }
            Err(outcome) => Ok(outcome.into()),
        }
    }
}
