// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control loop of one machine of a run, from its start to its outcome.

mod guest;
mod plug;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use log::{debug, warn};
use vcpu_loop::{FailureReport, VcpuEventSubscriber};

use self::plug::Removal;
use super::policy::VcpuPolicy;
use super::run::{Built, Vmm};
use super::{Ended, Error};
use crate::machine::{self, Machine};
use crate::outcome::{Outcome, OutcomeLatch};
use crate::snapshot::{self, Labels, Wish};
use crate::telemetry::Event;
use crate::vmm::control::{
    self, Answer, BalloonReport, Command, Description, Listing, Pages, Response, SnapshotOrder,
    State, occur, step,
};
use crate::vmm::supervisor::Supervisor;

/// A subscriber for the event loop, which has one thread.
type Subscriber = Rc<RefCell<dyn MutEventSubscriber>>;

/// A machine, and what its control loop uses.
pub(super) struct Session<'a> {
    run: &'a mut Vmm,
    machine: Machine,
    latch: OutcomeLatch,
    supervisor: Rc<RefCell<Supervisor>>,
    manager: EventManager<Subscriber>,
    report: Rc<RefCell<Option<Box<FailureReport>>>>,
    /// Whether the vCPUs run the guest. Before they do for the first time, `None`: devices take input already.
    is_running: Option<bool>,
    /// The event when they do next.
    next_event: Option<Event>,
    /// The devices that the guest is asked to give up.
    removals: Vec<Removal>,
}

impl<'a> Session<'a> {
    /// Prepares to run a machine in a run with state `state`.
    pub fn new(run: &'a mut Vmm, built: Built, state: State) -> Result<Self, Error> {
        let Built {
            machine,
            vcpu_events,
            latch,
        } = built;
        let next_event = match (run.resets, state) {
            (0, _) => Some(Event::Started),
            (_, State::Paused) => Some(Event::Resumed),
            // A reset has its own event.
            _ => None,
        };
        let is_paused = !state.is_running();
        if is_paused {
            // Before anything feeds its devices.
            machine.pause()?;
        }
        machine.devices.wake_by(|| run.door.waker());
        let report = Rc::new(RefCell::new(None));
        let mut manager = EventManager::new().map_err(Error::EventLoop)?;
        let shown = run.door.shown();
        shown.set(state);
        let supervisor = Supervisor::new(
            shown,
            latch.clone(),
            run.signals.try_clone().map_err(Error::Events)?,
            machine.devices.offers().power_button.clone(),
            run.grace,
            run.time_out_at,
        );
        let supervisor = Rc::new(RefCell::new(supervisor));
        manager.add_subscriber(Rc::clone(&supervisor) as Subscriber);
        manager.add_subscriber(Rc::new(RefCell::new(run.door.bell())) as Subscriber);
        let on_event = VcpuPolicy {
            on_reboot: run.spec.on_reboot,
            latch: latch.clone(),
            report: Rc::clone(&report),
        };
        let vcpus = VcpuEventSubscriber::new(vcpu_events, move |event| on_event.apply(event));
        manager.add_subscriber(Rc::new(RefCell::new(vcpus)) as Subscriber);
        let offers = machine.devices.offers();
        let serial = offers.console_input.clone();
        let serial = serial.and_then(|target| run.console.attach_input(target, latch.clone()));
        let hvc = offers.hvc_input.clone();
        let hvc = hvc.and_then(|target| run.console.attach_hvc_input(target, latch.clone()));
        for input in [serial, hvc].into_iter().flatten() {
            manager.add_subscriber(Rc::new(RefCell::new(input)) as Subscriber);
        }
        Ok(Session {
            run,
            machine,
            latch,
            supervisor,
            manager,
            report,
            is_running: is_paused.then_some(false),
            next_event,
            removals: Vec::new(),
        })
    }

    /// Runs the machine until there is an outcome. Returns that and the state of the run.
    pub fn run(mut self) -> Result<(Ended, State), Error> {
        if let Some(outcome) = self.overdue() {
            return Ok(self.end(outcome));
        }
        let mut outcome = self.wait()?;
        if outcome == Outcome::Reset {
            outcome = self.overdue().unwrap_or(outcome);
        }
        if self.resets() {
            self.forget_removed();
        }
        if let Err(error) = self.machine.stop() {
            // The outcome matters more than a thread that ends with the process anyway.
            warn!("{error}");
        }
        let counters = self.machine.calls.counters();
        if counters.total() > 0 {
            debug!("hypercalls: {counters}");
        }
        Ok(self.end(outcome))
    }

