// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress of loading, which may take long: slow files, pipes, large payloads. A watcher sees it and can stop it.

use std::cell::Cell;
use std::fmt;
use std::io;

use super::Compression;
use crate::layout::MIB;

/// Sees the progress of loading, and may stop it.
///
/// It is called often: before each piece of work of at most 256 KiB (8 MiB for LZ4), and ten times a second while a
/// pipe has no data. So it should return quickly.
pub trait Watch {
    /// Whether to go on with `step`. After it returned `false` once, it is not called again.
    fn go_on(&self, step: Step) -> bool;
}

/// A [`Watch`] that never stops the loading.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn go_on(&self, _: Step) -> bool {
        true
    }
}

/// A step of loading. Its [`Display`](fmt::Display) is a line for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kind of work.
    pub work: Work,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes to do, if known.
    pub total: Option<u64>,
}

/// A kind of work. The strings are `"kernel"`, `"initrd"` or a program's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reading a file into the host's memory.
    Read(&'static str),
    /// Decompressing the kernel.
    Decompress(Compression),
    /// Copying an image to guest memory.
    Place(&'static str),
    /// Waiting until a program is ready.
    Wait(&'static str),
}

impl Step {
    /// Waiting for a program.
    pub(crate) const fn wait(program: &'static str) -> Self {
        Step {
            work: Work::Wait(program),
            done: 0,
            total: None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Read(what) => write!(f, "reading the {what}: ")?,
            Work::Decompress(format) => write!(f, "decompressing the kernel ({format}): ")?,
            Work::Place(what) => write!(f, "loading the {what}: ")?,
            Work::Wait(program) => return write!(f, "waiting for {program} to start"),
        }
        let done = self.done / MIB;
        match self.total {
            Some(total) => write!(f, "{done} of {} MiB", total.div_ceil(MIB)),
            None => write!(f, "{done} MiB so far"),
        }
    }
}

/// Remembers that its [`Watch`] said no, and doesn't ask it again.
pub(super) struct Guard<'a> {
    watch: &'a dyn Watch,
    stopped: Cell<bool>,
}

impl<'a> Guard<'a> {
    pub(super) fn new(watch: &'a dyn Watch) -> Self {
        Guard {
            watch,
            stopped: Cell::new(false),
        }
    }

    /// Whether the watch stopped the loading. Any error is then a consequence.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Asks whether to go on with `work`.
    pub(super) fn ask(&self, work: Work, done: u64, total: Option<u64>) -> io::Result<()> {
        if !self.is_stopped() && self.watch.go_on(Step { work, done, total }) {
            return Ok(());
        }
        self.stopped.set(true);
        Err(io::Error::other("loading was stopped"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_as_lines() {
        let step = |work, done, total| Step { work, done, total }.to_string();
        assert_eq!(
            step(Work::Read("initrd"), 3 * MIB + 5, None),
            "reading the initrd: 3 MiB so far"
        );
        assert_eq!(
            step(
                Work::Decompress(Compression::Xz),
                20 * MIB,
                Some(60 * MIB + 1)
            ),
            "decompressing the kernel (xz): 20 of 61 MiB"
        );
        assert_eq!(
            step(Work::Place("kernel"), 0, Some(1)),
            "loading the kernel: 0 of 1 MiB"
        );
        assert_eq!(
            Step::wait("passt").to_string(),
            "waiting for passt to start"
        );
    }

    #[test]
    fn a_watch_that_said_no_is_not_asked_again() {
        struct Once(Cell<u32>);
        impl Watch for Once {
            fn go_on(&self, _: Step) -> bool {
                self.0.set(self.0.get() + 1);
                false
            }
        }
        let once = Once(Cell::new(0));
        let guard = Guard::new(&once);
        for _ in 0..3 {
            assert!(guard.ask(Work::Read("kernel"), 0, None).is_err());
        }
        assert!(guard.is_stopped());
        assert_eq!(once.0.get(), 1);
    }
}
