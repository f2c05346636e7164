// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A run that another thread starts: the process first waits for the machine's description.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::begin::Begin;
use super::control::{Client, Door, door};
use super::run::Controls;
use super::supervisor::TerminationSignals;
use super::{Ended, Error, POWER_OFF_GRACE, Saved, report, spare_images};
use crate::config::VmSpec;
use crate::outcome::Outcome;
use crate::sync::{Reply, Wake, promise};
use crate::telemetry::Meter;

/// The answer to a start: its guest runs, or there is no machine.
pub(crate) type Started = Result<(), Arc<Error>>;

/// A machine that was ordered.
#[derive(Debug)]
pub(crate) struct Starting {
    /// Its command queue. A stop ends its loading; other commands wait for its end.
    pub client: Client,
    /// Disconnected if the process ends instead.
    pub answer: Receiver<Started>,
}

/// What the process waits for.
#[derive(Debug)]
pub(super) enum Order {
    Start(Box<Start>),
    Stop,
}

/// A machine to start.
#[derive(Debug)]
pub(super) struct Start {
    pub spec: VmSpec,
    /// What it goes on with, if it was saved.
    pub saved: Option<Saved>,
    pub door: Door,
    /// Whether the process ends if this start fails.
    is_last: bool,
    pub reply: Reply<Started>,
}

/// The end that starts the machine.
#[derive(Debug)]
pub struct Remote {
    queue: Sender<Order>,
    wake: Arc<Wake>,
    meter: Arc<Meter>,
}

impl Remote {
    /// Starts the machine that `spec` describes, or goes on with the `saved` one. `wake` is signalled once the answer is
    /// there: when its guest runs, or can't.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub(crate) fn start(
        &self,
        spec: VmSpec,
        saved: Option<Saved>,
        wake: &Arc<Wake>,
    ) -> io::Result<Starting> {
        self.order_start(spec, saved, wake, false)
    }

    /// Like [`start`](Self::start), but if it fails, the process ends with the error.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn start_or_end(
        &self,
        spec: VmSpec,
        saved: Option<Saved>,
        wake: &Arc<Wake>,
    ) -> io::Result<Starting> {
        self.order_start(spec, saved, wake, true)
    }

    /// The counters of the process.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Ends a process that still waits for a description.
    pub(crate) fn stop(&self) {
        self.send(Order::Stop);
    }

    fn order_start(
        &self,
        spec: VmSpec,
        saved: Option<Saved>,
        wake: &Arc<Wake>,
        is_last: bool,
    ) -> io::Result<Starting> {
        let (client, door) = door()?;
        let (reply, answer) = promise(Some(Arc::clone(wake)));
        self.send(Order::Start(Box::new(Start {
            spec,
            saved,
            door,
            is_last,
            reply,
        })));
        Ok(Starting { client, answer })
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
            let start = match self.next()? {
                Ok(Order::Start(start)) => *start,
                Ok(Order::Stop) => return Ok(Outcome::Stopped),
                Err(signal) => return Ok(Outcome::Signal(signal)),
            };
            let mut reply = Some(start.reply);
            let started = || {
                if let Some(reply) = reply.take() {
                    reply.send(Ok(()));
                }
            };
            let begin = match start.saved {
                None => start.spec.validate().map(|()| Begin::boot(&start.spec)),
                Some(saved) => Ok(Begin::thaw(&start.spec, saved)),
            };
            let run = begin
                .map_err(Error::from)
                .and_then(|begin| run_one(begin, start.door, &self.signals, &self.meter, started));
            match (run, reply) {
                (Ok(ended), _) => return Ok(report(ended)),
                (Err(error), Some(reply)) if !start.is_last => reply.send(Err(Arc::new(error))),
                (Err(error), _) => return Err(error),
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

/// Runs a machine that was ordered. `started` is called before its guest runs.
fn run_one(
    begin: Begin<'_>,
    door: Door,
    signals: &TerminationSignals,
    meter: &Arc<Meter>,
    started: impl FnOnce(),
) -> Result<Ended, Error> {
    spare_images(begin.spec)?;
    let controls = Controls {
        signals: signals.try_clone().map_err(Error::Events)?,
        grace: POWER_OFF_GRACE,
        door,
        meter: Arc::clone(meter),
    };
    begin.run(controls, started)
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
    use crate::vmm::control::State;
    use crate::vmm::supervisor::tests::signals;

    /// A waker for answers that these tests wait for.
    fn wake() -> Arc<Wake> {
        Arc::new(Wake::new().unwrap())
    }

    #[test]
    fn a_start_that_fails_is_answered_and_a_stop_ends_the_wait() {
        let (remote, orders) = deaf();
        let run = thread::spawn(move || orders.run());
        for _ in 0..2 {
            let start = remote.start(VmSpec::new("/no/such/kernel"), None, &wake());
            let Starting { client, answer } = start.unwrap();
            let error = answer.recv().unwrap().unwrap_err().to_string();
            assert!(error.contains("/no/such/kernel"), "{error}");
            assert_eq!(client.state(), State::Ended);
        }
        remote.stop();
        assert_eq!(run.join().unwrap().unwrap(), Outcome::Stopped);
        let late = remote.start(VmSpec::new("late"), None, &wake()).unwrap();
        assert!(late.answer.recv().is_err());
    }

    #[test]
    fn the_only_start_ends_the_process_if_it_fails() {
        let (remote, orders) = deaf();
        let start = remote.start_or_end(VmSpec::new("/no/such/kernel"), None, &wake());
        assert!(matches!(orders.run(), Err(Error::Image(_))));
        assert!(start.unwrap().answer.recv().is_err());
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
