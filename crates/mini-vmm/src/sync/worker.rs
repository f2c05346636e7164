// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that wait for file descriptors or block in I/O, and can always be stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vcpu_loop::KickSignal;
use vmm_sys_util::signal::{Killable, block_signal};

use super::Wake;

/// Signals for the process. They are blocked in these threads, so that other threads handle them.
const PROCESS_SIGNALS: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGALRM,
    libc::SIGCHLD,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// How long to wait for a thread to stop before it is abandoned (hung in a file system).
const PATIENCE: Duration = Duration::from_secs(1);

/// The stop request, as the thread sees it.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: AtomicBool,
    event: Wake,
}

impl Stop {
    /// Whether the thread should stop.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Never cleared, so every later poll returns at once.
        self.event.signal();
    }

    /// Waits until one of `fds` has an event, the thread should stop, or `timeout` has passed. Returns the events in
    /// the order of `fds`. A signal or a failure counts as no event.
    pub(crate) fn poll<const N: usize>(
        &self,
        fds: [Option<(BorrowedFd<'_>, PollFlags)>; N],
        timeout: Option<Duration>,
    ) -> [PollFlags; N] {
        let happened = self.poll_all(fds.iter().flatten().copied(), timeout);
        let mut happened = happened.unwrap_or_default().into_iter();
        fds.map(|fd| {
            fd.and_then(|_| happened.next())
                .unwrap_or(PollFlags::empty())
        })
    }

    /// Like [`poll`](Self::poll), for any number of `fds`. The result is empty if there was no event.
    ///
    /// # Errors
    /// The host can't wait for them.
    pub(crate) fn poll_all<'a>(
        &self,
        fds: impl Iterator<Item = (BorrowedFd<'a>, PollFlags)>,
        timeout: Option<Duration>,
    ) -> io::Result<Vec<PollFlags>> {
        let mut polled = vec![PollFd::new(&self.event, PollFlags::IN)];
        polled.extend(fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: t.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) if !self.is_requested() => {
                Ok(polled.iter().skip(1).map(PollFd::revents).collect())
            }
            Ok(_) | Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Says which thread panicked. The guest of a thread that it can't do without also has an outcome
/// ([`FailOnPanic`](crate::outcome::FailOnPanic)). Without the console, the API or the reports it runs on, as if nobody
/// used them.
struct TellPanic;

impl Drop for TellPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            log::error!(
                "thread {} panicked and is gone; report the message above as a bug",
                thread.name().unwrap_or("unnamed")
            );
        }
    }
}

/// A thread that is stopped on drop.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `body` on a new thread.
    pub(crate) fn spawn(
        name: &str,
        body: impl FnOnce(&Stop) + Send + 'static,
    ) -> io::Result<Worker> {
        // The kick signal of vCPUs also interrupts blocking system calls of these threads.
        KickSignal::default().install().map_err(io::Error::other)?;
        let stop = Arc::new(Stop {
            requested: AtomicBool::new(false),
            event: Wake::new()?,
        });
        let for_thread = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                for signal in PROCESS_SIGNALS {
                    // Fails only if it is already blocked.
                    let _ = block_signal(signal);
                }
                let _tells = TellPanic;
                body(&for_thread);
            })?;
        Ok(Worker {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops the thread: requests it, interrupts its blocking calls until it reacts, and joins it.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.request();
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(50);
        while !thread.is_finished() && Instant::now() < deadline {
            // The signal may arrive just before the system call, so it is repeated.
            let _ = thread.kill(KickSignal::default().number());
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        if thread.is_finished() {
            // The panic hook has already reported a panic.
            let _ = thread.join();
        } else {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            log::warn!("thread {name} hangs in the host's I/O and is abandoned");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Which of `flags` are set on `fd` now, and errors and hang-ups. `None` if poll fails.
pub(crate) fn look(fd: &impl AsFd, flags: PollFlags) -> Option<PollFlags> {
    let mut fds = [PollFd::new(fd, flags)];
    poll(&mut fds, Some(&Timespec::default())).ok()?;
    Some(fds[0].revents())
}

/// Shorthand for a poll entry.
pub(crate) fn readable(fd: &impl AsFd) -> Option<(BorrowedFd<'_>, PollFlags)> {
    Some((fd.as_fd(), PollFlags::IN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn thread_blocked_in_read_ends() {
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (started, wait) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let mut worker = Worker::spawn("test", move |stop| {
            started.send(()).unwrap();
            while !stop.is_requested() {
                let error = rustix::io::read(&reader, &mut [0; 1]).unwrap_err();
                assert_eq!(error, rustix::io::Errno::INTR);
            }
            over.store(true, Ordering::Release);
        })
        .unwrap();
        wait.recv().unwrap();
        thread::sleep(Duration::from_millis(20));
        worker.stop();
        assert!(
            is_over.load(Ordering::Acquire),
            "interrupted, not abandoned"
        );
    }

    #[test]
    fn poll_reports_in_the_order_of_the_fds() {
        let (quiet, _quiet_writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (ready, ready_writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&ready_writer, b"x").unwrap();
        let (answer, wait) = mpsc::channel();
        let _worker = Worker::spawn("test", move |stop| {
            let fds = [readable(&quiet), None, readable(&ready)];
            answer.send(stop.poll(fds, None)).unwrap();
            stop.poll([readable(&quiet)], None);
            assert!(stop.is_requested());
        })
        .unwrap();
        let empty = PollFlags::empty();
        assert_eq!(wait.recv().unwrap(), [empty, empty, PollFlags::IN]);
    }
}
