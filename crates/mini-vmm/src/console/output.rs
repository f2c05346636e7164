// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Console output: a bounded queue that vCPUs fill without waiting, and a thread that writes it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_models::rate::{Bucket, Limit};

use crate::sync::{Stop, Worker, lock, unpoisoned};

/// The most bytes of output that wait for the reader. Then the oldest is dropped, since the newest explains a crash.
const CAPACITY: usize = 1 << 20;
/// The most bytes of one write. A pipe takes this many at once (PIPE_BUF), so progress shows soon.
const CHUNK: usize = 4096;
/// How long the first byte waits for more. Otherwise each byte of a guest that writes single bytes would cost a thread
/// switch and a system call.
const LINGER: Duration = Duration::from_millis(1);
/// How long to wait at the end for the last output to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// The most time without progress.
    idle: Duration,
    /// The most time in total: a slow reader could make progress for hours.
    total: Duration,
}

impl Drain {
    /// After the guest ended by itself.
    pub(super) const PATIENT: Drain = Drain {
        idle: Duration::from_secs(2),
        total: Duration::from_secs(10),
    };
    /// After a request to end.
    pub(super) const SOON: Drain = Drain {
        idle: Duration::from_millis(200),
        total: Duration::from_millis(200),
    };
}

/// Where the writer thread writes to. Blocking.
pub(super) trait Sink: Send {
    /// Writes some of `bytes`, at least one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Called after the last write. Waits briefly, at most until `stop`, so that the sink's close loses nothing.
    fn finish(&mut self, _stop: &Stop) {}
}

/// A pipe, file or terminal.
#[derive(Debug)]
pub(super) struct FdSink(pub(super) OwnedFd);

impl Sink for FdSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(&self.0, bytes) {
            // Another process made our standard output non-blocking: wait for space.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                Err(io::ErrorKind::Interrupted.into())
            }
            result => Ok(result?),
        }
    }
}

/// Appends `bytes`, then keeps only the newest `capacity` bytes. Returns how many were dropped.
pub(super) fn append_newest(queue: &mut VecDeque<u8>, bytes: &[u8], capacity: usize) -> usize {
    let kept = &bytes[bytes.len().saturating_sub(capacity)..];
    let excess = (queue.len() + kept.len()).saturating_sub(capacity);
    queue.drain(..excess);
    queue.extend(kept);
    excess + bytes.len() - kept.len()
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Bytes dropped since the last note.
    dropped: u64,
    limit: Option<Limited>,
    /// Whether the writer sleeps until there is work.
    writer_waits: bool,
    /// Bytes written so far, to detect progress at the end.
    written: u64,
    /// No more output comes. The writer writes the rest and ends.
    closing: bool,
    /// Nothing is written any more: the reader is gone or the console is closed.
    dead: bool,
}

/// The limit of a guest's output.
#[derive(Debug)]
struct Limited {
    bucket: Bucket,
    start: Instant,
    /// Bytes that were too many.
    dropped: u64,
}

impl Limited {
    /// How many of `bytes` bytes are not too many. The rest is counted.
    fn allow(&mut self, bytes: usize) -> usize {
        let now = self.start.elapsed();
        self.allow_at(bytes, now)
    }

    fn allow_at(&mut self, bytes: usize, now: Duration) -> usize {
        let mut allowed = 0;
        while allowed < bytes && self.bucket.wait(now).is_none() {
            self.bucket.take(1);
            allowed += 1;
        }
        self.dropped += (bytes - allowed) as u64;
        allowed
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the writer: there is output, or the end.
    work: Condvar,
    /// Wakes `close`: something was written, or the writer has ended.
    progress: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn wake_writer(&self, queue: &mut Queue) {
        if std::mem::take(&mut queue.writer_waits) {
            self.work.notify_one();
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        if queue.dead {
            return;
        }
        let allowed = match &mut queue.limit {
            Some(limit) => limit.allow(bytes.len()),
            None => bytes.len(),
        };
        let bytes = &bytes[..allowed];
        queue.dropped += append_newest(&mut queue.bytes, bytes, CAPACITY) as u64;
        self.wake_writer(&mut queue);
    }

    /// Waits for output and moves some of it to `chunk`. Returns false at the end.
    fn next(&self, chunk: &mut Vec<u8>) -> bool {
        let mut queue = self.lock();
        while queue.bytes.is_empty() {
            if queue.closing {
                return false;
            }
            queue.writer_waits = true;
            queue = unpoisoned(self.work.wait(queue));
            if !queue.closing && queue.bytes.len() < CHUNK {
                queue = unpoisoned(self.work.wait_timeout(queue, LINGER)).0;
            }
        }
        chunk.clear();
        let dropped = std::mem::take(&mut queue.dropped);
        if dropped > 0 {
            // Writing to a Vec can't fail.
            let _ = write!(
                chunk,
                "\r\n[mini-vmm: the reader is too slow, {dropped} bytes of output were dropped]\r\n"
            );
        }
        let take = queue.bytes.len().min(CHUNK);
        chunk.extend(queue.bytes.drain(..take));
        true
    }

    fn advance(&self, written: usize) {
        let mut queue = self.lock();
        queue.written += written as u64;
        if queue.closing {
            self.progress.notify_all();
        }
    }

    /// Discards all output from now on. Returns the number of queued bytes that are lost.
    fn kill(&self) -> usize {
        let mut queue = self.lock();
        queue.dead = true;
        self.progress.notify_all();
        std::mem::take(&mut queue.bytes).len()
    }
}

/// Ends an unfinished last line of the guest, since something else is printed next.
pub(super) struct WholeLines<S> {
    sink: S,
    within_line: bool,
}

impl<S> WholeLines<S> {
    pub(super) fn new(sink: S) -> Self {
        WholeLines {
            sink,
            within_line: false,
        }
    }
}

impl<S: Sink> Sink for WholeLines<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        if let Some(last) = bytes[..count].last() {
            self.within_line = *last != b'\n';
        }
        Ok(count)
    }

