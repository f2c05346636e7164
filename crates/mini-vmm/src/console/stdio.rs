// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console on standard input and output.
//!
//! Both are shared with the parent process, so their flags stay. Reads and writes block, on separate threads. That also
//! works for every kind of input: terminals, pipes, sockets, regular files and /dev/null. epoll supports only some of
//! them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::escape::{Command, Escape, HELP};
use super::input::{InputQueue, READ_AHEAD};
use super::output::{FdSink, Sink};
use super::terminal::{self, RawTerminal};
use super::{Error, margin, tell};
use crate::sync::{Stop, Wake, Worker, readable};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read};
use rustix::stdio;

/// How often a background process checks whether it is in the foreground. Not every shell signals that.
const BACKGROUND_POLL: Duration = Duration::from_millis(500);

/// A duplicate of a standard stream, above descriptor 2. `None` if it is closed.
fn duplicate(stream: rustix::fd::BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match fcntl_dupfd_cloexec(stream, 3) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::BADF) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Standard output, as the sink of the writer thread.
pub(super) struct StdoutSink {
    fd: FdSink,
    /// Whether standard error goes to the same place.
    is_shared: bool,
}

impl Sink for StdoutSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_shared {
            // Before the write, since visible output may at once cause a line of ours.
            margin::note(bytes);
        }
        self.fd.write(bytes)
    }
}

/// Standard output. `None` if it is closed.
pub(super) fn output() -> io::Result<Option<StdoutSink>> {
    let fd = duplicate(stdio::stdout())?;
    Ok(fd.map(|fd| StdoutSink {
        fd: FdSink(fd),
        is_shared: margin::is_shared(),
    }))
}

/// The reader of standard input, and its terminal, if it is one. `None` if it is closed.
pub(super) fn input(
    queue: &Arc<InputQueue>,
) -> Result<(Option<Worker>, Option<RawTerminal>), Error> {
    let Some(fd) = duplicate(stdio::stdin()).map_err(Error::Start)? else {
        return Ok((None, None));
    };
    let queue = Arc::clone(queue);
    if !terminal::is_terminal() {
        let body = move |stop: &Stop| read_stream(&fd, &queue, stop);
        let reader = Worker::spawn("console-in", body).map_err(Error::Start)?;
        return Ok((Some(reader), None));
    }
    tell("the console is on this terminal; Ctrl-A x quits, Ctrl-A h shows more");
    let terminal = RawTerminal::enter().map_err(Error::Terminal)?;
    let continued = terminal.continued();
    let body = move |stop: &Stop| read_terminal(&fd, &queue, continued, stop);
    let reader = Worker::spawn("console-in", body).map_err(Error::Start)?;
    Ok((Some(reader), Some(terminal)))
}

/// Reads a stream to its end, at the guest's pace.
fn read_stream(fd: &OwnedFd, queue: &InputQueue, stop: &Stop) {
    if let Err(error) = queue.fill_from(fd, stop) {
        log::warn!("the console's input ended: {error}");
    }
}

/// Reads keys, follows job control, and acts on escape sequences.
fn read_terminal(fd: &OwnedFd, queue: &InputQueue, continued: &Wake, stop: &Stop) {
    let mut escape = Escape::default();
    let mut buffer = [0; READ_AHEAD];
    let mut foreground = terminal::follow_job_control();
    while !stop.is_requested() {
        let keys = if foreground { readable(fd) } else { None };
        let timeout = (!foreground).then_some(BACKGROUND_POLL);
        let [typed, went_on] = stop.poll([keys, readable(continued)], timeout);
        if !went_on.is_empty() {
            continued.clear();
            foreground = terminal::follow_job_control();
            continue;
        }
        if typed.is_empty() {
            foreground = foreground || terminal::follow_job_control();
            continue;
        }
        if !crate::sys::terminal::in_foreground() {
            // Reading in the background would stop the process (SIGTTIN).
            foreground = terminal::follow_job_control();
            continue;
        }
        match read(fd, &mut buffer) {
            Ok(0) => return,
            Ok(count) => take_keys(&buffer[..count], &mut escape, queue),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Hung up. SIGHUP informs the rest of the process.
            Err(_) => return,
        }
    }
}

fn take_keys(keys: &[u8], escape: &mut Escape, queue: &InputQueue) {
    let mut guest = Vec::with_capacity(keys.len() + 1);
    for key in keys {
        match escape.feed(*key, &mut guest) {
            Some(Command::Quit) => queue.quit(),
            Some(Command::Help) => HELP.lines().for_each(tell),
            None => {}
        }
    }
    queue.push_typed(&guest);
}
