// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console on a Unix socket: one client at a time. A new client first gets the latest output.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::Error;
use super::input::{InputQueue, READ_AHEAD};
use super::output::{Output, Sink, append_newest};
use crate::socket_file::SocketFile;
use crate::sync::{Stop, Worker, lock, look, readable};

/// The most bytes of output kept for the next client.
const REPLAY: usize = 64 << 10;
/// How many clients can wait to be told that the console is taken.
const BACKLOG: i32 = 4;
/// How long to wait after accepting a connection failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What poll reports after a client hung up.
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);
const BUSY: &[u8] = b"mini-vmm: another client is attached to this console\r\n";

/// Listens at `path`. Replaces a socket that is no longer in use.
fn listen(path: &Path) -> Result<(SocketFile, UnixListener), Error> {
    Ok(SocketFile::replace(path, BACKLOG).map_err(|error| error.of("console", path))?)
}

/// The state shared by the writer thread and the client thread.
#[derive(Debug, Default)]
struct Shared {
    history: VecDeque<u8>,
    client: Option<Arc<UnixStream>>,
}

/// The sink of the writer thread. It keeps history, and blocks only while a client is attached.
struct ClientSink(Arc<Mutex<Shared>>);

impl Sink for ClientSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = lock(&self.0);
        // Decided under one lock: a client gets these bytes either now, or as history when it attaches later.
        let Some(client) = shared.client.clone() else {
            shared.remember(bytes);
            return Ok(bytes.len());
        };
        drop(shared);
        // Without the lock, since this may block until the client reads or is disconnected.
        let sent = match send(&*client, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => return Err(io::ErrorKind::Interrupted.into()),
            sent => sent,
        };
        let mut shared = lock(&self.0);
        match sent {
            Ok(count) => {
                shared.remember(&bytes[..count]);
                Ok(count)
            }
            Err(_) => {
                // The client is gone; the bytes then go to the history.
                shared.detach(&client);
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    }
}

impl Shared {
    fn remember(&mut self, bytes: &[u8]) {
        append_newest(&mut self.history, bytes, REPLAY);
    }

    fn detach(&mut self, client: &Arc<UnixStream>) {
        if self
            .client
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, client))
        {
            self.client = None;
        }
        // Wakes a writer that is blocked on it.
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Sends the history to `stream` and makes it the client. If there already is a client, tells it so and refuses it.
    /// Of the history it gets what its buffer holds. The default, over 200 KiB, holds all.
    fn attach(&mut self, stream: UnixStream) -> Option<Arc<UnixStream>> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if self.client.is_some() {
            let _ = send(&stream, BUSY, flags);
            return None;
        }
        let mut history: &[u8] = self.history.make_contiguous();
        while !history.is_empty() {
            match send(&stream, history, flags) {
                Ok(count) => history = &history[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return None,
            }
        }
        let client = Arc::new(stream);
        self.client = Some(Arc::clone(&client));
        Some(client)
    }
}

/// A socket console with its threads.
pub(super) struct Socket {
    pub(super) file: SocketFile,
    pub(super) output: Output,
    pub(super) reader: Worker,
}

impl Socket {
    /// Listens at `path`.
    pub(super) fn open(path: &Path, queue: &Arc<InputQueue>) -> Result<Socket, Error> {
        let (file, listener) = listen(path)?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let output = Output::start(ClientSink(Arc::clone(&shared))).map_err(Error::Start)?;
        let queue = Arc::clone(queue);
        let server = Server {
            listener,
            shared,
            queue,
            client: None,
            left: None,
        };
        let reader =
            Worker::spawn("console-in", move |stop| server.serve(stop)).map_err(Error::Start)?;
        Ok(Socket {
            file,
            output,
            reader,
        })
    }
}

/// The attached client, as the client thread sees it.
struct Client {
    stream: Arc<UnixStream>,
    /// Whether it may send more input.
    sends: bool,
}

impl Client {
    /// The events to poll for.
    fn watched(&self) -> (BorrowedFd<'_>, PollFlags) {
        let input = if self.sends {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        (self.stream.as_fd(), input)
    }

    fn has_hung_up(&self) -> bool {
        look(&self.stream, PollFlags::empty()).is_some_and(|now| now.intersects(GONE))
    }
}

/// Accepts clients one after the other, and reads from the attached one.
struct Server {
    listener: UnixListener,
    shared: Arc<Mutex<Shared>>,
    queue: Arc<InputQueue>,
    client: Option<Client>,
    /// A client that hung up before all its input fitted into the queue.
    left: Option<Arc<UnixStream>>,
}

impl Server {
    fn serve(mut self, stop: &Stop) {
        while !stop.is_requested() {
            let room = self.queue.room();
            if let Some(stream) = self.left.as_ref().filter(|_| room > 0) {
                // Doesn't block: after a hang-up there is input or end of file.
                if !read_client(stream, &self.queue, room) {
                    self.left = None;
                }
                continue;
            }
            // A half-closed client still reads; it is gone on a hang-up. If the queue is full, don't poll it: poll
            // can't mask hang-ups and would return at once each time.
            let client = self.client.as_ref();
            let watched = client.filter(|client| room > 0 || !client.sends);
            let more_room = (room == 0).then_some(self.queue.room_event());
            let [connects, happened, _] = stop.poll(
                [
                    readable(&self.listener),
                    watched.map(Client::watched),
                    more_room.and_then(readable),
                ],
                None,
            );
            if !happened.is_empty() {
                self.hear(happened, room);
            }
            if !connects.is_empty() {
                self.accept(stop);
            }
        }
    }

    /// Handles the poll result of the client.
    fn hear(&mut self, happened: PollFlags, room: usize) {
        let queue = &self.queue;
        let gone = self.client.take_if(|now| {
            now.sends = now.sends && read_client(&now.stream, queue, room);
            // The input before the hang-up comes first.
            !now.sends && happened.intersects(GONE)
        });
        if let Some(gone) = gone {
            lock(&self.shared).detach(&gone.stream);
        }
    }

    /// Accepts the next client. If the old one has hung up, the console is free.
    fn accept(&mut self, stop: &Stop) {
        if let Some(gone) = self.client.take_if(|now| now.has_hung_up()) {
            lock(&self.shared).detach(&gone.stream);
            if gone.sends {
                // At most one such client is kept, the first.
                self.left.get_or_insert(gone.stream);
            }
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                // The listening socket's non-blocking mode is not inherited, so this blocks, as the writer needs.
                if let Some(stream) = lock(&self.shared).attach(stream) {
                    let sends = true;
                    self.client = Some(Client { stream, sends });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Probably out of file descriptors: retry later.
            Err(_) => {
                stop.poll([], Some(ACCEPT_PAUSE));
            }
        }
    }
}

/// Reads as much as fits. Returns false if the client sends no more.
fn read_client(stream: &UnixStream, queue: &InputQueue, room: usize) -> bool {
    let mut buffer = [0; READ_AHEAD];
    match recv(stream, &mut buffer[..room], RecvFlags::DONTWAIT) {
        Ok((_, 0)) => false,
        Ok((_, count)) => {
            queue.push(&buffer[..count]);
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
