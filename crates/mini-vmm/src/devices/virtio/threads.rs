// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads of a machine's virtio devices: one that devices share, and one for each name that is given to devices.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::io_thread::{DRAIN, IoThread, NoAnswer, Pending};
use crate::config::IoThreadName;
use crate::devices::SuspendError;
use crate::outcome::OutcomeLatch;
use crate::sync::lock;

/// The name of the shared thread, and the beginning of the others' names.
const SHARED: &str = "io";

/// The threads of a machine's virtio devices. Each starts with the first driver of one of its devices.
#[derive(Debug)]
pub struct IoThreads {
    outcome: OutcomeLatch,
    threads: Mutex<Vec<Arc<IoThread>>>,
}

impl IoThreads {
    /// No thread yet. A thread that fails sets `outcome`.
    pub(in crate::devices) fn new(outcome: &OutcomeLatch) -> Self {
        IoThreads {
            outcome: outcome.clone(),
            threads: Mutex::default(),
        }
    }

    /// The thread of this name, or the shared one.
    pub(super) fn get(&self, name: Option<&IoThreadName>) -> Arc<IoThread> {
        let name = name.map_or_else(
            || SHARED.to_owned(),
            |name| format!("{SHARED}-{}", name.as_str()),
        );
        let mut threads = lock(&self.threads);
        if let Some(thread) = threads.iter().find(|thread| thread.name() == name) {
            return Arc::clone(thread);
        }
        let thread = Arc::new(IoThread::new(name, self.outcome.clone()));
        threads.push(Arc::clone(&thread));
        thread
    }

    fn all(&self) -> Vec<Arc<IoThread>> {
        lock(&self.threads).clone()
    }

    /// Stops all devices. All threads do that at the same time, so one deadline holds for all.
    ///
    /// # Errors
    /// A device can't stop in time. All keep running then.
    pub(in crate::devices) fn pause(&self, by: Instant) -> Result<(), SuspendError> {
        let threads = self.all();
        let answers: Vec<_> = threads.iter().map(|thread| thread.pause(by)).collect();
        let mut pairs = threads.iter().zip(answers);
        let paused = pairs.try_for_each(|(thread, answer)| stopped(thread, answer, by));
        paused.inspect_err(|_| self.resume())
    }

    /// Lets all devices go on.
    pub(in crate::devices) fn resume(&self) {
        self.all().iter().for_each(|thread| thread.resume());
    }

    /// Ends all threads after requests in flight, with one deadline. A second call has no effect.
    pub(in crate::devices) fn end(&self) {
        let by = Instant::now() + DRAIN;
        let ending: Vec<_> = self.all().iter().map(|thread| thread.end(by)).collect();
        ending.into_iter().for_each(|thread| thread.wait(by));
    }
}

/// Waits until the devices of `thread` have stopped.
fn stopped(
    thread: &IoThread,
    answer: Pending<Result<(), String>>,
    by: Instant,
) -> Result<(), SuspendError> {
    match answer.wait(by) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(device)) => Err(SuspendError::Busy { device }),
        Err(NoAnswer) => Err(SuspendError::Thread {
            thread: thread.name().to_owned(),
        }),
    }
}