    fn finish(&mut self, stop: &Stop) {
        if self.within_line {
            // Fails only if the reader is gone.
            let _ = self.sink.write(b"\n");
        }
        self.sink.finish(stop);
    }
}

/// The body of the writer thread.
fn write_out(shared: &Shared, sink: &mut dyn Sink, stop: &Stop) {
    let mut chunk = Vec::with_capacity(2 * CHUNK);
    while shared.next(&mut chunk) {
        let mut rest = chunk.as_slice();
        while !rest.is_empty() && !stop.is_requested() {
            let result = match sink.write(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                result => result,
            };
            match result {
                Ok(count) => {
                    rest = &rest[count..];
                    shared.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !shared.lock().closing {
                        log::warn!(
                            "the console can't be written any more, the guest's output is discarded: {error}"
                        );
                    }
                    return;
                }
            }
        }
        if stop.is_requested() {
            return;
        }
    }
    if !shared.lock().dead {
        sink.finish(stop);
    }
}

/// Discards all output once the writer ends, also by a panic: nobody waits for it then.
struct Kill<'a>(&'a Shared);

impl Drop for Kill<'_> {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// The owner of the queue and its thread.
pub(super) struct Output {
    shared: Arc<Shared>,
    writer: Worker,
    has_reader: Option<Box<dyn FnOnce() -> bool + Send>>,
}

impl Output {
    /// Starts a thread that writes to `sink`.
    pub(super) fn start(mut sink: impl Sink + 'static) -> io::Result<Output> {
        let shared = Arc::new(Shared::default());
        let for_writer = Arc::clone(&shared);
        let writer = Worker::spawn("console-out", move |stop| {
            let _ends = Kill(&for_writer);
            write_out(&for_writer, &mut sink, stop);
        })?;
        Ok(Output {
            shared,
            writer,
            has_reader: None,
        })
    }

    /// Makes [`close`](Self::close) call `has_reader` first. If it returns false, `close` doesn't wait for the rest of
    /// the output.
    pub(super) fn with_reader_check(
        mut self,
        has_reader: impl FnOnce() -> bool + Send + 'static,
    ) -> Output {
        self.has_reader = Some(Box::new(has_reader));
        self
    }

    /// A handle that writes to the queue.
    pub(super) fn handle(&self) -> ConsoleOutput {
        ConsoleOutput(Arc::clone(&self.shared))
    }

    /// Writes what is queued, as long as `drain` allows, and ends the thread.
    pub(super) fn close(&mut self, drain: Drain) {
        let has_reader = self.has_reader.take().is_none_or(|ask| ask());
        let mut queue = self.shared.lock();
        queue.closing = true;
        self.shared.wake_writer(&mut queue);
        let mut now = Instant::now();
        let (end, mut last_progress) = (now + drain.total, now);
        while has_reader && !queue.dead {
            let left = end.min(last_progress + drain.idle) - now;
            if left.is_zero() {
                break;
            }
            let before = queue.written;
            queue = unpoisoned(self.shared.progress.wait_timeout(queue, left)).0;
            now = Instant::now();
            if queue.written != before {
                last_progress = now;
            }
        }
        drop(queue);
        let lost = self.shared.kill();
        if has_reader && lost > 0 {
            log::warn!(
                "the console's reader did not keep up: the last {lost} bytes of output were not written"
            );
        }
        self.writer.stop();
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close(Drain::PATIENT);
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

/// Where a serial device writes to. Writing never blocks and never fails. If the reader is too slow or gone, output is
/// dropped. Clones share one queue.
#[derive(Clone, Debug)]
pub struct ConsoleOutput(Arc<Shared>);

impl ConsoleOutput {
    /// An output without a reader.
    pub(crate) fn discard() -> Self {
        let shared = Arc::new(Shared::default());
        shared.kill();
        ConsoleOutput(shared)
    }

    /// Drops what is more than `limit`, without a note in the output: that is counted only.
    pub(super) fn limit(&self, limit: Option<Limit>) {
        self.0.lock().limit = limit.map(|limit| Limited {
            bucket: Bucket::new(limit, Duration::ZERO),
            start: Instant::now(),
            dropped: 0,
        });
    }

    /// How many bytes were more than the limit.
    pub(crate) fn limited(&self) -> u64 {
        let queue = self.0.lock();
        queue.limit.as_ref().map_or(0, |limit| limit.dropped)
    }

    /// Queues `bytes`. If the queue is full, drops the oldest.
    pub(crate) fn put(&self, bytes: &[u8]) {
        self.0.push(bytes);
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    /// Does nothing: the console's thread writes soon, at the latest in [`super::Console::close`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
