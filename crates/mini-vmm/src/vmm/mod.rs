// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A run: one machine, or several after resets, until there is an outcome. The command line uses [`run`], on the
//! caller's thread. Programs that control their machines with a [`Handle`] use [`Vmm::build`].

mod begin;
pub mod control;
#[cfg(any(test, feature = "test-utils"))]
pub(crate) mod fake;
mod handle;
mod loading;
mod policy;
mod remote;
mod run;
mod session;
mod supervisor;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use vcpu_loop::FailureReport;

use crate::boot::Watch;
use crate::check;
use crate::config::{self, VmSpec};
use crate::console::{self, Console};
use crate::inputs;
use crate::machine::{self, ImageError, Images};
use crate::outcome::Outcome;
use crate::telemetry;
use crate::vmm::begin::Begin;
use crate::vmm::control::{State, door};
use crate::vmm::supervisor::TerminationSignals;

pub use begin::Saved;
pub use handle::Handle;
pub(crate) use remote::Starting;
#[cfg(any(test, feature = "test-utils"))]
pub(crate) use remote::deaf;
pub use remote::{Orders, Remote, remote};
use run::Controls;
pub use run::Vmm;

/// The host's KVM device.
pub const KVM: &str = "/dev/kvm";

/// How long a guest has to power off after a signal pressed its power button.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the machine boots from or that a device uses can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The host's KVM can't be used.
    #[error(transparent)]
    Kvm(#[from] check::Error),
    /// The serial console can't be opened.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The machine can't be built or controlled.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The description is not valid.
    #[error(transparent)]
    Spec(#[from] config::Error),
    /// The host has no file descriptors left for signals and events.
    #[error("can't wait for events ({0}); raise the limit on open files")]
    Events(io::Error),
    /// The event loop failed.
    #[error("the event loop failed ({0}); raise the limits on open files and memory")]
    EventLoop(event_manager::Error),
    /// The host has no thread left for the control loop.
    #[error("can't start the control loop ({0}); raise the limit on threads (ulimit -u)")]
    Thread(io::Error),
    /// The control loop panicked.
    #[error("the control loop panicked, the machine is gone; report this with what it printed")]
    Panicked,
    /// Counters and events can't be written.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// Nothing can start the machine any more.
    #[error(
        "the thread that serves the API is gone, so nothing can start a machine; report this with what it printed"
    )]
    Unstarted,
}

/// Runs the machine that `spec` describes until there is an outcome. The report of a failed vCPU is printed on standard
/// error. From now on SIGTERM, SIGINT and SIGHUP press the guest's power button, or end the run if there is no guest
/// yet. They lose their default effect for the rest of the process's life.
///
/// # Errors
/// The host or a file that `spec` names failed; the [`Error`] says which.
pub fn run(spec: &VmSpec) -> Result<Outcome, Error> {
    spare_images(spec)?;
    run_images(
        spec,
        |watch| Images::open(spec, watch),
        POWER_OFF_GRACE,
        || begin::open_console(spec),
    )
}

/// Checks that no output of the guest's overwrites a file that `spec` boots from, a disk, or a file of its seed.
fn spare_images(spec: &VmSpec) -> Result<(), console::Error> {
    let mut outputs = inputs::guest_outputs(spec);
    let overwritten = outputs.find_map(|output| inputs::same_as(output, spec));
    overwritten.map_or(Ok(()), |input| Err(console::Error::OwnInput(input)))
}

/// Like [`run`], with the images from `open_images`. The console from `open_console` is opened once the images are
/// known to be bootable. `grace` is the time that a guest has to power off after a signal; if zero, a signal ends the
/// run.
///
/// # Errors
/// As [`run`].
pub fn run_images(
    spec: &VmSpec,
    open_images: impl FnOnce(&dyn Watch) -> Result<Images, ImageError>,
    grace: Duration,
    open_console: impl FnOnce() -> Result<Console, console::Error>,
) -> Result<Outcome, Error> {
    let signals = TerminationSignals::install().map_err(Error::Events)?;
    // Nothing uses the client: only signals control this run.
    let (_, door) = door().map_err(Error::Events)?;
    let controls = Controls {
        signals,
        grace,
        door,
        meter: Arc::default(),
    };
    let begin = Begin {
        spec,
        open: Box::new(|watch| Ok(open_images(watch)?.into())),
        open_console: Box::new(open_console),
        state: State::Running,
    };
    Ok(report(begin.run(controls, || {})?))
}

/// Goes on with a saved machine, which `spec` describes, until there is an outcome. Otherwise as [`run`].
///
/// # Errors
/// As [`run`]; also if the saved state doesn't fit this host. No guest instruction was executed then.
pub fn restore(spec: &VmSpec, saved: Saved) -> Result<Outcome, Error> {
    spare_images(spec)?;
    let signals = TerminationSignals::install().map_err(Error::Events)?;
    let (_, door) = door().map_err(Error::Events)?;
    let controls = Controls {
        signals,
        grace: POWER_OFF_GRACE,
        door,
        meter: Arc::default(),
    };
    Ok(report(Begin::thaw(spec, saved).run(controls, || {})?))
}

/// Prints the report of a failed vCPU, and returns the outcome.
fn report(ended: Ended) -> Outcome {
    // The terminal's settings are restored before a long text is printed.
    if let Some(report) = ended.report {
        // If standard error is closed, there is still the exit code.
        let _ = write!(io::stderr(), "{}{report}", console::line_start());
    }
    ended.outcome
}

/// How a run ended, and the report of a failed vCPU.
#[derive(Debug)]
struct Ended {
    outcome: Outcome,
    report: Option<Box<FailureReport>>,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        let report = None;
        Ended { outcome, report }
    }
}
