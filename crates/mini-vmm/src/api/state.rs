// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a machine is in its life, and what clients can do there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use serde_json::json;

use super::balloon;
use super::changes::Undo;
use super::fields::Fields;
use super::http::{Answer, Data, Fault};
use super::model::Model;
use super::snapshots::Load;
use crate::config::VmSpec;
use crate::logging::sentence;
use crate::sync::Wake;
use crate::telemetry::Meter;
use crate::vmm::control::{self, Answered, Client, Command, State};
use crate::vmm::{Remote, Saved, Starting};

/// The phase of the process. The machine itself may end at any time, with the process.
#[derive(Debug)]
enum Phase {
    /// Clients describe the machine.
    Configuring,
    /// The machine is loading. A client may wait for its start.
    Starting(Starting, Option<Sender<Answer>>),
    /// The machine has its own states.
    Started(Client),
    Ended,
}

/// The machine, as the API sees it. Nothing here waits for it.
#[derive(Debug)]
pub(super) struct Machine {
    remote: Remote,
    model: Model,
    /// The description before a snapshot was loaded.
    before: Option<Box<Model>>,
    phase: Phase,
    /// How many starts were ordered.
    starts: u64,
    /// Changes of devices that are not answered yet.
    changes: Vec<Change>,
    /// Signalled when an answer that comes later may be there.
    wake: Arc<Wake>,
}

/// A change of a device, which the machine may still refuse.
#[derive(Debug)]
struct Change {
    answer: Receiver<Answered>,
    asker: Sender<Answered>,
    undo: Undo,
}

/// An answer that comes later.
#[derive(Debug)]
pub(super) enum Later {
    /// When the machine has started, or can't.
    Start(Receiver<Answer>),
    /// When the machine has carried out a command.
    Command {
        is_stop: bool,
        /// The number of its start.
        start: u64,
        answer: Receiver<Answered>,
    },
}

/// What a request leads to that is not refused.
#[derive(Debug)]
pub(super) enum Handled {
    Now(Option<Data>),
    Later(Later),
}

impl Machine {
    /// A machine that clients describe, beginning with `model`. `wake` is signalled for answers that come later.
    pub fn new(remote: Remote, model: Model, wake: Arc<Wake>) -> Self {
        Machine {
            remote,
            model,
            before: None,
            phase: Phase::Configuring,
            starts: 0,
            changes: Vec::new(),
            wake,
        }
    }

    /// Starts the machine that the command line describes. If that fails, the process ends.
    ///
    /// # Errors
    /// The description is not complete, or the process has no file descriptor left.
    pub fn start_or_end(&mut self) -> Result<(), super::Error> {
        let spec = self.model.finish()?;
        let starting = self.remote.start_or_end(spec, None, &self.wake);
        self.phase = Phase::Starting(starting.map_err(super::Error::Start)?, None);
        Ok(())
    }

    /// Goes on with a saved machine, which the description fits. If that fails, the process ends.
    ///
    /// # Errors
    /// The description has a metadata service without its network, or the process has no file descriptor left.
    pub fn thaw_or_end(&mut self, saved: Saved) -> Result<(), super::Error> {
        let spec = self.model.saved();
        let spec = spec.map_err(|fault| super::Error::Model(fault.message))?;
        let starting = self.remote.start_or_end(spec, Some(saved), &self.wake);
        self.phase = Phase::Starting(starting.map_err(super::Error::Start)?, None);
        Ok(())
    }

    /// The counters of this process.
    pub fn meter(&self) -> &Meter {
        self.remote.meter()
    }

    /// Writes a line to the file of metrics.
    ///
    /// # Errors
    /// There is no such file, or it takes no line.
    pub fn flush_metrics(&self) -> Result<(), Fault> {
        let flushed = self.meter().flush();
        flushed.map_err(|error| Fault::new(sentence(&error)))
    }

    /// The description, in every phase.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Changes the log of this process, in every phase.
    pub fn put_logger(&mut self, fields: Fields) -> Result<(), Fault> {
        let may_open = matches!(self.phase, Phase::Configuring) || !self.model.is_sealed();
        self.model.put_logger(fields, may_open)
    }

    /// The description, to change it.
    ///
    /// # Errors
    /// The machine has started, or is loading.
    pub fn draft(&mut self) -> Result<&mut Model, Fault> {
        self.look();
        match self.phase {
            Phase::Configuring => Ok(&mut self.model),
            Phase::Starting(..) => Err(Fault::new(
                "the machine is still loading: wait until it has started, or end it by PUT /actions with Stop",
            )),
            _ => Err(Fault::new(
                "The requested operation is not supported after starting the microVM: \
                 end it, and describe another one to a new process",
            )),
        }
    }