    fn end(&self, outcome: Outcome) -> (Ended, State) {
        let report = self.report.take();
        (Ended { outcome, report }, self.state())
    }

    /// Whether another machine takes the place of this one.
    fn resets(&self) -> bool {
        let incident = self.latch.get().map(|outcome| self.run.incident(outcome));
        incident.is_some_and(|incident| occur(self.state(), incident) != State::Ended)
    }

    fn state(&self) -> State {
        self.supervisor.borrow().state()
    }

    fn overdue(&self) -> Option<Outcome> {
        self.supervisor.borrow_mut().overdue(Instant::now())
    }

    /// Handles commands and events until there is an outcome.
    ///
    /// Commands that waited for the load come before the start, as the clients expect that sent them. And a guest that
    /// resets at once would leave no other time for them. Later, events are handled between two commands, so that each
    /// command knows which vCPUs have ended.
    fn wait(&mut self) -> Result<Outcome, Error> {
        for _ in 1..self.run.door.waiting() {
            // Not more than these, since clients may send one after another.
            if self.is_running == Some(true) || self.latch.get().is_some() {
                break;
            }
            self.serve();
        }
        loop {
            if let Some(outcome) = self.latch.get() {
                return Ok(outcome);
            }
            self.serve_guest()?;
            self.finish_removals();
            let has_served = self.serve();
            let runs = self.state().is_running();
            self.set_running(runs)?;
            let sleep = self.supervisor.borrow_mut().check_deadlines(Instant::now());
            let sleep = match (sleep, self.until_removal()) {
                _ if has_served => 0,
                (sleep, -1) | (-1, sleep) => sleep,
                (sleep, other) => sleep.min(other),
            };
            match self.manager.run_with_timeout(sleep) {
                Ok(_) => {}
                // A signal handler ran; its stream has the signal.
                Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::EventLoop(error)),
            }
        }
    }

    /// Handles one command, if there is one.
    fn serve(&mut self) -> bool {
        let Some(envelope) = self.run.door.next() else {
            return false;
        };
        let command = &envelope.command;
        let (envelope, answer) = match step(self.state(), command) {
            (_, Response::Do) if matches!(command, Command::RemoveDevice { .. }) => {
                match self.remove(envelope) {
                    Some(answered) => answered,
                    None => return true,
                }
            }
            (next, Response::Do) => {
                let answer = self.perform(command, next);
                (envelope, answer)
            }
            (_, Response::Refused(state)) => {
                let error = control::Error::refused(command.clone(), state);
                (envelope, Err(error))
            }
        };
        match answer {
            // The guest has reset itself meanwhile: the next machine does it.
            Err(control::Error::Ended) if self.resets() => self.run.door.put_back(envelope),
            answer => envelope.answer(answer),
        }
        true
    }

    /// Does a command, then sets the state to `next`.
    fn perform(&mut self, command: &Command, next: State) -> Result<Answer, control::Error> {
        let answer = match command {
            Command::Pause | Command::Resume => {
                self.set_running(next.is_running())?;
                Answer::Done
            }
            Command::PowerButton => {
                let button = &self.machine.devices.offers().power_button;
                let button = button.as_ref().ok_or(control::Error::NoPowerButton)?;
                button.press().map_err(control::Error::PowerButton)?;
                Answer::Done
            }
            Command::ResizeDisks => {
                let disks = self.machine.devices.offers().disks.iter();
                disks.for_each(|disk| disk.resize());
                Answer::Done
            }
            Command::ChangeDisk(change) => {
                change.apply(self.machine.devices.offers(), &mut self.run.spec)?;
                Answer::Done
            }
            Command::LimitNet(change) => {
                change.apply(self.machine.devices.offers(), &mut self.run.spec)?;
                Answer::Done
            }
            Command::AddDevice(device) => {
                self.add(device)?;
                Answer::Done
            }
            // It may be answered later, so it is not done here.
            Command::RemoveDevice { .. } => Answer::Done,
            Command::ChangeBalloon(change) => {
                change.apply(self.machine.devices.offers(), &mut self.run.spec)?;
                Answer::Done
            }
            Command::AskBalloon(asked) => {
                let balloon = self.machine.devices.offers().balloon.as_ref();
                let balloon = balloon.ok_or(control::Error::NoDevice)?;
                Answer::Balloon(BalloonReport::new(balloon, *asked))
            }
            Command::Stop => {
                self.supervisor.borrow_mut().end(Outcome::Stopped);
                Answer::Done
            }
            Command::Save => {
                self.finish_removals();
                Answer::Saved(Box::new(self.machine.save()?))
            }
            Command::Snapshot(order) => {
                self.snapshot(order, next)?;
                Answer::Done
            }
            Command::Describe => Answer::Described(Box::new(self.description())),
            Command::ListMemory(listing) => Answer::Listed(self.list(*listing)?),
        };
        self.supervisor.borrow_mut().set_state(next);
        Ok(answer)
    }

    /// The pages that are asked for.
    fn list(&self, listing: Listing) -> Result<Pages, control::Error> {
        let (memory, ram) = (self.machine.memory(), self.run.spec.memory);
        let pages = match listing {
            Listing::Dirty => {
                let returned = self.machine.devices.offers().returned.as_ref();
                self.run.tracker.dirty(memory, ram, returned)
            }
            Listing::Resident => Pages::resident(memory, ram),
        };
        pages.map_err(control::Error::Pagemap)
    }

    /// Writes a snapshot, with the machine paused meanwhile. After an error it goes on if it ran before.
    fn snapshot(&mut self, order: &SnapshotOrder, next: State) -> Result<(), control::Error> {
        self.set_running(false)?;
        // The guest may have powered off meanwhile. A copy would go on behind that.
        if self.latch.is_set() {
            return Err(control::Error::Ended);
        }
        // What the guest has given up is in no snapshot.
        self.finish_removals();
        let SnapshotOrder {
            place,
            kind,
            labels,
            ..
        } = order;
        let wish = Wish { place, kind: *kind };
        let written = self.write(wish, labels, None);
        let runs = match &written {
            Ok(()) => next.is_running(),
            Err(_) => self.state().is_running(),
        };
        self.set_running(runs)?;
        Ok(written?)
    }

    /// Writes a snapshot of the paused machine, unless an event or a stop ends it. In it, the call of the vCPU `caller`
    /// returns.
    fn write(
        &mut self,
        wish: Wish<'_>,
        labels: &Labels,
        caller: Option<u32>,
    ) -> Result<(), snapshot::Error> {
        let before = self.state();
        let Vmm {
            spec,
            tracker,
            door,
            ..
        } = &mut *self.run;
        let manager = RefCell::new(&mut self.manager);
        let goes_on = || {
            // The control loop tells of a failure.
            let _ = manager.borrow_mut().run_with_timeout(0);
            let mut supervisor = self.supervisor.borrow_mut();
            supervisor.check_deadlines(Instant::now());
            supervisor.state() == before && !self.latch.is_set() && !door.has_stop()
        };
        let subject = snapshot::Subject {
            machine: &self.machine,
            spec,
            labels,
            caller,
        };
        // A guest doesn't come between the Diffs of whoever controls it.
        let tracker = caller.is_none().then_some(tracker);
        snapshot::write(&subject, wish, tracker, &goes_on)
    }

    /// Lets the vCPUs into the guest, or takes them out. On an error they return to their previous state.
    fn set_running(&mut self, runs: bool) -> Result<(), machine::Error> {
        if self.is_running == Some(runs) {
            return Ok(());
        }
        if runs {
            // A call of the guest may have come while its vCPUs were paused.
            self.serve_guest()?;
            // A vCPU that ended the machine doesn't go on.
            if self.latch.is_set() {
                return Ok(());
            }
            let events = &self.run.reporter.events;
            // Before the guest does something that is an event.
            if let Some(event) = self.next_event.replace(Event::Resumed) {
                events.say(&event);
            }
            let started = self.machine.start();
            started.inspect_err(|_| events.say(&Event::Paused))?;
        } else {
            self.machine.pause()?;
            // A guest that has not started has nothing to tell.
            if self.is_running.is_some() && self.state() != State::Ended {
                self.run.reporter.events.say(&Event::Paused);
            }
        }
        self.is_running = Some(runs);
        Ok(())
    }

    fn description(&self) -> Description {
        Description {
            state: self.state(),
            spec: self.run.spec.clone(),
            resets: self.run.resets,
            exits: self.machine.exits(),
            hypercalls: self.machine.calls.counters(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;

    use para_abi::Call;
    use para_abi::vmm::VMM_HC_SNAPSHOT;

    use super::*;
    use crate::console::Console;
    use crate::hypercall::calls::Caller;
    use crate::snapshot::{Kind, Place};
    use crate::sync::Wake;
    use crate::vmm::control::Then;
    use crate::vmm::run::tests::{built, built_with};
    use crate::vmm::supervisor::tests::signals;

    fn order(dir: &Path) -> Command {
        let place = Place::Directory(dir.to_owned());
        let labels = Labels::default();
        let then = Then::GoOn;
        Command::Snapshot(SnapshotOrder {
            place,
            kind: Kind::Full,
            then,
            labels,
        })
    }

    /// What ends a machine while its memory is written: here, right before.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Signal,
        Stop,
        Timeout,
        Quit,
    }

    /// A signal, and so on, in a paused or running machine. The old snapshot stays.
    fn give_up(test: &str, end: End, state: State) -> Option<()> {
        let (signals, mut writers) = signals();
        let console = Console::with_input(b"");
        let quit = console.quitter();
        let (client, mut vmm, built) = built(test, signals, console)?;
        let dir = tempfile::tempdir().unwrap();
        let (snap, wake) = (dir.path().join("snap"), Arc::new(Wake::new().unwrap()));
        // Of a machine that did not start.
        let mut session = Session::new(&mut vmm, built, state).unwrap();
        session.perform(&order(&snap), state).unwrap();
        let manifest = || fs::read(snap.join("manifest.json")).unwrap();
        let old = manifest();
        match end {
            End::Signal => writers[0].1.write_all(&[0]).unwrap(),
            End::Stop => drop(client.send(Command::Stop, &wake).unwrap()),
            End::Timeout => session.supervisor.borrow_mut().time_out_now(),
            End::Quit => quit(),
        }
        let error = session.perform(&order(&snap), state).unwrap_err();
        assert!(
            matches!(error, control::Error::Snapshot(snapshot::Error::GivenUp)),
            "{error:?}"
        );
        assert_eq!(manifest(), old);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let ended = session.wait().unwrap();
        let expected = match end {
            // It has time to power off, and the demo's guest ends on its own.
            End::Signal => Outcome::GuestExit(0),
            End::Stop => Outcome::Stopped,
            End::Timeout => Outcome::Timeout,
            End::Quit => Outcome::ConsoleQuit,
        };
        assert_eq!(ended, expected, "{end:?} {state}");
        Some(())
    }

    #[test]
    fn what_ends_a_machine_does_not_wait_for_its_snapshot() {
        let test = "what_ends_a_machine_does_not_wait_for_its_snapshot";
        for end in [End::Signal, End::Stop, End::Timeout, End::Quit] {
            for state in [State::Paused, State::Running] {
                if give_up(test, end, state).is_none() {
                    return;
                }
            }
        }
    }

    #[test]
    fn a_call_that_comes_in_a_pause_is_answered_before_the_guest_goes_on() {
        let test = "a_call_that_comes_in_a_pause_is_answered_before_the_guest_goes_on";
        let (signals, _writers) = signals();
        let dir = tempfile::tempdir().unwrap();
        let snaps = Some(dir.path().to_owned());
        let Some((_client, mut vmm, built)) =
            built_with(test, signals, Console::with_input(b""), snaps)
        else {
            return;
        };
        let mut session = Session::new(&mut vmm, built, State::Paused).unwrap();
        let calls = Arc::clone(&session.machine.calls);
        let caller = Caller {
            vcpu: 0,
            cpl: 0,
            long_mode: true,
        };
        let asks = Call {
            nr: VMM_HC_SNAPSHOT,
            args: [0; 6],
        };
        assert_eq!(calls.call(&caller, &asks), 0);
        assert!(calls.holds(0));
        session.set_running(true).unwrap();
        assert!(dir.path().join("1/manifest.json").exists());
        assert!(!calls.holds(0));
        // A machine that has ended does not go on.
        session.set_running(false).unwrap();
        session.latch.set(Outcome::Reset);
        session.set_running(true).unwrap();
        assert_eq!(session.is_running, Some(false));
    }
}
