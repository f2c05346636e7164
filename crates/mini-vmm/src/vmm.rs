// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run: one machine, or after resets several, until there is an outcome that ends the process.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::Kvm;
use log::{debug, error, info, warn};
use vcpu_loop::{FailureReport, SystemEvent, VcpuEvent, VcpuEventSubscriber};

use crate::boot::Watch;
use crate::console::{self, Console};
use crate::control::{Incident, State, occur};
use crate::loading::LoadWatch;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::spec::{OnReboot, VmSpec};
use crate::supervisor::{Supervisor, TerminationSignals};
use crate::vm::{self, Images, Loading, Machine};
use crate::{boot, check};

/// Where the host's KVM is.
pub const KVM: &str = "/dev/kvm";

/// How long a guest has to power off after a signal pressed its power button.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel or the initrd can't be used.
    #[error(transparent)]
    Image(#[from] boot::Error),
    /// The host's KVM can't be used.
    #[error(transparent)]
    Kvm(#[from] check::Error),
    /// The serial console can't be opened.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The machine can't be built or controlled.
    #[error(transparent)]
    Machine(#[from] vm::Error),
    /// The host has no file descriptors left for signals and events.
    #[error("can't wait for events ({0}); raise the limit on open files")]
    Events(io::Error),
    /// The event loop failed.
    #[error("the event loop failed ({0}); raise the limits on open files and memory")]
    EventLoop(event_manager::Error),
}

/// Runs the machine that `spec` describes until there is an outcome. What a failed vCPU left behind
/// is printed on standard error. SIGTERM, SIGINT and SIGHUP press the guest's power button from now on, or end the run
/// where there is no guest yet, and have no effect of their own for the rest of the process's life.
///
/// # Errors
/// Failures of the host and of the files that `spec` names: [`Error`] is a sentence that says which.
pub fn run(spec: &VmSpec) -> Result<Outcome, Error> {
    run_images(
        spec,
        |watch| Images::open(spec, watch),
        POWER_OFF_GRACE,
        || Console::open(&spec.serial),
    )
}

/// As [`run`], from the images that `open_images` opens, with the console that `open_console` opens once they have
/// turned out to be bootable, and with `grace` for a guest that is told to power off: with none, a signal
/// ends the run.
///
/// # Errors
/// As [`run`].
pub fn run_images(
    spec: &VmSpec,
    open_images: impl FnOnce(&dyn Watch) -> Result<Images, boot::Error>,
    grace: Duration,
    open_console: impl FnOnce() -> Result<Console, console::Error>,
) -> Result<Outcome, Error> {
    let time_out_at = spec.timeout.map(|timeout| Instant::now() + timeout);
    let signals = TerminationSignals::install().map_err(Error::Events)?;
    let watch = LoadWatch::new(&signals, time_out_at);
    let images = match open_images(&watch) {
        Ok(images) => images,
        Err(error) => return watch.outcome().ok_or(error.into()),
    };
    let host = Arc::new(check::open_kvm(Path::new(KVM))?);
    let mut loading = match Loading::start(&host, spec, &images, &watch) {
        Ok(loading) => loading,
        Err(error) => return watch.outcome().ok_or(error.into()),
    };
    if let Some(clockless) = loading.clockless(spec) {
        warn!("{clockless}");
    }
    // Only now: a kernel that can't be booted has emptied no file and left the terminal alone.
    let console = open_console()?;
    let run = Run {
        spec,
        host: &host,
        console: &console,
        signals: &signals,
        grace,
        time_out_at,
    };
    let mut state = State::Running;
    let (outcome, report) = loop {
        let (outcome, report) = run.machine(loading, &mut state)?;
        state = occur(state, run.incident(outcome));
        if state == State::Ended {
            break (outcome, report);
        }
        info!("the guest asked for a reset, starting again");
        let watch = LoadWatch::new(&signals, time_out_at);
        loading = match Loading::start(&host, spec, &images, &watch) {
            Ok(loading) => loading,
            Err(error) => break (watch.outcome().ok_or(error)?, None),
        };
    };
    // The terminal is as it was before anything longer than a line is printed.
    match outcome {
        Outcome::ConsoleQuit | Outcome::Signal(_) | Outcome::Timeout => console.close_soon(),
        _ => console.close(),
    }
    if let Some(report) = report {
        // With standard error gone, the exit code still says it.
        let _ = write!(io::stderr(), "{}{report}", console::line_start());
    }
    Ok(outcome)
}

/// What one machine after another runs with.
struct Run<'a> {
    spec: &'a VmSpec,
    host: &'a Arc<Kvm>,
    console: &'a Console,
    signals: &'a TerminationSignals,
    grace: Duration,
    time_out_at: Option<Instant>,
}

impl Run<'_> {
    /// What an outcome is to the run.
    fn incident(&self, outcome: Outcome) -> Incident {
        match (outcome, self.spec.on_reboot) {
            (Outcome::Reset, OnReboot::Reset) => Incident::Reset,
            _ => Incident::End,
        }
    }

    /// Finishes a machine and runs it until there is an outcome.
    fn machine(
        &self,
        loading: Loading,
        state: &mut State,
    ) -> Result<(Outcome, Option<Box<FailureReport>>), Error> {
        let latch = OutcomeLatch::new().map_err(Error::Events)?;
        let output = self.console.output();
        let (mut machine, vcpu_events) = loading.finish(self.host, self.spec, output, &latch)?;
        let report = Rc::new(RefCell::new(None));

        let mut manager = EventManager::new().map_err(Error::EventLoop)?;
        let supervisor = self.supervisor(*state, &machine, &latch)?;
        if let Some(outcome) = supervisor.borrow_mut().overdue(Instant::now()) {
            return Ok((outcome, None));
        }
        manager.add_subscriber(Rc::clone(&supervisor) as Subscriber);
        let on_event = VcpuPolicy {
            on_reboot: self.spec.on_reboot,
            latch: latch.clone(),
            report: Rc::clone(&report),
        };
        let vcpus = VcpuEventSubscriber::new(vcpu_events, move |event| on_event.apply(event));
        manager.add_subscriber(Rc::new(RefCell::new(vcpus)) as Subscriber);
        let takes_input = machine.devices.offers().console_input.clone();
        let input = takes_input.and_then(|device| self.console.attach_input(device, latch.clone()));
        if let Some(input) = input {
            manager.add_subscriber(Rc::new(RefCell::new(input)) as Subscriber);
        }

        machine.start()?;
        let mut outcome = wait(&mut manager, &supervisor, &latch)?;
        *state = supervisor.borrow().state();
        if outcome == Outcome::Reset {
            let instead = supervisor.borrow_mut().overdue(Instant::now());
            outcome = instead.unwrap_or(outcome);
        }
        if let Err(error) = machine.stop() {
            // The outcome matters more than a thread that the end of the process ends.
            warn!("{error}");
        }
        let counters = machine.calls.counters();
        if counters.total() > 0 {
            debug!("hypercalls: {counters}");
        }
        Ok((outcome, report.take()))
    }

    fn supervisor(
        &self,
        state: State,
        machine: &Machine,
        latch: &OutcomeLatch,
    ) -> Result<Rc<RefCell<Supervisor>>, Error> {
        let button = machine.devices.offers().power_button.clone();
        let signals = self.signals.try_clone().map_err(Error::Events)?;
        let supervisor = Supervisor::new(
            state,
            latch.clone(),
            signals,
            button,
            self.grace,
            self.time_out_at,
        );
        Ok(Rc::new(RefCell::new(supervisor)))
    }
}

