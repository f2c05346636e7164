// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control end of one vCPU, and waiting for answers.

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

/// The control end of one vCPU's thread.
pub(crate) struct VcpuHandle<S> {
    pub(crate) id: VcpuId,
    pub(crate) mailbox: Sender<Envelope<S>>,
    pub(crate) bell: Arc<Doorbell>,
    /// None for a thread of the caller's own.
    pub(crate) thread: Option<JoinHandle<Option<StoppedVcpu>>>,
    pub(crate) unclaimed: Arc<Unclaimed>,
    pub(crate) exits: Arc<ExitCounters>,
}

impl<S> VcpuHandle<S> {
    /// Enqueue, then ring: in this order, see [`crate::kick`]. Without a thread the envelope is dropped.
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

    /// Whether nobody is there to answer: the caller's own thread does not run the vCPU yet, or no longer.
    pub(crate) fn is_unattended(&self) -> bool {
        self.thread.is_none() && !self.bell.is_attended()
    }

    /// Whether the thread has ended by `end`, or has not begun if it is the caller's own. A thread ends within
    /// microseconds of its answer, so the wait is a short poll; a join has no deadline.
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

    /// What a thread that has ended leaves behind: nothing after a panic, which an event has reported, and
    /// nothing if the vCPU returned to its caller.
    pub(crate) fn join(self) -> Option<StoppedVcpu> {
        self.thread?.join().ok().flatten()
    }
}

/// The next answer; `None` when all senders are gone; an error when time is up.
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

/// Waits for the answers of all of `ids`, and returns them in that order. Every vCPU is waited for before
/// an error is returned; a missed deadline goes before a refusal.
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
