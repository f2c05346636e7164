// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a machine is in its life, and what clients can do there.

use std::sync::mpsc::{Receiver, TryRecvError};

use serde_json::{Value, json};

use super::fields::Fields;
use super::http::Fault;
use super::model::Model;
use crate::logging::sentence;
use crate::telemetry::Meter;
use crate::vmm::control::{self, Answer, Client, Command, Description, State};
use crate::vmm::{Remote, Started};

/// The phase of the process. The machine itself may end at any time, with the process.
#[derive(Debug)]
enum Phase {
    /// Clients describe the machine.
    Configuring,
    /// The machine was ordered by the command line, and is loading.
    Starting(Receiver<Started>),
    /// The machine has its own states.
    Started(Client),
    Ended,
}

/// The machine, as the API sees it.
#[derive(Debug)]
pub(super) struct Machine {
    remote: Remote,
    model: Model,
    phase: Phase,
}

impl Machine {
    /// A machine that clients describe, beginning with `model`.
    pub fn new(remote: Remote, model: Model) -> Self {
        let phase = Phase::Configuring;
        Machine {
            remote,
            model,
            phase,
        }
    }

    /// Starts the machine that the command line describes. If that fails, the process ends.
    ///
    /// # Errors
    /// The description is not complete.
    pub fn start_or_end(&mut self) -> Result<(), super::Error> {
        let spec = self.model.finish()?;
        self.phase = Phase::Starting(self.remote.start_or_end(spec));
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
    /// The machine has started.
    pub fn draft(&mut self) -> Result<&mut Model, Fault> {
        match self.phase {
            Phase::Configuring => Ok(&mut self.model),
            _ => Err(Fault::new(
                "The requested operation is not supported after starting the microVM: \
                 end it, and describe another one to a new process",
            )),
        }
    }

    /// Starts the machine, and waits until its guest runs.
    ///
    /// # Errors
    /// It has started already, is not described completely, or the host can't run it. Then it can be tried again.
    pub fn start(&mut self) -> Result<(), Fault> {
        self.draft()?;
        let spec = self.model.complete()?;
        match self.remote.start(spec).recv() {
            Ok(Ok(client)) => {
                self.phase = Phase::Started(client);
                Ok(())
            }
            Ok(Err(error)) => Err(Fault::new(format!(
                "the machine can't start: {}",
                sentence(&*error)
            ))),
            Err(_) => {
                self.phase = Phase::Ended;
                Err(ended())
            }
        }
    }

    /// Sends a command to the machine, and waits for the answer. If the machine is loading, waits for that, too.
    ///
    /// # Errors
    /// The machine has not started or has ended, or can't do it.
    pub fn command(&mut self, command: Command) -> Result<Answer, Fault> {
        // A machine of the command line is about to start. Clients take its first answer for a sign that it has.
        if let Phase::Starting(answer) = &self.phase {
            self.phase = match answer.recv() {
                Ok(Ok(client)) => Phase::Started(client),
                _ => Phase::Ended,
            };
        }
        let Phase::Started(client) = &self.phase else {
            return Err(match self.phase {
                Phase::Ended => ended(),
                _ => Fault::new(
                    "The requested operation is not supported before starting the microVM: \
                     start it by PUT /actions with InstanceStart",
                ),
            });
        };
        client.command(command).map_err(|error| match error {
            control::Error::Ended => ended(),
            error => Fault::new(sentence(&error)),
        })
    }

    /// Ends the machine, or a process that still waits for one.
    ///
    /// # Errors
    /// It has ended already.
    pub fn stop(&mut self) -> Result<(), Fault> {
        if matches!(self.phase, Phase::Configuring) {
            self.remote.stop();
            self.phase = Phase::Ended;
            return Ok(());
        }
        self.command(Command::Stop).map(drop)
    }

    /// The state's name in Firecracker's API.
    pub fn state(&mut self) -> Result<&'static str, Fault> {
        self.look();
        match self.phase {
            Phase::Configuring | Phase::Starting(_) => Ok("Not started"),
            Phase::Started(_) => Ok(name(self.describe()?.state)),
            Phase::Ended => Err(ended()),
        }
    }

    /// The machine's state and counters, for `GET /vm`.
    pub fn report(&mut self) -> Result<Value, Fault> {
        let about = self.describe()?;
        Ok(json!({
            "state": name(about.state),
            "exits": about.exits,
            "hypercalls": about.hypercalls.total(),
            "resets": about.resets,
        }))
    }

    fn describe(&mut self) -> Result<Description, Fault> {
        match self.command(Command::Describe)? {
            Answer::Described(about) => Ok(*about),
            _ => Err(ended()),
        }
    }

    /// Notices that the machine of the command line has started.
    fn look(&mut self) {
        if let Phase::Starting(answer) = &self.phase {
            self.phase = match answer.try_recv() {
                Ok(Ok(client)) => Phase::Started(client),
                Err(TryRecvError::Empty) => return,
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => Phase::Ended,
            };
        }
    }
}

fn name(state: State) -> &'static str {
    match state {
        State::Paused => "Paused",
        _ => "Running",
    }
}

fn ended() -> Fault {
    Fault::new("the machine has ended, and this process ends too; start another one")
}
