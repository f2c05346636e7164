// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that handles the devices' timers and descriptors. Without such devices a machine has no such thread.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::fd::OwnedFd;

use crate::outcome::{FailOnPanic, Outcome, OutcomeLatch};
use crate::sync::{Stop, Worker, readable};

/// A descriptor, and the handler for when it is readable.
pub(super) struct EventSource {
    /// The descriptor. Others that share it may read it.
    pub fd: Arc<OwnedFd>,
    /// Runs on the devices' thread. It must make the descriptor unreadable, or it is called again at once.
    pub ready: Box<dyn FnMut() + Send>,
}

/// Starts the thread for `sources`, if there are any. It stops when the worker is dropped. If it fails, that is the
/// outcome.
///
/// # Errors
/// The process has no file descriptor or thread left.
pub(super) fn start(
    sources: Vec<EventSource>,
    outcome: &OutcomeLatch,
) -> io::Result<Option<Worker>> {
    if sources.is_empty() {
        return Ok(None);
    }
    let outcome = outcome.clone();
    Worker::spawn("devices", move |stop| serve(sources, stop, &outcome)).map(Some)
}

fn serve(mut sources: Vec<EventSource>, stop: &Stop, outcome: &OutcomeLatch) {
    let _fails = FailOnPanic(outcome);
    while !stop.is_requested() {
        let happened = match stop.poll_all(sources.iter().filter_map(|s| readable(&s.fd)), None) {
            Ok(happened) => happened,
            Err(error) => {
                log::error!("devices handle no more events, because waiting failed: {error}");
                outcome.set(Outcome::DeviceFailure);
                return;
            }
        };
        let mut happened = happened.into_iter();
        sources.retain_mut(|source| {
            let happened = happened.next().unwrap_or(PollFlags::empty());
            if happened.contains(PollFlags::IN) {
                (source.ready)();
            }
            // A failed descriptor stays readable, so polling it would spin.
            !happened.intersects(PollFlags::ERR | PollFlags::NVAL)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn each_event_calls_its_own_and_the_end_joins() {
        let outcome = OutcomeLatch::new().unwrap();
        assert!(start(Vec::new(), &outcome).unwrap().is_none());
        let (sender, calls) = mpsc::channel();
        let events: Vec<_> = (0..2)
            .map(|_| Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()))
            .collect();
        let sources = events.iter().zip(["a", "b"]).map(|(event, name)| {
            let (fd, sender) = (Arc::clone(event), sender.clone());
            EventSource {
                fd: Arc::clone(event),
                ready: Box::new(move || {
                    rustix::io::read(&fd, &mut [0; 8]).unwrap();
                    sender.send(name).unwrap();
                }),
            }
        });
        let thread = start(sources.collect(), &outcome).unwrap();
        drop(sender);
        for (event, name) in [(1, "b"), (0, "a"), (1, "b")] {
            rustix::io::write(&events[event], &1u64.to_ne_bytes()).unwrap();
            assert_eq!(calls.recv().unwrap(), name);
        }
        drop(thread);
        assert!(calls.recv().is_err(), "its closures are gone with it");
        assert_eq!(outcome.get(), None);
    }

    #[test]
    fn a_device_that_panics_is_the_outcome() {
        let outcome = OutcomeLatch::new().unwrap();
        let source = EventSource {
            fd: Arc::new(eventfd(1, EventfdFlags::NONBLOCK).unwrap()),
            ready: Box::new(|| panic!("as the test wants it")),
        };
        let _thread = start(vec![source], &outcome).unwrap();
        // Comes with the outcome.
        while outcome.get().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(outcome.get(), Some(Outcome::DeviceFailure));
    }
}