    /// Whether the machine has started.
    pub fn has_started(&mut self) -> bool {
        self.look();
        matches!(self.phase, Phase::Started(_))
    }

    /// The description of a machine that was started, to note what changes.
    ///
    /// # Errors
    /// The machine has not started, or has ended.
    pub fn running(&mut self) -> Result<&mut Model, Fault> {
        self.look();
        match self.phase {
            Phase::Starting(..) | Phase::Started(_) => Ok(&mut self.model),
            Phase::Configuring => Err(not_started()),
            Phase::Ended => Err(ended()),
        }
    }

    /// Starts the machine. The answer comes when its guest runs, or can't. Then it can be tried again.
    ///
    /// # Errors
    /// It has started already, is not described completely, or the process has no file descriptor left.
    pub fn start(&mut self) -> Result<Later, Fault> {
        self.draft()?;
        let spec = self.model.complete()?;
        self.order(spec, None)
    }

    /// Orders a machine for a client that waits for it.
    fn order(&mut self, spec: VmSpec, saved: Option<Saved>) -> Result<Later, Fault> {
        let starting = self.remote.start(spec, saved, &self.wake);
        let starting = starting.map_err(|error| cannot_start(&error))?;
        let (sender, answer) = channel();
        self.starts += 1;
        self.phase = Phase::Starting(starting, Some(sender));
        Ok(Later::Start(answer))
    }

    /// Goes on with a machine from a snapshot. The answer comes when it is ready, or can't be. Then another one can be
    /// tried, or a machine be described.
    ///
    /// # Errors
    /// Something was described already, or the snapshot can't be used.
    pub fn load(&mut self, load: &Load) -> Result<Later, Fault> {
        let model = self.draft()?;
        if !model.is_empty() {
            return Err(Fault::new(
                "Loading a microVM snapshot not allowed after configuring boot-specific resources: \
                 load it in a new process",
            ));
        }
        let snapshot = load.open().map_err(|error| cannot_load(&error))?;
        let labels = snapshot.labels.clone();
        let (spec, mut frozen, tracker) = snapshot.map().map_err(|error| cannot_load(&error))?;
        let spec = load.adapt(spec)?;
        frozen.clock = load.clock;
        let loaded = model.loaded(spec, &labels, load)?;
        let saved = Saved {
            frozen,
            tracker,
            runs: load.runs,
        };
        let later = self.order(loaded.saved()?, Some(saved))?;
        self.before = Some(Box::new(std::mem::replace(&mut self.model, loaded)));
        Ok(later)
    }

    /// Sends a command to the machine. One that is loading does it later.
    ///
    /// # Errors
    /// The machine has not started or has ended, or too many commands wait.
    pub fn command(&mut self, command: Command) -> Result<Later, Fault> {
        self.look();
        let client = match &self.phase {
            Phase::Starting(Starting { client, .. }, _) | Phase::Started(client) => client,
            Phase::Configuring => return Err(not_started()),
            Phase::Ended => return Err(ended()),
        };
        let is_stop = command == Command::Stop;
        let answer = match client.send(command, &self.wake) {
            Ok(answer) => answer,
            // It could not start. Whether the process ends, too, comes next.
            Err(control::Error::Ended) if matches!(self.phase, Phase::Starting(..)) => channel().1,
            Err(error) => return Err(fault(error)),
        };
        let start = self.starts;
        Ok(Later::Command {
            is_stop,
            start,
            answer,
        })
    }

