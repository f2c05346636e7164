// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that serves the API: one poll loop over the listener and its connections.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::Connection;
use super::http::{Answer, Request};
use crate::sync::{Stop, Wake, look, readable};

/// The most connections at a time. If there are more, those make room that need it least.
const MAX_CONNECTIONS: usize = 64;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much is read at a time.
const READ_SIZE: usize = 16 << 10;

/// Answers requests.
pub(super) trait Handler {
    /// A request whose answer comes later.
    type Awaited;

    /// Answers a request, or promises to.
    fn handle(&mut self, request: Request<'_>) -> Result<Answer, Self::Awaited>;

    /// The answer that was promised, once it is there.
    fn take(&mut self, awaited: &mut Self::Awaited) -> Option<Answer>;
}

struct Client<H: Handler> {
    stream: UnixStream,
    connection: Connection<H>,
    /// When it last sent something.
    heard: Instant,
    is_gone: bool,
}

pub(super) struct Server<H: Handler> {
    listener: UnixListener,
    max_body: usize,
    handler: H,
    /// Signalled when an answer that was promised is there.
    wake: Arc<Wake>,
    clients: Vec<Client<H>>,
    buffer: Vec<u8>,
}

impl<H: Handler> Server<H> {
    /// A server for the clients of `listener`, which must not block. `wake` is signalled for promised answers.
    pub fn new(listener: UnixListener, max_body: usize, handler: H, wake: Arc<Wake>) -> Self {
        Server {
            listener,
            max_body,
            handler,
            wake,
            clients: Vec::new(),
            buffer: vec![0; READ_SIZE],
        }
    }

    /// Serves until `stop`. Answers that are there by then are sent, as far as clients read them.
    pub fn run(mut self, stop: &Stop) {
        while !stop.is_requested() {
            if let Some((clients, has_new)) = self.wait(stop) {
                self.wake.clear();
                // First, so that no request sees an older state than its answer.
                self.settle();
                for index in clients {
                    self.serve(index);
                }
                self.sweep();
                if has_new {
                    self.accept(stop);
                }
            }
        }
        self.settle();
    }

    /// Waits until something happens. Returns the clients of events, and whether a new one waits to be accepted.
    fn wait(&mut self, stop: &Stop) -> Option<(Vec<usize>, bool)> {
        let accepts = self.make_room();
        let listener = accepts.then(|| readable(&self.listener)).flatten();
        let waits = self.clients.iter().map(|client| {
            let flags = match &client.connection {
                connection if connection.wants_input() => PollFlags::IN,
                connection if connection.output().is_empty() => PollFlags::empty(),
                _ => PollFlags::OUT,
            };
            (client.stream.as_fd(), flags)
        });
        let deadlines = self.clients.iter().filter_map(|c| c.connection.deadline());
        let now = Instant::now();
        let timeout = deadlines.min().map(|at| at.saturating_duration_since(now));
        let fds = waits.chain(readable(&self.wake)).chain(listener);
        match stop.poll_all(fds, timeout) {
            Ok(events) => {
                let count = self.clients.len();
                let happened = |index: usize| events.get(index).is_some_and(|e| !e.is_empty());
                let clients = (0..count).filter(|index| happened(*index)).collect();
                Some((clients, happened(count + 1)))
            }
            Err(error) => {
                log::warn!("the API can't wait for its clients: {error}; it tries again");
                pause(stop);
                None
            }
        }
    }

    /// Sends the promised answers that are there.
    fn settle(&mut self) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.connection.is_waiting() {
                client.connection.settle(self.max_body, &mut self.handler);
                self.send(index);
            }
        }
    }

    /// Ends the connections of clients that are gone or too slow.
    fn sweep(&mut self) {
        let now = Instant::now();
        for client in &mut self.clients {
            client.connection.watch(now);
            client.send_now();
        }
        self.clients
            .retain(|client| !client.is_gone && !client.connection.is_over());
    }

    /// Whether there is room for a new connection. If the last place is taken, the connection that needs it least ends.
    fn make_room(&mut self) -> bool {
        if self.clients.len() < MAX_CONNECTIONS {
            return true;
        }
        // Only a client that waits there needs the place.
        if !has_input(&self.listener) {
            return true;
        }
        let clients = self.clients.iter().enumerate();
        let needs = clients.filter_map(|(index, client)| Some((client.need()?, index)));
        match needs.min() {
            Some((_, index)) => {
                self.clients.swap_remove(index);
                true
            }
            None => false,
        }
    }

    fn accept(&mut self, stop: &Stop) {
        if self.clients.len() >= MAX_CONNECTIONS {
            return;
        }
        let accepted = self.listener.accept();
        let ready = accepted.and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match ready {
            Ok(stream) => self.clients.push(Client {
                stream,
                connection: Connection::default(),
                heard: Instant::now(),
                is_gone: false,
            }),
            Err(error) if is_temporary(&error) => {}
            Err(error) => {
                log::warn!("the API can't accept a client: {error}; it tries again");
                pause(stop);
            }
        }
    }

    /// Reads what a client sent, or sends it more of its answers.
    fn serve(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let connection = &mut client.connection;
        if connection.wants_input() {
            match client.stream.read(&mut self.buffer) {
                Ok(0) => connection.end_input(self.max_body, &mut self.handler),
                Ok(count) => {
                    client.heard = Instant::now();
                    let bytes = &self.buffer[..count];
                    connection.receive(bytes, self.max_body, &mut self.handler);
                }
                Err(error) if is_temporary(&error) => {}
                Err(_) => client.is_gone = true,
            }
        } else if connection.is_waiting() && connection.output().is_empty() {
            // The only event that was waited for: its other end is closed.
            client.is_gone = true;
        }
        self.send(index);
    }

    /// Sends a client its answers, at once: the process may end with the request that was just handled.
    fn send(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while let Some(count @ 1..) = client.write() {
            let connection = &mut client.connection;
            connection.sent(count, self.max_body, &mut self.handler);
        }
    }
}

