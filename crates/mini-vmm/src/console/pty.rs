// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console on a new pseudo-terminal, which terminal programs open by its name.
//!
//! This process also keeps the programs' side open. So the terminal survives while no program has it open, keeps the
//! output of that time (as much as the queue holds), and never hangs up.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::Error;
use super::input::InputQueue;
use super::output::{FdSink, Output, Sink};
use crate::sync::{Stop, Worker, look};

/// How long to wait after an unexpected hang-up before trying again.
const HANG_UP_PAUSE: Duration = Duration::from_millis(500);

/// How often, and at what interval, to check at the end whether everything was read, and how many checks in a row must
/// find nothing left.
const FINAL_LOOKS: u32 = 400;
const EMPTY_LOOKS: u32 = 20;
const FINAL_PAUSE: Duration = Duration::from_millis(5);

/// A pseudo-terminal with its threads.
pub(super) struct Pty {
    pub(super) name: PathBuf,
    /// Our side, for its size.
    pub(super) ours: OwnedFd,
    pub(super) output: Output,
    pub(super) reader: Worker,
}

impl Pty {
    /// Creates a pseudo-terminal in raw mode.
    pub(super) fn open(queue: &Arc<InputQueue>) -> Result<Pty, Error> {
        let (name, ours, user_side) = make().map_err(|errno| Error::Pty(errno.into()))?;
        let for_size = ours.try_clone().map_err(Error::Start)?;
        let start = || {
            let our_end = ours.try_clone()?;
            let output =
                Output::start(PtySink(FdSink(ours.try_clone()?)))?.with_reader_check(move || {
                    drop(user_side);
                    is_attached(&our_end)
                });
            let queue = Arc::clone(queue);
            let reader = Worker::spawn("console-in", move |stop| read_keys(&ours, &queue, stop))?;
            Ok((output, reader))
        };
        let (output, reader) = start().map_err(Error::Start)?;
        Ok(Pty {
            name,
            ours: for_size,
            output,
            reader,
        })
    }
}

/// Creates a pseudo-terminal in raw mode: its name, our side, the side that programs open.
pub(crate) fn make() -> Result<(PathBuf, OwnedFd, OwnedFd), Errno> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let user_side = rustix::fs::open(&name, flags, Mode::empty())?;
    let mut mode = tcgetattr(&user_side)?;
    mode.make_raw();
    tcsetattr(&user_side, OptionalActions::Now, &mode)?;
    Ok((
        OsString::from_vec(name.into_bytes()).into(),
        ours,
        user_side,
    ))
}

/// The sink of the writer thread.
struct PtySink(FdSink);

impl Sink for PtySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Waits for the program on the other side, since closing our side discards what it has not read.
    fn finish(&mut self, stop: &Stop) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let Ok(user_side) = ioctl_tiocgptpeer(&self.0.0, flags) else {
            return;
        };
        // Bytes on their way to that side are not counted, so a single empty check proves little.
        let mut empty = 0;
        for _ in 0..FINAL_LOOKS {
            empty = match ioctl_fionread(&user_side) {
                Ok(0) => empty + 1,
                _ => 0,
            };
            if empty == EMPTY_LOOKS || stop.is_requested() {
                return;
            }
            stop.poll([], Some(FINAL_PAUSE));
        }
    }
}

/// Whether a program has the other side open. Our copy of it must be closed.
fn is_attached(ours: &OwnedFd) -> bool {
    look(ours, PollFlags::OUT).is_some_and(|now| !now.contains(PollFlags::HUP))
}

fn read_keys(fd: &OwnedFd, queue: &InputQueue, stop: &Stop) {
    while !stop.is_requested() {
        // Returns only after a hang-up.
        let _ = queue.fill_from(fd, stop);
        stop.poll([], Some(HANG_UP_PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::READ_AHEAD;
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    /// A pseudo-terminal, unless the test system has none (a minimal initramfs).
    fn open(test: &str, queue: &Arc<InputQueue>) -> Option<Pty> {
        match Pty::open(queue) {
            Err(Error::Pty(error)) => {
                eprintln!("SKIP: {test}: no pseudo-terminals: {error}");
                None
            }
            pty => Some(pty.unwrap()),
        }
    }

    fn attach(pty: &Pty) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&pty.name)
            .unwrap()
    }

    fn read_line(terminal: &mut File) -> String {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            let mut byte = [0];
            terminal.read_exact(&mut byte).unwrap();
            text.extend(byte);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn survives_detaching_and_keeps_the_output() {
        let queue = Arc::new(InputQueue::new().unwrap());
        let Some(pty) = open("survives_detaching_and_keeps_the_output", &queue) else {
            return;
        };
        let mut output = pty.output.handle();
        output.write_all(b"before anyone\n").unwrap();
        let mut terminal = attach(&pty);
        assert_eq!(read_line(&mut terminal), "before anyone\n");
        terminal.write_all(b"\x03key\r").unwrap();
        drop(terminal);

        output.write_all(b"in between\n").unwrap();
        let mut terminal = attach(&pty);
        assert_eq!(read_line(&mut terminal), "in between\n");
        // Raw keys arrive unchanged, and nothing is echoed.
        while queue.room() != READ_AHEAD - 5 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn detached_terminal_does_not_hold_up_the_end() {
        let Some(pty) = open(
            "detached_terminal_does_not_hold_up_the_end",
            &Arc::new(InputQueue::new().unwrap()),
        ) else {
            return;
        };
        pty.output.handle().write_all(&[b'x'; 500_000]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop(pty);
    }

    #[test]
    fn attached_program_gets_the_last_output() {
        let Some(pty) = open(
            "attached_program_gets_the_last_output",
            &Arc::new(InputQueue::new().unwrap()),
        ) else {
            return;
        };
        let mut terminal = attach(&pty);
        pty.output.handle().write_all(&[b'x'; 100_000]).unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 100_000];
            terminal.read_exact(&mut bytes).map(|()| bytes)
        });
        drop(pty);
        assert_eq!(reader.join().unwrap().unwrap(), [b'x'; 100_000]);
    }
}
