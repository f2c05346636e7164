// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An io_uring whose requests own their buffers.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{Builder, IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FallocateFlags;

use super::Buffers;

/// How long a dropped ring waits for requests in flight.
const PATIENCE: Duration = Duration::from_secs(10);
/// The delay before a retry when the kernel lacks resources.
const SOON: Duration = Duration::from_millis(1);

/// How to fill a range with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zero {
    /// Its blocks are discarded.
    Punch,
    /// Its blocks are kept.
    Keep,
}

impl Zero {
    pub(crate) fn flags(self) -> FallocateFlags {
        FallocateFlags::KEEP_SIZE
            | match self {
                Zero::Punch => FallocateFlags::PUNCH_HOLE,
                Zero::Keep => FallocateFlags::ZERO_RANGE,
            }
    }
}

/// A request in flight.
struct Flight {
    token: u32,
    buffers: Option<Buffers>,
}

/// A ring for one file. The file is registered, so that the kernel need not look it up for each request.
///
/// The ring's own file descriptor is the event source. It is readable while there are completions, so it need not be
/// cleared like an eventfd.
pub(crate) struct Ring {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    /// Pushed, but not yet in the kernel's queue.
    waiting: VecDeque<squeue::Entry>,
    /// In the kernel's queue, but perhaps not taken from there.
    unsubmitted: bool,
    /// How many are in the kernel's queue or in flight.
    begun: usize,
    /// Registered, so it must be dropped after the ring.
    _file: Arc<File>,
}

const FILE: types::Fixed = types::Fixed(0);

impl Ring {
    /// A ring for `depth` requests. More are queued here until the kernel takes them.
    pub(crate) fn new(file: &Arc<File>, depth: u32) -> io::Result<Self> {
        Self::build(&mut IoUring::builder(), file, depth)
    }

    fn build(builder: &mut Builder, file: &Arc<File>, depth: u32) -> io::Result<Self> {
        let entries = depth.next_power_of_two().clamp(8, 1024);
        let ring = builder
            .setup_clamp()
            .setup_cqsize(entries * 2)
            .build(entries)?;
        // Buffer lists can be released after the submission, and no completion is lost.
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Ring {
            ring,
            flights: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            unsubmitted: false,
            begun: 0,
            _file: Arc::clone(file),
        })
    }

    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        // SAFETY: The ring's file is open for as long as `self.ring` lives.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    pub(crate) fn read(&mut self, token: u32, offset: u64, buffers: Buffers) {
        self.push(token, Some(buffers), |buffers| {
            let pieces = buffers.map_or(&[][..], |buffers| buffers.pieces());
            match pieces {
                [one] if one.iov_len <= i32::MAX as usize => {
                    let read = opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32);
                    read.offset(offset).build()
                }
                _ => opcode::Readv::new(FILE, pieces.as_ptr(), pieces.len() as u32)
                    .offset(offset)
                    .build(),
            }
        });
    }

    pub(crate) fn write(&mut self, token: u32, offset: u64, buffers: Buffers) {
        self.push(token, Some(buffers), |buffers| {
            let pieces = buffers.map_or(&[][..], |buffers| buffers.pieces());
            match pieces {
                [one] if one.iov_len <= i32::MAX as usize => {
                    let write = opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32);
                    write.offset(offset).build()
                }
                _ => opcode::Writev::new(FILE, pieces.as_ptr(), pieces.len() as u32)
                    .offset(offset)
                    .build(),
            }
        });
    }

    pub(crate) fn flush(&mut self, token: u32) {
        let flags = types::FsyncFlags::DATASYNC;
        self.push(token, None, |_| {
            opcode::Fsync::new(FILE).flags(flags).build()
        });
    }

    pub(crate) fn zero(&mut self, token: u32, zero: Zero, offset: u64, len: u64) {
        let mode = zero.flags().bits().cast_signed();
        self.push(token, None, |_| {
            opcode::Fallocate::new(FILE, len)
                .offset(offset)
                .mode(mode)
                .build()
        });
    }

    fn push(
        &mut self,
        token: u32,
        buffers: Option<Buffers>,
        entry: impl FnOnce(Option<&Buffers>) -> squeue::Entry,
    ) {
        let index = self.free.pop().unwrap_or(self.flights.len() as u32);
        if index as usize == self.flights.len() {
            self.flights.push(None);
        }
        let entry = entry(buffers.as_ref()).user_data(index.into());
        self.flights[index as usize] = Some(Flight { token, buffers });
        // In order: a sequential reader's requests shall reach the host as such.
        if !self.waiting.is_empty() || !self.begin(&entry) {
            self.waiting.push_back(entry);
        }
    }

    /// How many requests have no completion yet.
    fn count(&self) -> usize {
        self.begun + self.waiting.len()
    }

    /// Moves a request to the kernel's queue, if it fits.
    fn begin(&mut self, entry: &squeue::Entry) -> bool {
        // The kernel would keep what overflows its queue of completions, and take nothing more.
        if self.begun >= self.ring.params().cq_entries() as usize {
            return false;
        }
        // SAFETY: The buffers are in `flights` until the request's completion was seen, and moving them doesn't move
        // their list of pieces. `drop` keeps what was never completed.
        let fits = unsafe { self.ring.submission().push(entry) }.is_ok();
        self.begun += usize::from(fits);
        self.unsubmitted |= fits;
        fits
    }

    /// Passes pushed requests to the kernel, as many as it has space for completions. The rest follows when some of
    /// those were taken. Returns `false` if the kernel took none for now; then call this again.
    pub(crate) fn submit(&mut self) -> bool {
        while !self.waiting.is_empty() || self.unsubmitted {
            while let Some(entry) = self.waiting.pop_front() {
                if !self.begin(&entry) {
                    self.waiting.push_front(entry);
                    break;
                }
            }
            self.unsubmitted = !self.ring.submission().is_empty();
            if !self.unsubmitted {
                break;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes completions: token, number of bytes or 0, buffers.
    pub(crate) fn reap(&mut self, mut each: impl FnMut(u32, io::Result<usize>, Option<Buffers>)) {
        for entry in self.ring.completion() {
            let index = entry.user_data() as u32;
            let flight = self.flights.get_mut(index as usize);
            let Some(flight) = flight.and_then(Option::take) else {
                continue;
            };
            self.free.push(index);
            self.begun -= 1;
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            each(flight.token, result, flight.buffers);
        }
    }

    /// Takes completions until nothing is in flight, at most until `by`.
    fn drain(&mut self, by: Instant) {
        while self.count() != 0 {
            let began = self.submit();
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let before = self.begun;
            self.reap(|_, _, _| {});
            if self.begun != before {
                continue;
            }
            let left = if began { left } else { left.min(SOON) };
            let ring = self.source();
            let mut fds = [PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain(Instant::now() + PATIENCE);
        if self.count() == 0 {
            // The kernel frees a closed ring later. The file, and the lock on it, must not wait for that.
            let _ = self.ring.submitter().unregister_files();
        } else {
            // The kernel may write the buffers at any time, even after the ring is closed: they must stay mapped.
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