/// How much a client needs its place: those that are idle least, and for longest; then those that are slow; then those
/// that wait for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Idle(Instant),
    /// The time when it will have been too slow.
    Slow(Instant),
    Waiting(Instant),
}

impl<H: Handler> Client<H> {
    /// How much it needs its place. `None` if it has sent something, which is handled first.
    fn need(&self) -> Option<Need> {
        if self.connection.is_waiting() {
            return Some(Need::Waiting(self.heard));
        }
        if self.connection.wants_input() && has_input(&self.stream) {
            return None;
        }
        let slow = self.connection.deadline().map(Need::Slow);
        Some(slow.unwrap_or(Need::Idle(self.heard)))
    }

    /// Writes a part of the output, without waiting. Returns how much.
    fn write(&mut self) -> Option<usize> {
        if self.connection.output().is_empty() {
            return None;
        }
        // Without SIGPIPE, which Rust's runtime ignores.
        match self.stream.write(self.connection.output()) {
            Ok(count) => Some(count),
            Err(error) if is_temporary(&error) => None,
            Err(_) => {
                self.is_gone = true;
                None
            }
        }
    }

    /// Sends the last words to a client whose connection ends.
    fn send_now(&mut self) {
        if self.connection.is_expired() {
            self.write();
            self.is_gone = true;
        }
    }
}

/// Whether there is something to read or to accept.
fn has_input(fd: &impl AsFd) -> bool {
    look(fd, PollFlags::IN).is_some_and(|events| !events.is_empty())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

fn pause(stop: &Stop) {
    stop.poll([], Some(ACCEPT_PAUSE));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promises everything, and keeps nothing.
    struct Promises;

    impl Handler for Promises {
        type Awaited = ();

        fn handle(&mut self, _: Request<'_>) -> Result<Answer, ()> {
            Err(())
        }

        fn take(&mut self, (): &mut ()) -> Option<Answer> {
            None
        }
    }

    /// A server without a free place and with a client that needs one, and the other ends of its connections. The first
    /// is the oldest.
    fn full() -> (Server<Promises>, Vec<UnixStream>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let mut server = Server::new(listener, 100, Promises, wake);
        let mut others = vec![UnixStream::connect(&path).unwrap()];
        let now = Instant::now();
        for age in 0..MAX_CONNECTIONS {
            let (stream, other) = UnixStream::pair().unwrap();
            server.clients.push(Client {
                stream,
                connection: Connection::default(),
                heard: now + Duration::from_nanos(age as u64),
                is_gone: false,
            });
            others.push(other);
        }
        (server, others.split_off(1), dir)
    }

    fn is_closed(other: &UnixStream) -> bool {
        look(other, PollFlags::empty()).is_some_and(|events| !events.is_empty())
    }

    /// Waits until the server has closed a client. A program that another test starts has a copy of it for a moment.
    fn await_closed(other: &UnixStream) {
        while !is_closed(other) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_that_has_sent_something_keeps_its_place() {
        let (mut server, mut others, _dir) = full();
        others[0].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(server.make_room());
        await_closed(&others[1]);
        assert!(!is_closed(&others[0]));
    }

    #[test]
    fn nobody_makes_room_who_has_sent_something() {
        let (mut server, mut others, _dir) = full();
        for other in &mut others {
            other.write_all(b"G").unwrap();
        }
        assert!(!server.make_room());
        assert!(!others.iter().any(is_closed));
    }

    #[test]
    fn idle_clients_make_room_before_slow_ones_and_those_that_wait() {
        let (mut server, others, _dir) = full();
        let now = Instant::now();
        for (index, client) in server.clients.iter_mut().enumerate() {
            // The first one waits for the machine, the next one is idle, and the others have sent a part.
            let sent: &[u8] = match index {
                0 => b"GET / HTTP/1.1\r\n\r\n",
                1 => b"",
                _ => b"GET",
            };
            client.connection.receive(sent, 100, &mut server.handler);
            client
                .connection
                .watch(now + Duration::from_nanos(index as u64));
        }
        for next in [1, 2] {
            assert!(server.make_room());
            await_closed(&others[next]);
            let closed = others.iter().filter(|other| is_closed(other));
            assert_eq!(closed.count(), next);
            let (stream, _) = UnixStream::pair().unwrap();
            let mut connection = Connection::default();
            connection.receive(b"GET", 100, &mut server.handler);
            connection.watch(now + Duration::from_secs(1));
            server.clients.push(Client {
                stream,
                connection,
                heard: now,
                is_gone: false,
            });
        }
    }

    #[test]
    fn those_that_wait_for_the_machine_make_room_last() {
        let (mut server, others, _dir) = full();
        for client in &mut server.clients {
            let request = b"GET / HTTP/1.1\r\n\r\n";
            client.connection.receive(request, 100, &mut server.handler);
        }
        assert!(server.make_room());
        await_closed(&others[0]);
        assert!(!others[1..].iter().any(is_closed));
    }
}