    /// Sends a command whose effect the description has already. If it is refused, `undo` undoes that.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn change(&mut self, command: Command, undo: Undo) -> Result<Later, Fault> {
        let sent = self.command(command);
        let mut later = match sent {
            Ok(later) => later,
            Err(fault) => {
                self.model.settle(undo, false);
                return Err(fault);
            }
        };
        if let Later::Command { answer, .. } = &mut later {
            let (asker, promised) = channel();
            let answer = std::mem::replace(answer, promised);
            self.changes.push(Change {
                answer,
                asker,
                undo,
            });
        }
        Ok(later)
    }

    /// Passes on the answers to changes, and undoes what was refused. Their clients may be gone.
    fn settle(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            let answer = match change.answer.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.changes.push(change);
                    continue;
                }
                Err(TryRecvError::Disconnected) => None,
                Ok(answer) => Some(answer),
            };
            self.model
                .settle(change.undo, matches!(answer, Some(Ok(_))));
            if let Some(answer) = answer {
                let _ = change.asker.send(answer);
            }
        }
    }

    /// Ends the machine, or a process that still waits for one.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn stop(&mut self) -> Result<Handled, Fault> {
        self.look();
        if matches!(self.phase, Phase::Configuring) {
            self.remote.stop();
            self.phase = Phase::Ended;
            return Ok(Handled::Now(None));
        }
        self.command(Command::Stop).map(Handled::Later)
    }

    /// The answer that was promised, once it is there.
    pub fn take(&mut self, awaited: &mut Later) -> Option<Answer> {
        self.look();
        let (is_stop, start, answer) = match awaited {
            Later::Start(answer) => {
                return match answer.try_recv() {
                    Ok(answer) => Some(answer),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => Some(Err(ended())),
                };
            }
            Later::Command {
                is_stop,
                start,
                answer,
            } => (*is_stop, *start, answer.try_recv()),
        };
        let is_current = start == self.starts;
        match (answer, &self.phase) {
            (Ok(answer), _) => Some(answered(answer)),
            (Err(TryRecvError::Empty), _) => None,
            // Why comes next.
            (_, Phase::Starting(..)) if is_current => None,
            (_, Phase::Started(_)) if is_current => Some(Err(ended())),
            (_, Phase::Ended) => Some(Err(ended())),
            // Its machine could not start. The process can still be ended.
            _ if is_stop => match self.stop() {
                Ok(Handled::Now(data)) => Some(Ok(data)),
                Ok(Handled::Later(later)) => {
                    *awaited = later;
                    None
                }
                Err(fault) => Some(Err(fault)),
            },
            _ => Some(Err(not_started())),
        }
    }

    /// The state's name in Firecracker's API.
    pub fn state(&mut self) -> Result<&'static str, Fault> {
        self.look();
        match &self.phase {
            Phase::Configuring | Phase::Starting(..) => Ok("Not started"),
            Phase::Started(client) => name(client.state()).ok_or_else(ended),
            Phase::Ended => Err(ended()),
        }
    }

    /// Notices that the machine has started, or could not, and what it says about changes.
    pub fn look(&mut self) {
        self.settle();
        let Phase::Starting(starting, asker) = &mut self.phase else {
            return;
        };
        let answer = starting.answer.try_recv();
        let asker = match answer {
            Err(TryRecvError::Empty) => return,
            _ => asker.take(),
        };
        let (phase, answer) = match answer {
            Ok(Ok(())) => (Phase::Started(starting.client.clone()), Ok(None)),
            Ok(Err(error)) => (Phase::Configuring, Err(cannot_start(&*error))),
            Err(_) => (Phase::Ended, Err(ended())),
        };
        self.phase = phase;
        let before = self.before.take();
        if let (Phase::Configuring, Some(mut before)) = (&self.phase, before) {
            // It may have changed meanwhile.
            before.logger = self.model.logger.take();
            self.model = *before;
        }
        if let Some(asker) = asker {
            // It may be gone.
            let _ = asker.send(answer);
        }
    }
}

/// What a client gets for the answer of a command.
fn answered(answer: Answered) -> Answer {
    match answer {
        Ok(control::Answer::Described(about)) => Ok(Some(Data::Json(json!({
            "state": name(about.state),
            "exits": about.exits,
            "hypercalls": about.hypercalls.total(),
            "resets": about.resets,
        })))),
        Ok(control::Answer::Balloon(report)) => Ok(Some(Data::Json(balloon::report(&report)))),
        Ok(control::Answer::Listed(pages)) => Ok(Some(Data::Json(json!({ "bitmap": pages.0 })))),
        Ok(_) => Ok(None),
        Err(error) => Err(fault(error)),
    }
}

/// A state's name in Firecracker's API, if it has one.
fn name(state: State) -> Option<&'static str> {
    match state {
        State::Paused => Some("Paused"),
        State::Running | State::PoweringOff => Some("Running"),
        State::Ended => None,
    }
}

fn fault(error: control::Error) -> Fault {
    match error {
        control::Error::Ended => ended(),
        error => Fault::new(sentence(&error)),
    }
}

fn cannot_start(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::new(format!("the machine can't start: {}", sentence(error)))
}

fn cannot_load(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::new(format!("Load snapshot error: {}", sentence(error)))
}

fn not_started() -> Fault {
    Fault::new(
        "The requested operation is not supported before starting the microVM: \
         start it by PUT /actions with InstanceStart",
    )
}

fn ended() -> Fault {
    Fault::new("the machine has ended, and this process ends too; start another one")
}
