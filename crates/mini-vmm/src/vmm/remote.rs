// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A run that another thread starts: the process first waits for the machine's description.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::control::Client;
use super::supervisor::TerminationSignals;
use super::{Ended, Error, POWER_OFF_GRACE, boot_and_run, report, spare_images};
use crate::config::VmSpec;
use crate::console::Console;
use crate::machine::Images;
use crate::outcome::Outcome;
use crate::sync::Wake;
use crate::telemetry::Meter;

/// The answer to a start: the machine's command queue, or why there is no machine.
pub(crate) type Started = Result<Client, Arc<Error>>;

/// What the process waits for.
#[derive(Debug)]
pub(super) enum Order {
    Start {
        spec: Box<VmSpec>,
        /// Whether the process ends if this start fails.
        is_last: bool,
        reply: Sender<Started>,
    },
    Stop,
}

/// The end that starts the machine.
#[derive(Debug)]
pub struct Remote {
    queue: Sender<Order>,
    wake: Arc<Wake>,
    meter: Arc<Meter>,
}

impl Remote {
    /// Starts the machine that `spec` describes. The answer comes once its guest runs, or can't.
    pub(crate) fn start(&self, spec: VmSpec) -> Receiver<Started> {
        self.order_start(spec, false)
    }

    /// Like [`start`](Self::start), but if it fails, the process ends with the error.
    pub(crate) fn start_or_end(&self, spec: VmSpec) -> Receiver<Started> {
        self.order_start(spec, true)
    }

    /// The counters of the process.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Ends a process that still waits for a description.
    pub(crate) fn stop(&self) {
        self.send(Order::Stop);
    }

    fn order_start(&self, spec: VmSpec, is_last: bool) -> Receiver<Started> {
        let (reply, answer) = channel();
        let spec = Box::new(spec);
        self.send(Order::Start {
            spec,
            is_last,
            reply,
        });
        answer
    }

    /// If the run is over, the order is dropped with its reply.
    fn send(&self, order: Order) {
        let _ = self.queue.send(order);
        self.wake.signal();
    }
}

impl Drop for Remote {
    /// Wakes the process, which then notices that nobody will start its machine.
    fn drop(&mut self) {
        let (nobody, _) = channel();
        drop(mem::replace(&mut self.queue, nobody));
        self.wake.signal();
    }
}

/// The end that runs the machine.
#[derive(Debug)]
pub struct Orders {
    queue: Receiver<Order>,
    wake: Arc<Wake>,
    signals: TerminationSignals,
    meter: Arc<Meter>,
}

/// Both ends. From now on termination signals are handled as by [`run`](super::run).
///
/// # Errors
/// The process has no file descriptor left.
pub fn remote() -> Result<(Remote, Orders), Error> {
    with_signals(TerminationSignals::install().map_err(Error::Events)?)
}

fn with_signals(signals: TerminationSignals) -> Result<(Remote, Orders), Error> {
    let wake = Arc::new(Wake::new().map_err(Error::Events)?);
    let meter = Arc::default();
    let (sender, queue) = channel();
    let remote = Remote {
        queue: sender,
        wake: Arc::clone(&wake),
        meter: Arc::clone(&meter),
    };
    let orders = Orders {
        queue,
        wake,
        signals,
        meter,
    };
    Ok((remote, orders))
}

impl Orders {
    /// Waits for the start of a machine and runs it, as [`run`](super::run) does. A start that fails is answered, and
    /// the process waits for the next one. A signal or a stop ends the wait.
    ///
    /// # Errors
    /// As [`run`](super::run). An end that waits for no machine any more is [`Error::Unstarted`].
    pub fn run(self) -> Result<Outcome, Error> {
        loop {
            let (spec, is_last, reply) = match self.next()? {
                Ok(Order::Start {
                    spec,
                    is_last,
                    reply,
                }) => (spec, is_last, reply),
                Ok(Order::Stop) => return Ok(Outcome::Stopped),
                Err(signal) => return Ok(Outcome::Signal(signal)),
            };
            match run_one(&spec, &self.signals, &self.meter, &reply) {
                Ok(ended) => return Ok(report(ended)),
                Err(Failed::Running(error)) => return Err(error),
                Err(Failed::Starting(error)) if is_last => return Err(error),
                Err(Failed::Starting(error)) => {
                    let _ = reply.send(Err(Arc::new(error)));
                }
            }
        }
    }

