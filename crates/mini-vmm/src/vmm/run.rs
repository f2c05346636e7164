// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A run: one machine after another, until an outcome ends it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use vcpu_loop::VcpuEvents;

use super::session::Session;
use super::{Ended, Error, KVM};
use crate::boot::Watch;
use crate::check;
use crate::config::{OnReboot, VmSpec};
use crate::console::{self, Console};
use crate::devices::Backends;
use crate::machine::{Frozen, Host, Images, Loading, Machine};
use crate::outcome::{Outcome, OutcomeLatch};
use crate::snapshot::Tracker;
use crate::telemetry::{Event, Meter, Reporter, Sources};
use crate::vmm::control::{Door, Incident, State, occur};
use crate::vmm::loading::LoadWatch;
use crate::vmm::supervisor::TerminationSignals;

/// A run, from the machine's description to its outcome. [`Vmm::build`] starts one with a [`Handle`](super::Handle).
#[derive(Debug)]
pub struct Vmm {
    // First, so that it is dropped first: then no client waits for an answer while the console closes, also after an
    // error.
    pub(super) door: Door,
    pub(super) spec: VmSpec,
    host: Host,
    /// `None` for a machine that was saved. It can't start again.
    images: Option<Images>,
    /// What the devices of a machine use that was saved.
    thawed: Backends,
    /// What is known about the memory of the machine.
    pub(super) tracker: Tracker,
    pub(super) console: Console,
    pub(super) signals: TerminationSignals,
    pub(super) grace: Duration,
    pub(super) time_out_at: Option<Instant>,
    pub(super) resets: u64,
    meter: Arc<Meter>,
    pub(super) reporter: Reporter,
}

/// The inputs that control a run.
pub(super) struct Controls {
    pub signals: TerminationSignals,
    /// How long a guest has to power off after a signal.
    pub grace: Duration,
    pub door: Door,
    pub meter: Arc<Meter>,
}

/// What a machine comes from.
pub(super) enum Origin {
    /// A kernel.
    Images(Images),
    /// A saved machine, what its devices use, and what is known about its memory.
    Frozen(Frozen, Backends, Tracker),
}

impl Origin {
    fn backends(&mut self) -> &mut Backends {
        match self {
            Origin::Images(images) => &mut images.backends,
            Origin::Frozen(_, backends, _) => backends,
        }
    }
}

impl From<Images> for Origin {
    fn from(images: Images) -> Self {
        Origin::Images(images)
    }
}

/// A machine whose vCPUs are ready to run.
pub(super) struct Built {
    pub machine: Machine,
    pub vcpu_events: VcpuEvents,
    pub latch: OutcomeLatch,
}

impl Vmm {
    /// Builds the first machine of a run. Returns the outcome instead if the run ends before.
    pub(super) fn new(
        spec: &VmSpec,
        controls: Controls,
        open: impl FnOnce(&dyn Watch) -> Result<Origin, Error>,
        open_console: impl FnOnce() -> Result<Console, console::Error>,
    ) -> Result<Result<(Vmm, Built), Outcome>, Error> {
        let Controls {
            signals,
            grace,
            door,
            meter,
        } = controls;
        let time_out_at = spec.timeout.map(|timeout| Instant::now() + timeout);
        let reporter = Reporter::start(spec, &meter)?;
        let watch = LoadWatch::new(&signals, &door, time_out_at);
        let stopped = || {
            let outcome = watch.outcome();
            outcome.inspect(|outcome| reporter.events.say(&Event::Exited(*outcome)))
        };
        let origin = open(&watch);
        // Whatever came of it.
        if let Some(outcome) = stopped() {
            return Ok(Err(outcome));
        }
        let mut origin = origin?;
        origin.backends().events = reporter.events.clone();
        let hvc = Arc::clone(&origin.backends().hvc);
        let described = with_macs(spec, origin.backends());
        let host = Host::new(check::open_kvm(Path::new(KVM))?);
        let mut thawed = Backends::default();
        let (images, loading, tracker) = match origin {
            Origin::Images(images) => {
                let loading = Loading::start(&host, spec, &images, &watch);
                (Some(images), loading, Tracker::default())
            }
            Origin::Frozen(frozen, backends, tracker) => {
                thawed = backends;
                (None, Loading::thaw(&host, spec, frozen, &thawed), tracker)
            }
        };
        if let Some(outcome) = stopped() {
            return Ok(Err(outcome));
        }
        let loading = loading?;
        if let Some(clockless) = loading.clockless(spec) {
            warn!("{clockless}");
        }
        // Opened only now, so that an unbootable kernel truncates no file and leaves the terminal alone.
        let console = open_console()?;
        meter.attach_console(console.output());
        console.connect_hvc(&hvc);
        let vmm = Vmm {
            door,
            spec: described,
            host,
            images,
            thawed,
            tracker,
            console,
            signals,
            grace,
            time_out_at,
            resets: 0,
            meter,
            reporter,
        };
        let built = vmm.finish(loading)?;
        Ok(Ok((vmm, built)))
    }