/// A subscriber as the event loop holds it; the loop has one thread.
type Subscriber = Rc<RefCell<dyn MutEventSubscriber>>;

/// Handles events until there is an outcome.
fn wait(
    manager: &mut EventManager<Subscriber>,
    supervisor: &RefCell<Supervisor>,
    latch: &OutcomeLatch,
) -> Result<Outcome, Error> {
    loop {
        if let Some(outcome) = latch.get() {
            return Ok(outcome);
        }
        let sleep = supervisor.borrow_mut().check_deadlines(Instant::now());
        match manager.run_with_timeout(sleep) {
            Ok(_) => {}
            // A signal handler ran; what it has to say is in its stream.
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => {}
            Err(error) => return Err(Error::EventLoop(error)),
        }
    }
}

/// What the machine does about what its vCPUs report.
struct VcpuPolicy {
    on_reboot: OnReboot,
    latch: OutcomeLatch,
    report: Rc<RefCell<Option<Box<FailureReport>>>>,
}

impl VcpuPolicy {
    fn apply(&self, event: VcpuEvent) {
        match event {
            // PCs wire the processor's shutdown to reset, and `reboot=t` relies on it.
            VcpuEvent::Shutdown { report } if self.on_reboot == OnReboot::Reset => {
                info!("triple fault on vCPU {}", report.id);
                self.latch.set(Outcome::Reset);
            }
            VcpuEvent::Shutdown { report } | VcpuEvent::Fatal { report } => self.fail(report),
            VcpuEvent::SystemEvent { event, .. } => self.system_event(event),
            // A device set the outcome, and the vCPU that told it left the guest.
            VcpuEvent::Paused { id } => debug!("vCPU {id} left the guest"),
            // In-kernel interrupt controllers, no debugger, no dirty ring: these do not come.
            other => {
                error!(
                    "vCPU {} stopped for no reason that this machine has: {other:?}",
                    other.id()
                );
                self.latch.set(Outcome::VcpuFailure);
            }
        }
    }

    /// Keeps the report if the failure is the outcome; otherwise it is a consequence of another one.
    fn fail(&self, report: Box<FailureReport>) {
        if self.latch.set(Outcome::VcpuFailure) {
            *self.report.borrow_mut() = Some(report);
        }
    }

    /// KVM API, `KVM_EXIT_SYSTEM_EVENT`.
    fn system_event(&self, event: SystemEvent) {
        self.latch.set(match event.kind {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::PowerOff,
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => Outcome::Reset,
            kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Outcome::GuestPanic,
            kind => {
                error!("KVM reports system event {kind}, which this machine can't have");
                Outcome::VcpuFailure
            }
        });
    }
}
