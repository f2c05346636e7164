// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that wait for descriptors, or block in reads and writes, and can always be ended.

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

/// Signals that belong to the process: another thread takes them, never one of these.
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

/// How long a thread that was told to end may take before it is left behind (a hung file system).
const PATIENCE: Duration = Duration::from_secs(1);

/// The request to end, as its thread sees it.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: AtomicBool,
    event: Wake,
}

impl Stop {
    /// Whether the thread should end.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Never cleared: every later poll returns at once.
        self.event.signal();
    }

    /// Waits until one of `fds` has an event, the thread should end, or `timeout` is over. What
    /// happened is in the answer, in the order of `fds`; a signal and a failure count as nothing.
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

    /// As [`poll`](Self::poll), for any number of `fds`. The answer is empty if nothing happened.
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

/// A thread that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `body` on a thread of its own.
    pub(crate) fn spawn(
        name: &str,
        body: impl FnOnce(&Stop) + Send + 'static,
    ) -> io::Result<Worker> {
        // The signal that kicks vCPUs takes these threads out of blocking system calls, too.
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
                    // The only failure is that it is blocked already.
                    let _ = block_signal(signal);
                }
                body(&for_thread);
            })?;
        Ok(Worker {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the thread: asks it, interrupts what it is blocked in until it listens, and joins it.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.request();
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(50);
        while !thread.is_finished() && Instant::now() < deadline {
            // The signal may come just before the system call; so it comes again.
            let _ = thread.kill(KickSignal::default().number());
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        if thread.is_finished() {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        } else {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            log::warn!("thread {name} hangs in the host's I/O and is left behind");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Which of `flags` `fd` has now, and errors and hang-ups; `None` if the host does not say.
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
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
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
            "interrupted, not left behind"
        );
    }

    #[test]
    fn poll_reports_in_the_order_of_the_fds() {
        let (quiet, _quiet_writer) = rustix::pipe::pipe().unwrap();
        let (ready, ready_writer) = rustix::pipe::pipe().unwrap();
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
