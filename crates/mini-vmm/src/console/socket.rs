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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

/// Accepts clients and reads from the one that is attached, one after the other.
fn serve(listener: &UnixListener, shared: &Mutex<Shared>, queue: &InputQueue, stop: &Stop) {
    let mut client: Option<Client> = None;
    // Hung up before the guest had room for all that it sent.
    let mut left: Option<Arc<UnixStream>> = None;
    while !stop.is_requested() {
        let room = queue.room();
        if let Some(stream) = left.as_ref().filter(|_| room > 0) {
            // Never waits: after a hang-up there is input, or its end.
            if !read_client(stream, queue, room) {
                left = None;
            }
            continue;
        }
        // A client that sent all it had (half-closed) still reads; it is gone on a hang-up. Without
        // room a hang-up, which can't be masked, would be reported over and over.
        let watched = client
            .as_ref()
            .filter(|client| room > 0 || !client.sends)
            .map(Client::watched);
        let more_room = if room == 0 {
            readable(queue.room_event())
        } else {
            None
        };
        let [connects, happened, _] = stop.poll([readable(listener), watched, more_room], None);
        if let Some(now) = client.as_mut().filter(|_| !happened.is_empty()) {
            now.sends = now.sends && read_client(&now.stream, queue, room);
            // What it sent before the hang-up comes first.
            if !now.sends && happened.intersects(PollFlags::HUP | PollFlags::ERR) {
                lock(shared).detach(&now.stream);
                client = None;
            }
        }
        if !connects.is_empty() {
            // Whoever connects now comes after a client that hung up, and finds the console free.
            if let Some(gone) = client.take_if(|now| now.has_hung_up()) {
                lock(shared).detach(&gone.stream);
                if gone.sends {
                    // One such rest is kept, the first.
                    left.get_or_insert(gone.stream);
                }
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    // Listening does not block, but that is not inherited: the writer wants it so.
                    if let Some(attached) = lock(shared).attach(stream) {
                        client = Some(Client {
                            stream: attached,
                            sends: true,
                        });
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
    use super::super::InputTarget;
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

    /// Takes 64 bytes of every other offer.
    struct SlowGuest {
        received: Mutex<(Vec<u8>, bool)>,
        room: vmm_sys_util::eventfd::EventFd,
    }

    impl InputTarget for SlowGuest {
        fn enqueue(&self, bytes: &[u8]) -> usize {
            let mut received = self.received.lock().unwrap();
            received.1 = !received.1;
            if !received.1 {
                return 0;
            }
            received.0.extend(bytes);
            bytes.len()
        }

        fn input_room(&self) -> &vmm_sys_util::eventfd::EventFd {
            &self.room
        }
    }

    #[test]
    fn input_of_a_client_that_left_arrives_whole() {
        let fixture = open();
        let sent: Vec<u8> = (0..64u32 << 10).map(|i| (i % 251) as u8).collect();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        client.write_all(&sent).unwrap();
        drop(client);
        wait_for(|| fixture.queue.room() == 0);
        // The next one finds the console free, and its input comes after.
        let mut next = UnixStream::connect(&fixture.path).unwrap();
        next.write_all(b"next").unwrap();
        let guest = SlowGuest {
            received: Mutex::default(),
            room: vmm_sys_util::eventfd::EventFd::new(0).unwrap(),
        };
        wait_for(|| {
            fixture.queue.pump(&guest);
            guest.received.lock().unwrap().0.len() >= sent.len() + 4
        });
        let received = std::mem::take(&mut guest.received.lock().unwrap().0);
        assert!(received[..sent.len()] == sent);
        assert_eq!(received[sent.len()..], *b"next");
    }

    #[test]
    fn client_with_a_small_buffer_gets_what_fits() {
        let mut shared = Shared::default();
        shared.remember(&[b'x'; REPLAY]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
        let client = shared.attach(ours).expect("attached all the same");
        shared.detach(&client);
        let mut text = Vec::new();
        (&theirs).read_to_end(&mut text).unwrap();
        assert!(!text.is_empty() && text.len() < REPLAY, "{}", text.len());
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
