// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Performs blocking operations with a few threads.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, SeekFrom, fallocate, fdatasync, fstat, seek};
use rustix::io::retry_on_intr;

use super::backend::{Backend, Done, Operation};
use crate::sys::{self, Buffers, Zero};

/// The most threads.
const THREADS: usize = 8;
/// How long a pool that is dropped waits for its threads.
const PATIENCE: Duration = Duration::from_secs(10);

/// A disk with blocking operations.
pub trait Blocking: Send + Sync + 'static {
    /// The current size in bytes.
    ///
    /// # Errors
    /// The host's failure.
    fn size(&self) -> io::Result<u64>;
    /// Fills buffers. Returns the number of bytes.
    ///
    /// # Errors
    /// The host's failure.
    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<usize>;
    /// Writes buffers. Returns the number of bytes.
    ///
    /// # Errors
    /// The host's failure.
    fn write(&self, offset: u64, buffers: &Buffers) -> io::Result<usize>;
    /// Writes completed data to stable storage.
    ///
    /// # Errors
    /// The host's failure.
    fn flush(&self) -> io::Result<()>;
    /// Discards blocks.
    ///
    /// # Errors
    /// The host's failure; `ErrorKind::Unsupported` or `InvalidInput` if it can't discard these.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Fills a range with zeros.
    ///
    /// # Errors
    /// The host's failure; `ErrorKind::Unsupported` or `InvalidInput` means: write zeros instead.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// The file that has what the guest wrote, if the disk is an overlay.
    fn overlay(&self) -> Option<&File> {
        None
    }
}

/// The size of a file or block device in bytes.
pub(crate) fn file_size(file: &File) -> io::Result<u64> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        // The file's position isn't used elsewhere.
        return Ok(seek(file, SeekFrom::End(0))?);
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

impl Blocking for File {
    fn size(&self) -> io::Result<u64> {
        file_size(self)
    }

    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<usize> {
        sys::read(self, offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &Buffers) -> io::Result<usize> {
        sys::write(self, offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| fdatasync(self))?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let zero = if unmap { Zero::Punch } else { Zero::Keep };
        Ok(retry_on_intr(|| {
            fallocate(self, zero.flags(), offset, len)
        })?)
    }
}

/// The state that the threads share.
struct Shared {
    disk: Arc<dyn Blocking>,
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(u32, Operation)>,
    done: Vec<Done>,
    threads: usize,
    /// The number of threads that perform an operation.
    busy: usize,
    closed: bool,
}

impl State {
    /// Fails the operations that wait for a thread.
    fn refuse(&mut self, why: &io::Error) {
        let refused = self.jobs.drain(..).map(|(token, operation)| Done {
            token,
            result: Err(why.kind().into()),
            buffers: match operation {
                Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => Some(buffers),
                _ => None,
            },
        });
        self.done.extend(refused);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a thread.
    fn live(&self) {
        self.serve();
        self.state().threads -= 1;
        self.ended.notify_all();
    }

    /// Performs operations.
    fn serve(&self) {
        let mut state = self.state();
        while !state.closed {
            let Some((token, operation)) = state.jobs.pop_front() else {
                let woken = self.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let done = catch_unwind(AssertUnwindSafe(|| perform(&*self.disk, token, operation)));
            // What panics is an image's code. Its request has an end, too.
            let done = done.unwrap_or_else(|_| Done {
                token,
                result: Err(io::Error::other("the image is damaged")),
                buffers: None,
            });
            state = self.state();
            state.busy -= 1;
            let rings = state.done.is_empty();
            state.done.push(done);
            if rings {
                let _ = retry_on_intr(|| rustix::io::write(&self.bell, &1_u64.to_ne_bytes()));
            }
        }
    }
}

fn perform(disk: &dyn Blocking, token: u32, operation: Operation) -> Done {
    let (result, buffers) = match operation {
        Operation::Read { offset, buffers } => (disk.read(offset, &buffers), Some(buffers)),
        Operation::Write { offset, buffers } => (disk.write(offset, &buffers), Some(buffers)),
        Operation::Flush => (disk.flush().map(|()| 0), None),
        Operation::Discard { offset, len } => (disk.discard(offset, len).map(|()| 0), None),
        Operation::WriteZeroes { offset, len, unmap } => {
            let zeroed = disk.write_zeroes(offset, len, unmap);
            (zeroed.map(|()| 0), None)
        }
    };
    Done {
        token,
        result,
        buffers,
    }
}

/// Threads that are started on demand, and stop on drop. A thread that hangs in the host keeps what it uses.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new(disk: Arc<dyn Blocking>) -> io::Result<Self> {
        let shared = Shared {
            disk,
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(Pool {
            shared: Arc::new(shared),
            threads: Vec::new(),
        })
    }
}

impl Backend for Pool {
    fn source(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    fn size(&self) -> io::Result<u64> {
        self.shared.disk.size()
    }

    fn push(&mut self, token: u32, operation: Operation) {
        self.shared.state().jobs.push_back((token, operation));
    }

    fn submit(&mut self) -> bool {
        let mut state = self.shared.state();
        while state.jobs.len() > state.threads - state.busy && state.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let made = thread::Builder::new()
                .name("disk".to_owned())
                .spawn(move || shared.live());
            match made {
                Ok(thread) => {
                    state.threads += 1;
                    self.threads.push(thread);
                }
                Err(error) if state.threads == 0 => state.refuse(&error),
                Err(_) => break,
            }
        }
        for _ in 0..state.jobs.len().min(state.threads) {
            self.shared.work.notify_one();
        }
        true
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut state = self.shared.state();
        if state.done.is_empty() {
            return;
        }
        done.append(&mut state.done);
        let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        self.shared.work.notify_all();
        let ends = self
            .shared
            .ended
            .wait_timeout_while(state, PATIENCE, |state| state.threads != 0);
        let (state, late) = ends.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if !late.timed_out() {
            // The image is closed and its lock gone when this returns.
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
