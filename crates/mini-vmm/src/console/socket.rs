// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console on a Unix socket: one client at a time, which first gets the latest output.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recv, send, socket_with,
};

use super::Error;
use super::input::{InputQueue, READ_AHEAD};
use super::output::{Output, Sink};
use super::worker::{Stop, Worker, readable};

/// Output kept for the next client, in bytes.
const REPLAY: usize = 64 << 10;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
        let kept = &bytes[bytes.len().saturating_sub(REPLAY)..];
        let excess = (self.history.len() + kept.len()).saturating_sub(REPLAY);
        self.history.drain(..excess);
        self.history.extend(kept);
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

    /// Makes `stream` the client after it got the history; refuses it politely if there is one.
    fn attach(&mut self, stream: UnixStream) -> Option<Arc<UnixStream>> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if self.client.is_some() {
            let _ = send(&stream, BUSY, flags);
            return None;
        }
        // A new stream has room for all of it (the default buffer is over 200 KiB).
        for part in [self.history.as_slices().0, self.history.as_slices().1] {
            if !part.is_empty() {
                send(&stream, part, flags).ok()?;
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
        let reader = Worker::spawn("console-in", move |stop| {
            serve(&listener, &shared, &queue, stop);
        })
        .map_err(Error::Start)?;
        Ok(Socket {
            file,
            output,
            reader,
        })
    }
}

