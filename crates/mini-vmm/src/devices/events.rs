// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that devices' timers and descriptors wake. A machine whose devices have none has no such thread.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

/// A descriptor, and what is done when it is readable.
pub(super) struct EventSource {
    /// The descriptor. Whoever shares it may read it.
    pub fd: Arc<OwnedFd>,
    /// Runs on the devices' thread. It makes the descriptor unreadable, or is called again at once.
    pub ready: Box<dyn FnMut() + Send>,
}

/// The thread, for as long as this lives.
pub(super) struct EventThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl EventThread {
    /// Starts the thread for `sources`, if there are any.
    ///
    /// # Errors
    /// The process has no descriptor or no thread left.
    pub fn start(sources: Vec<EventSource>) -> io::Result<Option<Self>> {
        if sources.is_empty() {
            return Ok(None);
        }
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("devices".to_owned())
            .spawn(move || serve(sources, stopped.as_fd()))?;
        Ok(Some(EventThread {
            stop,
            thread: Some(thread),
        }))
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        // It fails only on a full counter, which wakes the thread as well.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic was printed when it happened; the devices that it served stand still.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for EventThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventThread").finish_non_exhaustive()
    }
}

/// Serves `sources` until `stop` is readable.
fn serve(mut sources: Vec<EventSource>, stop: BorrowedFd<'_>) {
    loop {
        let descriptors: Vec<_> = sources
            .iter()
            .map(|source| Arc::clone(&source.fd))
            .collect();
        let mut polled = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        polled.extend(descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                log::error!("devices wait for their events no more: {error}");
                return;
            }
        }
        let mut revents = polled.iter().map(PollFd::revents);
        if revents.next().is_some_and(|stop| !stop.is_empty()) {
            return;
        }
        let mut keep = Vec::with_capacity(sources.len());
        for (mut source, revents) in sources.drain(..).zip(revents) {
            if revents.contains(PollFlags::IN) {
                (source.ready)();
            }
            // What failed is readable for ever: waiting for it would spin.
            if !revents.intersects(PollFlags::ERR | PollFlags::NVAL) {
                keep.push(source);
            }
        }
        sources = keep;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_event_calls_its_own_and_the_end_joins() {
        assert!(EventThread::start(Vec::new()).unwrap().is_none());
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
        let thread = EventThread::start(sources.collect()).unwrap();
        drop(sender);
        for (event, name) in [(1, "b"), (0, "a"), (1, "b")] {
            rustix::io::write(&events[event], &1u64.to_ne_bytes()).unwrap();
            assert_eq!(calls.recv().unwrap(), name);
        }
        drop(thread);
        assert!(calls.recv().is_err(), "its closures are gone with it");
    }
}
