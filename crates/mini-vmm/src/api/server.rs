// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that serves the API: one poll loop over the listener and its connections.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::Connection;
use super::http::{Answer, Request};
use crate::sync::{Stop, readable};

/// The most connections at a time. If there are more, those that wait for nothing make room.
const MAX_CONNECTIONS: usize = 64;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much is read at a time.
const READ_SIZE: usize = 16 << 10;

/// Answers requests.
pub(super) trait Handler {
    fn handle(&mut self, request: Request<'_>) -> Answer;
}

struct Client {
    stream: UnixStream,
    connection: Connection,
    /// When it last sent something.
    heard: Instant,
    is_gone: bool,
}

pub(super) struct Server<H> {
    listener: UnixListener,
    max_body: usize,
    handler: H,
    clients: Vec<Client>,
    buffer: Vec<u8>,
}

impl<H: Handler> Server<H> {
    /// A server for the clients of `listener`, which must not block.
    pub fn new(listener: UnixListener, max_body: usize, handler: H) -> Self {
        Server {
            listener,
            max_body,
            handler,
            clients: Vec::new(),
            buffer: vec![0; READ_SIZE],
        }
    }

    /// Serves until `stop`. Answers that are not sent by then are lost.
    pub fn run(mut self, stop: &Stop) {
        while !stop.is_requested() {
            let accepts = self.make_room();
            let listener = accepts.then(|| readable(&self.listener)).flatten();
            let waits = self.clients.iter().map(|client| {
                let flags = match client.connection.wants_input() {
                    true => PollFlags::IN,
                    false => PollFlags::OUT,
                };
                (std::os::fd::AsFd::as_fd(&client.stream), flags)
            });
            let deadlines = self.clients.iter().filter_map(|c| c.connection.deadline());
            let now = Instant::now();
            let timeout = deadlines.min().map(|at| at.saturating_duration_since(now));
            let events = match stop.poll_all(waits.chain(listener), timeout) {
                Ok(events) => events,
                Err(error) => {
                    log::warn!("the API can't wait for its clients: {error}; it tries again");
                    pause(stop);
                    continue;
                }
            };
            let now = Instant::now();
            let count = self.clients.len();
            for (index, _) in events
                .iter()
                .enumerate()
                .take(count)
                .filter(|(_, e)| !e.is_empty())
            {
                self.serve(index, now);
            }
            for client in &mut self.clients {
                client.connection.expire(now);
                client.send_now();
            }
            self.clients
                .retain(|client| !client.is_gone && !client.connection.is_over());
            if events.get(count).is_some_and(|event| !event.is_empty()) {
                self.accept(stop, now);
            }
        }
    }

    /// Whether there is room for a new connection. If the last place is taken, the connection that has been idle for
    /// longest ends.
    fn make_room(&mut self) -> bool {
        if self.clients.len() < MAX_CONNECTIONS {
            return true;
        }
        // Only a client that waits there needs the place.
        let waiting = crate::sync::look(&self.listener, PollFlags::IN);
        if waiting.is_none_or(|events| events.is_empty()) {
            return true;
        }
        let idle = self.clients.iter().enumerate();
        let idle = idle.filter(|(_, client)| client.connection.deadline().is_none());
        match idle.min_by_key(|(_, client)| client.heard) {
            Some((index, _)) => {
                self.clients.swap_remove(index);
                true
            }
            None => false,
        }
    }

    fn accept(&mut self, stop: &Stop, now: Instant) {
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
                heard: now,
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
    fn serve(&mut self, index: usize, now: Instant) {
        let client = &mut self.clients[index];
        let handler = &mut self.handler;
        let handle = &mut |request: Request<'_>| handler.handle(request);
        if client.connection.wants_input() {
            match client.stream.read(&mut self.buffer) {
                Ok(0) => client.connection.end_input(self.max_body, now, handle),
                Ok(count) => {
                    client.heard = now;
                    let bytes = &self.buffer[..count];
                    client.connection.receive(bytes, self.max_body, now, handle);
                }
                Err(error) if is_temporary(&error) => {}
                Err(_) => client.is_gone = true,
            }
        }
        // At once: the process may end with the request that was just handled.
        while let Some(count @ 1..) = client.write() {
            client.connection.sent(count, self.max_body, now, handle);
        }
    }
}

impl Client {
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

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

fn pause(stop: &Stop) {
    stop.poll([], Some(ACCEPT_PAUSE));
}