    /// The next order, or the signal that ends the wait.
    pub(super) fn next(&self) -> Result<Result<Order, i32>, Error> {
        loop {
            self.wake.clear();
            match self.queue.try_recv() {
                Ok(order) => return Ok(Ok(order)),
                Err(TryRecvError::Disconnected) => return Err(Error::Unstarted),
                Err(TryRecvError::Empty) => {}
            }
            if let Some(signal) = self.signals.pending() {
                return Ok(Err(signal));
            }
            let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
            fds.extend(
                self.signals
                    .streams()
                    .map(|s| PollFd::new(s, PollFlags::IN)),
            );
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Events(io::Error::from(error))),
            }
        }
    }
}

/// Why a machine that was ordered did not run to an outcome.
enum Failed {
    /// There was no machine yet.
    Starting(Error),
    Running(Error),
}

fn run_one(
    spec: &VmSpec,
    signals: &TerminationSignals,
    meter: &Arc<Meter>,
    reply: &Sender<Started>,
) -> Result<Ended, Failed> {
    spec.validate()
        .map_err(|error| Failed::Starting(error.into()))?;
    spare_images(spec).map_err(|error| Failed::Starting(error.into()))?;
    let signals = signals
        .try_clone()
        .map_err(|error| Failed::Starting(Error::Events(error)))?;
    let mut has_started = false;
    let started = |client| {
        has_started = true;
        let _ = reply.send(Ok(client));
    };
    boot_and_run(
        spec,
        signals,
        Arc::clone(meter),
        |watch| Images::open(spec, watch),
        POWER_OFF_GRACE,
        || Console::open(&spec.serial),
        started,
    )
    .map_err(|error| match has_started {
        true => Failed::Running(error),
        false => Failed::Starting(error),
    })
}

/// Both ends, without signals.
#[cfg(any(test, feature = "test-utils"))]
pub(crate) fn deaf() -> (Remote, Orders) {
    with_signals(TerminationSignals::none()).expect("file descriptors for a queue")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;
    use crate::vmm::supervisor::tests::signals;

    #[test]
    fn a_start_that_fails_is_answered_and_a_stop_ends_the_wait() {
        let (remote, orders) = deaf();
        let run = thread::spawn(move || orders.run());
        for _ in 0..2 {
            let answer = remote.start(VmSpec::new("/no/such/kernel")).recv().unwrap();
            let error = answer.unwrap_err().to_string();
            assert!(error.contains("/no/such/kernel"), "{error}");
        }
        remote.stop();
        assert_eq!(run.join().unwrap().unwrap(), Outcome::Stopped);
        assert!(remote.start(VmSpec::new("late")).recv().is_err());
    }

    #[test]
    fn the_only_start_ends_the_process_if_it_fails() {
        let (remote, orders) = deaf();
        let answer = remote.start_or_end(VmSpec::new("/no/such/kernel"));
        assert!(matches!(orders.run(), Err(Error::Image(_))));
        assert!(answer.recv().is_err());
    }

    #[test]
    fn a_wait_ends_with_its_signal_or_its_other_end() {
        let (signals, mut writers) = signals();
        let (remote, orders) = with_signals(signals).unwrap();
        writers[0].1.write_all(&[0]).unwrap();
        let signal = orders.next().unwrap().unwrap_err();
        assert_eq!(signal, writers[0].0);
        let waiting = thread::spawn(move || orders.next());
        drop(remote);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Unstarted)));
    }
}
