// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of the messages, on its thread.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::GuestAddressSpace;

use crate::device::{Active, AnyDevice, Event, Interrupt, Io, Poller, RestoreError, Saved};
use crate::message::{Activation, Answer, Command, Failure};
use crate::queue::{NotDrained, Position, Virtq};

/// Runs a device: executes commands, passes it events, and reports results.
///
/// It belongs to the device's thread; it has no lock and no thread itself. Answers are appended to a list that the
/// caller passes to the transport.
///
/// ```text
///   Idle --Start--> Running --pause--> Paused --resume--> Running
///    ^                |  \                |
///    |              Reset Broken        Reset
///    |                v     v             |
///    +-- drained -- Draining <--Reset-- Failed
/// ```
pub struct Worker<M> {
    device: Box<dyn AnyDevice<M>>,
    memory: M,
    interrupt: Arc<dyn Interrupt>,
    phase: Phase,
    /// Epochs below this one have ended.
    epoch: u64,
    paused: bool,
    /// Events to repeat for the device.
    again: Vec<Event>,
}

/// The state of the device.
#[derive(Debug)]
enum Phase {
    /// Nothing.
    Idle,
    /// It runs.
    Running(Activation),
    /// It will run after a resume.
    Paused(Activation),
    /// It broke, and may still have requests in flight.
    Failed { drained: bool },
    /// It is being reset, with requests in flight.
    Draining,
}

/// The state of a [`Worker`]. Plain, untrusted data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerState {
    /// The position of each queue, if the device was running.
    pub positions: Option<Vec<Option<Position>>>,
    /// The device's state.
    pub device: Saved,
}

impl WorkerState {
    /// The form of this structure: raised when it changes.
    pub const VERSION: u32 = 1;
}