    /// Runs `built`, and after each reset a new machine.
    pub(super) fn run(mut self, built: Built, state: State) -> Result<Ended, Error> {
        let ended = self.run_all(built, state);
        self.reporter.end(ended.as_ref().map(|ended| ended.outcome));
        let ended = ended?;
        // Clients get [`Ended`](super::control::Error::Ended) from now on, even while the console still writes its
        // output.
        drop(self.door);
        match ended.outcome {
            Outcome::ConsoleQuit | Outcome::Signal(_) | Outcome::Timeout | Outcome::Stopped => {
                self.console.close_soon();
            }
            _ => self.console.close(),
        }
        Ok(ended)
    }

    fn run_all(&mut self, mut built: Built, mut state: State) -> Result<Ended, Error> {
        loop {
            self.meter.attach(sources(&built.machine));
            let (ended, before) = Session::new(self, built, state)?.run()?;
            state = occur(before, self.incident(ended.outcome));
            if state == State::Ended {
                return Ok(ended);
            }
            info!("the guest asked for a reset, starting again");
            self.reporter.events.say(&Event::Reset);
            self.resets += 1;
            self.tracker = Tracker::default();
            built = match self.load()? {
                Ok(loading) => self.finish(loading)?,
                Err(outcome) => return Ok(outcome.into()),
            };
        }
    }

    /// What the devices use on the host, with the description.
    pub(super) fn backends(&mut self) -> (&mut Backends, &mut VmSpec) {
        let backends = match &mut self.images {
            Some(images) => &mut images.backends,
            None => &mut self.thawed,
        };
        (backends, &mut self.spec)
    }

    /// Counts what the devices of a machine count now.
    pub(super) fn count(&self, machine: &Machine) {
        self.meter.update(sources(machine));
    }

    /// How an outcome affects the run.
    pub(super) fn incident(&self, outcome: Outcome) -> Incident {
        match (outcome, self.spec.on_reboot) {
            (Outcome::Reset, OnReboot::Reset) => Incident::Reset,
            _ => Incident::End,
        }
    }

    /// Loads the images again. Returns the outcome instead if something stops that.
    fn load(&self) -> Result<Result<Loading, Outcome>, Error> {
        let Some(images) = &self.images else {
            return Ok(Err(Outcome::Reset));
        };
        let watch = LoadWatch::new(&self.signals, &self.door, self.time_out_at);
        let loading = Loading::start(&self.host, &self.spec, images, &watch);
        match watch.outcome() {
            Some(outcome) => Ok(Err(outcome)),
            None => Ok(Ok(loading?)),
        }
    }

    fn finish(&self, loading: Loading) -> Result<Built, Error> {
        let latch = OutcomeLatch::new().map_err(Error::Events)?;
        let output = self.console.output();
        let (machine, vcpu_events) = loading.finish(&self.host, &self.spec, output, &latch)?;
        Ok(Built {
            machine,
            vcpu_events,
            latch,
        })
    }
}

/// The description with the address of each network. A snapshot says it, because another host would make another one.
fn with_macs(spec: &VmSpec, backends: &Backends) -> VmSpec {
    let mut described = spec.clone();
    for (net, mac) in described.net.iter_mut().zip(backends.macs()) {
        net.mac = Some(mac);
    }
    described
}

