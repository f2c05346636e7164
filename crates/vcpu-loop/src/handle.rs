// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The controller's end of one vCPU, and waiting for answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::builder::StoppedVcpu;
use crate::counters::ExitCounters;
use crate::dispatch::Unclaimed;
use crate::doorbell::Doorbell;
use crate::error::{Error, Result};
use crate::kick::KickSignal;
use crate::state::Request;
use crate::thread::{Envelope, Order, Reply};
use crate::vcpu::VcpuId;

/// The controller's end of one vCPU's mailbox.
pub(crate) struct VcpuHandle<S> {
    pub(crate) id: VcpuId,
    pub(crate) mailbox: Sender<Envelope<S>>,
    pub(crate) bell: Arc<Doorbell>,
    /// None if the vCPU runs on the caller's thread.
    pub(crate) thread: Option<JoinHandle<Option<StoppedVcpu>>>,
    pub(crate) unclaimed: Arc<Unclaimed>,
    pub(crate) exits: Arc<ExitCounters>,
}

impl<S> VcpuHandle<S> {
    /// Enqueues, then rings: in this order, see [`crate::kick`]. If the thread is gone, the envelope is dropped.
    pub(crate) fn send(
        &self,
        order: Order<S>,
        reply: Sender<(VcpuId, Reply<S>)>,
        signal: KickSignal,
    ) {
        if self.mailbox.send(Envelope { order, reply }).is_ok() {
            self.bell.ring(signal);
        }
    }

    /// Whether no thread answers: the caller's thread does not run the vCPU yet, or no longer.
    pub(crate) fn is_unattended(&self) -> bool {
        self.thread.is_none() && !self.bell.is_attended()
    }

    /// Waits until the thread has ended, or the caller's thread does not run the vCPU, but not longer than `end`. It
    /// polls, because a join has no deadline, and a thread ends within microseconds of its answer.
    pub(crate) fn is_finished_by(&self, end: Option<Instant>) -> bool {
        loop {
            let finished = match &self.thread {
                Some(thread) => thread.is_finished(),
                None => !self.bell.is_attended(),
            };
            if finished {
                return true;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The vCPU of a thread that has ended. None after a panic, which an event has reported, or if `run_here` returned
    /// the vCPU.
    pub(crate) fn join(self) -> Option<StoppedVcpu> {
        self.thread?.join().ok().flatten()
    }
}

/// The next answer; `None` if all senders are dropped; an error at the end of the deadline.
pub(crate) fn receive<T>(
    receiver: &Receiver<T>,
    end: Option<Instant>,
) -> std::result::Result<Option<T>, ()> {
    let Some(end) = end else {
        return Ok(receiver.recv().ok());
    };
    match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(answer) => Ok(Some(answer)),
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err(()),
    }
}

/// Waits for the answers of all `ids`, and returns them in that order. It waits for every vCPU before it returns an
/// error. A missed deadline takes precedence over a refusal.
pub(crate) fn collect<S>(
    receiver: &Receiver<(VcpuId, Reply<S>)>,
    ids: &[VcpuId],
    request: Request,
    deadline: Duration,
) -> Result<Vec<Reply<S>>> {
    let end = Instant::now().checked_add(deadline);
    let mut answers: Vec<Option<Reply<S>>> = ids.iter().map(|_| None).collect();
    let missing = |answers: &[Option<Reply<S>>]| -> Vec<VcpuId> {
        ids.iter()
            .zip(answers)
            .filter(|(_, a)| a.is_none())
            .map(|(id, _)| *id)
            .collect()
    };
    while answers.iter().any(Option::is_none) {
        match receive(receiver, end) {
            Ok(Some((id, answer))) => {
                if let Some(at) = ids.iter().position(|other| *other == id) {
                    answers[at] = Some(answer);
                }
            }
            Ok(None) => break,
            Err(()) => {
                let missed = missing(&answers);
                return Err(Error::Deadline {
                    request,
                    missed,
                    waited: deadline,
                });
            }
        }
    }
    if let Some(id) = missing(&answers).first() {
        return Err(Error::Gone { id: *id });
    }
    ids.iter()
        .zip(answers.into_iter().flatten())
        .map(|(id, answer)| match answer {
            Reply::Refused(state) => Err(Error::Refused {
                id: *id,
                request,
                state,
            }),
            Reply::NotStarted(source) => Err(Error::Start { id: *id, source }),
            Reply::Failed(source) => Err(Error::Host {
                id: *id,
                request,
                source,
            }),
            answer => Ok(answer),
        })
        .collect()
}
