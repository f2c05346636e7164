// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console on a Unix socket: one client at a time, which first gets the latest output.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recv, send, socket_with,
};

use super::Error;
use super::input::{InputQueue, READ_AHEAD};
use super::output::{Output, Sink, append_newest};
use crate::sync::{Stop, Worker, lock, look, readable};

/// Output kept for the next client, in bytes.
const REPLAY: usize = 64 << 10;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a poll says of a client that hung up.
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);
const BUSY: &[u8] = b"mini-vmm: another client is attached to this console\r\n";

/// A listening socket at a path; the file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, replacing a socket that nobody listens on any more.
    fn listen(path: &Path) -> Result<(SocketFile, UnixListener), Error> {
        let failed = |source: io::Error| Error::Socket {
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        remove_stale(path, &address)?;
        let listener = stream_socket().map_err(failed)?;
        bind(&listener, &address).map_err(|error| failed(error.into()))?;
        let setup = || {
            // A console is a login: for the owner only, before anyone can connect.
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            let metadata = fs::symlink_metadata(path)?;
            listen(&listener, 4)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let id = setup().map_err(|error| {
            let _ = fs::remove_file(path);
            failed(error)
        })?;
        let file = SocketFile {
            path: path.to_owned(),
            id,
        };
        Ok((file, UnixListener::from(listener)))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: the console socket stays: {error}", self.path.display());
        }
    }
}

fn stream_socket() -> io::Result<rustix::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Removes a socket at `path` that nobody listens on; everything else that is there is an error.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Socket {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect(&stream_socket().map_err(failed)?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(Errno::ACCESS) => Err(failed(Errno::ACCESS.into())),
        // Connected, its queue is full, or it is of another type: somebody uses it.
        _ => Err(Error::SocketInUse(path.to_owned())),
    }
}

/// What the writer thread and the client thread share.
#[derive(Debug, Default)]
struct Shared {
    history: VecDeque<u8>,
    client: Option<Arc<UnixStream>>,
}

/// The writer's end: keeps history, and blocks only while a client is attached.
struct ClientSink(Arc<Mutex<Shared>>);

impl Sink for ClientSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = lock(&self.0);
        // One look decides whether a client gets these bytes now or, by attaching later, as history.
        let Some(client) = shared.client.clone() else {
            shared.remember(bytes);
            return Ok(bytes.len());
        };
        drop(shared);
        // Without the lock: this may block until the client reads, or is disconnected.
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
                // The client is gone; the bytes go to history next.
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

    /// Makes `stream` the client after it got the history; refuses it politely if there is one. Of
    /// the history it gets what its buffer has room for: the default, over 200 KiB, has room for all.
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
        let (file, listener) = SocketFile::listen(path)?;
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

/// The attached client, as the thread that reads from it sees it.
struct Client {
    stream: Arc<UnixStream>,
    /// Whether there may be more input from it.
    sends: bool,
}

impl Client {
    /// What to wait for.
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

/// Accepts clients and reads from the one that is attached, one after the other.
struct Server {
    listener: UnixListener,
    shared: Arc<Mutex<Shared>>,
    queue: Arc<InputQueue>,
    client: Option<Client>,
    /// Hung up before the guest had room for all that it sent.
    left: Option<Arc<UnixStream>>,
}

impl Server {
    fn serve(mut self, stop: &Stop) {
        while !stop.is_requested() {
            let room = self.queue.room();
            if let Some(stream) = self.left.as_ref().filter(|_| room > 0) {
                // Never waits: after a hang-up there is input, or its end.
                if !read_client(stream, &self.queue, room) {
                    self.left = None;
                }
                continue;
            }
            // A client that sent all it had (half-closed) still reads; it is gone on a hang-up. Without
            // room a hang-up, which can't be masked, would be reported over and over.
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

    /// What the poll said of the client.
    fn hear(&mut self, happened: PollFlags, room: usize) {
        let queue = &self.queue;
        let gone = self.client.take_if(|now| {
            now.sends = now.sends && read_client(&now.stream, queue, room);
            // What it sent before the hang-up comes first.
            !now.sends && happened.intersects(GONE)
        });
        if let Some(gone) = gone {
            lock(&self.shared).detach(&gone.stream);
        }
    }

    /// Whoever connects now comes after a client that hung up, and finds the console free.
    fn accept(&mut self, stop: &Stop) {
        if let Some(gone) = self.client.take_if(|now| now.has_hung_up()) {
            lock(&self.shared).detach(&gone.stream);
            if gone.sends {
                // One such rest is kept, the first.
                self.left.get_or_insert(gone.stream);
            }
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                // Listening does not block, but that is not inherited: the writer wants it so.
                if let Some(stream) = lock(&self.shared).attach(stream) {
                    let sends = true;
                    self.client = Some(Client { stream, sends });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of file descriptors, most likely: later, not at once again.
            Err(_) => {
                stop.poll([], Some(ACCEPT_PAUSE));
            }
        }
    }
}

/// Reads what there is room for; false once the client sends no more.
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