/// Accepts clients and reads from the one that is attached, one after the other.
fn serve(listener: &UnixListener, shared: &Mutex<Shared>, queue: &InputQueue, stop: &Stop) {
    let mut client: Option<(Arc<UnixStream>, bool)> = None;
    while !stop.is_requested() {
        let room = queue.room();
        // A client that sent all it had (half-closed) still reads; it is gone on a hang-up.
        let watched = client.as_ref().map(|(stream, sends)| {
            let reads = *sends && room > 0;
            let input = if reads {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            (stream.as_fd(), input)
        });
        let more_room = if room == 0 {
            readable(queue.room_event())
        } else {
            None
        };
        let [connects, happened, _] = stop.poll([readable(listener), watched, more_room], None);
        if let Some((stream, sends)) = &mut client {
            if happened.intersects(PollFlags::IN) {
                *sends = read_client(stream, queue, room);
            }
            if happened.intersects(PollFlags::HUP | PollFlags::ERR) {
                if !happened.intersects(PollFlags::IN) || !*sends {
                    lock(shared).detach(stream);
                    client = None;
                }
                // Whoever connects now comes after it, and finds the console free.
                continue;
            }
        }
        if !connects.is_empty() {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Listening does not block, but that is not inherited: the writer wants it so.
                    if let Some(attached) = lock(shared).attach(stream) {
                        client = Some((attached, true));
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
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixDatagram;
    use std::thread;
    use std::time::Instant;

    struct Fixture {
        socket: Socket,
        path: PathBuf,
        queue: Arc<InputQueue>,
        _dir: tempfile::TempDir,
    }

    fn open() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let queue = Arc::new(InputQueue::new().unwrap());
        Fixture {
            socket: Socket::open(&path, &queue).unwrap(),
            path,
            queue,
            _dir: dir,
        }
    }

    fn listen_error(path: &Path) -> Error {
        SocketFile::listen(path).map(|_| ()).unwrap_err()
    }

    fn read_until(client: &mut UnixStream, end: &str) -> String {
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let mut byte = [0];
            assert_eq!(client.read(&mut byte).unwrap(), 1, "{text:?}");
            text.extend(byte);
        }
        String::from_utf8(text).unwrap()
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "it never happened");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn recent_output_is_replayed_and_then_goes_on() {
        let fixture = open();
        let mut output = fixture.socket.output.handle();
        output.write_all(b"early\n").unwrap();
        thread::sleep(Duration::from_millis(20));
        for _ in 0..2 {
            let mut client = UnixStream::connect(&fixture.path).unwrap();
            assert!(read_until(&mut client, "early\n").starts_with("early\n"));
        }
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        read_until(&mut client, "early\n");
        output.write_all(b"late\n").unwrap();
        assert_eq!(read_until(&mut client, "late\n"), "late\n");
    }

    #[test]
    fn history_is_the_newest_64_kib() {
        let mut shared = Shared::default();
        for i in 0..20_000u32 {
            shared.remember(format!("{i:05}\n").as_bytes());
        }
        assert_eq!(shared.history.len(), REPLAY);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        shared.attach(ours).unwrap();
        shared.detach(&shared.client.clone().unwrap());
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), REPLAY);
        assert!(text.ends_with("19999\n"));
    }

    #[test]
    fn second_client_is_refused_and_may_come_later() {
        let fixture = open();
        let mut first = UnixStream::connect(&fixture.path).unwrap();
        first.write_all(b"1").unwrap();
        wait_for(|| fixture.queue.room() == READ_AHEAD - 1);
        let mut second = UnixStream::connect(&fixture.path).unwrap();
        let mut text = Vec::new();
        second.read_to_end(&mut text).unwrap();
        assert_eq!(text, BUSY);
        drop(first);
        let mut third = UnixStream::connect(&fixture.path).unwrap();
        third.write_all(b"3").unwrap();
        wait_for(|| fixture.queue.room() == READ_AHEAD - 2);
    }

    #[test]
    fn half_closed_client_still_reads() {
        let fixture = open();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        client.write_all(b"x").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        wait_for(|| fixture.queue.room() == READ_AHEAD - 1);
        thread::sleep(Duration::from_millis(20));
        fixture
            .socket
            .output
            .handle()
            .write_all(b"answer\n")
            .unwrap();
        assert_eq!(read_until(&mut client, "\n"), "answer\n");
    }

    #[test]
    fn client_can_leave_while_the_guest_reads_nothing() {
        let fixture = open();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        client.write_all(&[b'x'; 3 * READ_AHEAD]).unwrap();
        wait_for(|| fixture.queue.room() == 0);
        drop(client);
        fixture.socket.output.handle().write_all(b"hung\n").unwrap();
        wait_for(|| {
            let mut client = UnixStream::connect(&fixture.path).unwrap();
            client
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            let mut text = [0; 5];
            client.read_exact(&mut text).is_ok() && text == *b"hung\n"
        });
    }

    #[test]
    fn client_that_does_not_read_is_left_after_a_while() {
        let fixture = open();
        let client = UnixStream::connect(&fixture.path).unwrap();
        let output = fixture.socket.output.handle();
        thread::spawn({
            let mut output = output.clone();
            move || output.write_all(&[b'x'; 1 << 20]).unwrap()
        })
        .join()
        .unwrap();
        thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        drop(fixture);
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(client);
    }

    #[test]
    fn file_is_private_and_goes_with_the_console() {
        let fixture = open();
        let metadata = fs::symlink_metadata(&fixture.path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        let Fixture { socket, path, .. } = fixture;
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn replaced_file_is_left_alone() {
        let Fixture {
            socket,
            path,
            _dir: dir,
            ..
        } = open();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "someone else's").unwrap();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "someone else's");
        drop(dir);
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_error(&path), Error::NotASocket(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let alive = UnixListener::bind(&path).unwrap();
        assert!(matches!(listen_error(&path), Error::SocketInUse(_)));
        drop(alive);
        assert!(path.exists(), "the socket of a process that died");
        let (file, _listener) = SocketFile::listen(&path).unwrap();
        drop(file);

        let _datagram = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(listen_error(&path), Error::SocketInUse(_)));
    }

    #[test]
    fn bad_paths_are_errors() {
        let long = "x".repeat(200);
        for path in ["/nonexistent/console", "/proc/console", "", &long] {
            let text = listen_error(Path::new(path)).to_string();
            assert!(text.contains("choose another path"), "{text}");
        }
    }
}