/// The counters of a machine.
fn sources(machine: &Machine) -> Sources {
    let offers = machine.devices.offers();
    Sources {
        exits: machine.exit_counters(),
        calls: Arc::clone(&machine.calls),
        disks: offers.disk_counters.clone(),
        nets: offers.net_counters.clone(),
        vsock: offers.vsock_counters.clone(),
        balloon: offers.balloon_counters.clone(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::config::HypercallRoute;
    use crate::demo;
    use crate::sync::Wake;
    use crate::vmm::control::{Answer, Client, Command, door};
    use crate::vmm::supervisor::tests::signals;

    /// The demo's machine. `None`, with a note, if no guest can run.
    pub(crate) fn built(
        test: &str,
        signals: TerminationSignals,
        console: Console,
    ) -> Option<(Client, Vmm, Built)> {
        built_with(test, signals, console, None)
    }

    /// The same, with a directory for snapshots that the guest asks for.
    pub(crate) fn built_with(
        test: &str,
        signals: TerminationSignals,
        console: Console,
        snapshot_dir: Option<PathBuf>,
    ) -> Option<(Client, Vmm, Built)> {
        crate::check::tests::host_kvm(test)?;
        let (client, door) = door().unwrap();
        let controls = Controls {
            signals,
            grace: Duration::from_secs(3600),
            door,
            meter: Arc::default(),
        };
        let spec = VmSpec {
            timeout: None,
            snapshot_dir,
            ..demo::spec(HypercallRoute::Pio(None))
        };
        let images = |_: &dyn Watch| Ok(demo::images().unwrap().into());
        let new = Vmm::new(&spec, controls, images, || Ok(console));
        let (vmm, built) = new.unwrap().unwrap();
        Some((client, vmm, built))
    }

    /// The same machine, paused, on its own thread.
    fn paused(
        test: &str,
        signals: TerminationSignals,
        console: Console,
    ) -> Option<(Client, JoinHandle<Result<Ended, Error>>)> {
        let (client, vmm, built) = built(test, signals, console)?;
        let run = thread::spawn(move || vmm.run(built, State::Paused));
        Some((client, run))
    }

    #[test]
    fn what_was_typed_before_waits_for_a_paused_machine() {
        let test = "what_was_typed_before_waits_for_a_paused_machine";
        let console = Console::with_input(b"typed");
        let Some((client, run)) = paused(test, TerminationSignals::none(), console) else {
            return;
        };
        received_nothing(&client);
        assert_eq!(run.join().unwrap().unwrap().outcome, Outcome::Stopped);
    }

    /// Checks that a paused machine has taken no input, and stops it.
    fn received_nothing(client: &Client) {
        let Answer::Saved(state) = client.command(Command::Save).unwrap() else {
            panic!("no state");
        };
        let mut serial = state.devices.iter().filter(|saved| saved.id == "serial");
        let received = &serial.next().unwrap().state["in_buffer"];
        assert_eq!(received.as_array().unwrap().len(), 0);
        client.command(Command::Stop).unwrap();
    }

    #[test]
    fn a_pause_that_comes_before_the_start_also_pauses_devices() {
        let test = "a_pause_that_comes_before_the_start_also_pauses_devices";
        let console = Console::with_input(b"");
        let type_in = console.typist();
        let Some((client, vmm, built)) = built(test, TerminationSignals::none(), console) else {
            return;
        };
        let wake = Arc::new(Wake::new().unwrap());
        let pause = client.send(Command::Pause, &wake).unwrap();
        let run = thread::spawn(move || vmm.run(built, State::Running));
        pause.recv().unwrap().unwrap();
        type_in(b"typed");
        // Events are handled between commands.
        for _ in 0..2 {
            client.command(Command::Describe).unwrap();
        }
        received_nothing(&client);
        assert_eq!(run.join().unwrap().unwrap().outcome, Outcome::Stopped);
    }

    /// Nothing resumes it, so only the signal lets the guest run to its end.
    #[test]
    fn a_signal_lets_a_paused_machine_run() {
        let (signals, mut writers) = signals();
        let test = "a_signal_lets_a_paused_machine_run";
        let Some((client, run)) = paused(test, signals, Console::default()) else {
            return;
        };
        let Answer::Described(about) = client.command(Command::Describe).unwrap() else {
            panic!("no description");
        };
        assert_eq!((about.state, about.exits), (State::Paused, vec![0]));
        writers[0].1.write_all(&[0]).unwrap();
        let ended = run.join().unwrap().unwrap();
        assert_eq!(ended.outcome, Outcome::GuestExit(0));
    }
}