/// Why a device can't be saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It runs, or is being reset.
    #[error("the device is running: pause it before it is saved")]
    Running,
    /// Completed data can't be written to stable storage.
    #[error("the device can't bring to stable storage what it completed: {0}")]
    Flush(#[from] io::Error),
    /// Its state can't be serialized.
    #[error("the device's state can't be written: {0}")]
    Form(#[from] serde_json::Error),
}

impl<M: GuestAddressSpace> Worker<M> {
    /// Runs `device` with `memory`. It starts idle.
    pub fn new(device: Box<dyn AnyDevice<M>>, memory: M, interrupt: Arc<dyn Interrupt>) -> Self {
        Worker {
            device,
            memory,
            interrupt,
            phase: Phase::Idle,
            epoch: 0,
            paused: false,
            again: Vec::new(),
        }
    }

    /// The device.
    pub fn device(&self) -> &dyn AnyDevice<M> {
        &*self.device
    }

    /// Whether the device gets queue events.
    pub const fn is_running(&self) -> bool {
        self.running().is_some()
    }

    /// What the running device was started with; `None` if it doesn't run.
    pub const fn running(&self) -> Option<&Activation> {
        match &self.phase {
            Phase::Running(activation) => Some(activation),
            _ => None,
        }
    }

    /// Whether the device is being reset and has requests in flight.
    pub const fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining)
    }

    /// Executes a transport's command. Commands may come in any order.
    pub fn perform(
        &mut self,
        poller: &mut dyn Poller,
        command: Command,
        answers: &mut Vec<Answer>,
    ) {
        match command {
            Command::Start(activation) if activation.epoch < self.epoch => {}
            // A transport starts nothing before what it started last has been reset.
            Command::Start(_) if !matches!(self.phase, Phase::Idle) => {}
            Command::Start(activation) if self.paused => self.phase = Phase::Paused(activation),
            Command::Start(activation) => self.start(poller, activation, answers),
            Command::Reset { epoch } if epoch < self.epoch => {}
            Command::Reset { epoch } => {
                self.epoch = epoch + 1;
                self.phase = match self.phase {
                    Phase::Running(_) | Phase::Failed { drained: false } => Phase::Draining,
                    _ => return self.finish_reset(answers),
                };
                self.drain(poller, answers);
            }
            Command::SetConfig {
                epoch,
                at,
                data,
                len,
            } => {
                if let Some(data) = data.get(..usize::from(len))
                    && epoch >= self.epoch
                {
                    self.device.set_config(&mut Io::new(poller), at, data);
                }
                let config = self.device.config();
                answers.push(Answer::ConfigSet { config });
            }
        }
    }

    /// Passes the device an event, if it can take it: a paused or broken device gets no queue events.
    pub fn process(&mut self, poller: &mut dyn Poller, event: Event, answers: &mut Vec<Answer>) {
        let takes = match (&self.phase, event) {
            (Phase::Running(activation), Event::Queue(queue)) => activation.has(queue),
            (Phase::Idle | Phase::Paused(_) | Phase::Failed { drained: true }, _) => false,
            (_, Event::Source(_)) => true,
            _ => false,
        };
        if !takes {
            return;
        }
        let mut io = Io::new(poller);
        let processed = self.device.process(&mut io, event);
        if io.wants_again() {
            self.again.push(event);
        }
        if io.has_config_changed() {
            self.publish(answers);
        }
        match (&self.phase, processed) {
            (Phase::Running(activation), Err(broken)) => {
                let (epoch, why) = (activation.epoch, broken.into());
                self.phase = Phase::Failed { drained: false };
                answers.push(Answer::NeedsReset { epoch, why });
                self.drain(poller, answers);
            }
            (Phase::Running(_), Ok(())) => {}
            _ => self.drain(poller, answers),
        }
    }

    /// Takes an event to repeat. Pass it to [`process`](Self::process) after other devices had their turn. Call this
    /// after each call of `process`. Keep each event once: a busy device may want the same one again after every event.
    pub fn again(&mut self) -> Option<Event> {
        self.again.pop()
    }

    /// Sends the transport a new copy of the configuration. Call it after the VMM changed the device.
    pub fn publish(&self, answers: &mut Vec<Answer>) {
        let config = self.device.config();
        answers.push(Answer::Config { config });
    }

    /// Stops the device, if it runs, until a resume. It accesses no guest memory meanwhile. A second call has no
    /// effect.
    ///
    /// # Errors
    /// [`NotDrained`] if requests are still in flight at `by`. The device continues then.
    pub fn pause(
        &mut self,
        poller: &mut dyn Poller,
        by: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), NotDrained> {
        match &mut self.phase {
            Phase::Running(activation) => match self.device.stop(&mut Io::new(poller), by) {
                Ok(queues) => {
                    activation.keep_positions(&queues);
                    let activation = activation.clone();
                    self.phase = Phase::Paused(activation);
                }
                Err(error) => {
                    self.kick(poller, answers);
                    return Err(error);
                }
            },
            Phase::Draining | Phase::Failed { drained: false } => {
                self.device.stop(&mut Io::new(poller), by)?;
                self.drain(poller, answers);
            }
            Phase::Idle | Phase::Paused(_) | Phase::Failed { drained: true } => {}
        }
        self.paused = true;
        Ok(())
    }

    /// Resumes the device. Each queue is checked once and its driver interrupted once, since a saved machine may have
    /// lost notifications; of a device that doesn't run, an interrupt is [repeated](Interrupt::repeat). The
    /// configuration is published, since it may have changed.
    pub fn resume(&mut self, poller: &mut dyn Poller, answers: &mut Vec<Answer>) {
        if !std::mem::take(&mut self.paused) {
            return;
        }
        let Phase::Paused(activation) = &mut self.phase else {
            self.publish(answers);
            self.interrupt.repeat();
            return;
        };
        let activation = activation.clone();
        self.phase = Phase::Idle;
        self.start(poller, activation, answers);
        for queue in self.queues() {
            self.interrupt.queue(queue);
        }
        self.interrupt.repeat();
    }

    /// The device's state, after completed data was written to stable storage, until `by` at the latest.
    ///
    /// # Errors
    /// [`SaveError`]; the device is unchanged.
    pub fn save(&mut self, by: Instant) -> Result<WorkerState, SaveError> {
        let positions = match &self.phase {
            Phase::Idle | Phase::Failed { drained: true } => None,
            Phase::Paused(activation) => Some(activation.positions()),
            _ => return Err(SaveError::Running),
        };
        self.device.flush(by)?;
        let device = self.device.save()?;
        Ok(WorkerState { positions, device })
    }

    /// Restores a saved state to a device that doesn't run: a new or a paused one. It is paused then. `activation` is the
    /// transport's result for [`WorkerState::positions`]: see
    /// [`Registers::restore`](crate::registers::Registers::restore).
    ///
    /// # Errors
    /// [`RestoreError`]; the device is unchanged then.
    pub fn restore(
        &mut self,
        state: &WorkerState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        if !matches!(
            self.phase,
            Phase::Idle | Phase::Paused(_) | Phase::Failed { drained: true }
        ) {
            return Err(RestoreError::Value("the device is in use already"));
        }
        self.device.restore(&state.device)?;
        self.phase = activation.map_or(Phase::Idle, Phase::Paused);
        self.paused = true;
        Ok(())
    }

    fn start(
        &mut self,
        poller: &mut dyn Poller,
        activation: Activation,
        answers: &mut Vec<Answer>,
    ) {
        let mut io = Io::new(poller);
        let started = self
            .activate(&activation)
            .and_then(|active| Ok(self.device.start(&mut io, active)?));
        match started {
            Ok(()) => {
                self.phase = Phase::Running(activation);
                self.publish(answers);
                // A kick before the start was dropped.
                self.kick(poller, answers);
            }
            Err(why) => {
                let epoch = activation.epoch;
                self.phase = Phase::Failed { drained: true };
                answers.push(Answer::NeedsReset { epoch, why });
            }
        }
    }

    /// The parameters of the device's start.
    fn activate(&self, activation: &Activation) -> Result<Active<M>, Failure> {
        let memory = self.memory.memory();
        let mut queues = Vec::with_capacity(activation.queues.len());
        for (queue, state) in (0..).zip(&activation.queues) {
            let virtq = state
                .map(|state| Virtq::new(&state, activation.features, &*memory))
                .transpose();
            queues.push(virtq.map_err(|why| Failure::Queue { queue, why })?);
        }
        Ok(Active {
            features: activation.features,
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
        })
    }

    /// Continues a reset, or the requests in flight of a broken device.
    fn drain(&mut self, poller: &mut dyn Poller, answers: &mut Vec<Answer>) {
        // The deadline is now, so the device doesn't wait.
        let stopped = self.device.stop(&mut Io::new(poller), Instant::now());
        match (&self.phase, stopped) {
            (Phase::Draining, Ok(_)) => self.finish_reset(answers),
            (Phase::Failed { .. }, Ok(_)) => self.phase = Phase::Failed { drained: true },
            _ => {}
        }
    }

    fn finish_reset(&mut self, answers: &mut Vec<Answer>) {
        self.device.reset();
        self.phase = Phase::Idle;
        let (epoch, config) = (self.epoch - 1, self.device.config());
        answers.push(Answer::Reset { epoch, config });
    }

    /// The numbers of the running queues.
    fn queues(&self) -> Vec<u16> {
        let activation = self.running().into_iter();
        activation.flat_map(Activation::numbers).collect()
    }

    fn kick(&mut self, poller: &mut dyn Poller, answers: &mut Vec<Answer>) {
        for queue in self.queues() {
            self.process(poller, Event::Queue(queue), answers);
        }
    }
}

impl<M> fmt::Debug for Worker<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("phase", &self.phase)
            .field("epoch", &self.epoch)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}
