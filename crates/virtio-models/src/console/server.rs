// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A listening Unix socket as a peer.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use virtio_transport::device::Interest;

use super::peer::{Peer, Sources, would_block};

/// One client at a time. The others wait in the listener's queue.
///
/// - While there is no client, the guest's data waits, and the guest is told that the port is closed.
/// - What a client has sent before it went reaches the guest, before the next client is accepted.
/// - A client that only ends its own direction still receives.
pub struct Server {
    listener: UnixListener,
    client: Option<Client>,
    /// A descriptor to give up when the process has none left. Otherwise a client that can't be accepted would be there
    /// for ever.
    reserve: Option<OwnedFd>,
    _kept: Option<Box<dyn Any + Send>>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    sends: bool,
    receives: bool,
}

impl Server {
    /// For a listener.
    ///
    /// # Errors
    /// The listener can't be set to not block.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Server {
            reserve: Some(listener.as_fd().try_clone_to_owned()?),
            listener,
            client: None,
            _kept: None,
        })
    }

    /// Keeps something, such as the socket's file, until the server is dropped.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }

    fn accept(&mut self) -> Option<Client> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = retry_on_intr(|| accept_with(&self.listener, flags));
        if matches!(accepted, Err(Errno::MFILE | Errno::NFILE)) {
            self.reserve = None;
            drop(accept_with(&self.listener, flags));
            self.reserve = self.listener.as_fd().try_clone_to_owned().ok();
        }
        Some(Client {
            socket: accepted.ok()?,
            sends: true,
            receives: true,
        })
    }
}

impl Client {
    /// Whether it closed its socket, or can't be reached.
    fn has_hung_up(&self) -> bool {
        let mut source = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut source, Some(&Timespec::default())).is_ok_and(|ready| ready != 0)
    }

    const fn is_gone(&self) -> bool {
        !self.sends && !self.receives
    }
}

impl Peer for Server {
    fn is_open(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.is_gone())
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(client) = self.client.as_mut().filter(|client| client.sends) else {
            return Ok(0);
        };
        let received = retry_on_intr(|| recv(&client.socket, &mut *bytes, RecvFlags::DONTWAIT));
        match received {
            Ok((_, len @ 1..)) => Ok(len),
            Err(Errno::AGAIN) => would_block(),
            _ => {
                client.sends = false;
                client.receives &= !client.has_hung_up();
                Ok(0)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = self.client.as_mut().filter(|client| client.receives) else {
            return would_block();
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match retry_on_intr(|| send(&client.socket, bytes, flags)) {
            Ok(len @ 1..) => return Ok(len),
            Err(Errno::AGAIN) => {}
            _ => client.receives = false,
        }
        would_block()
    }

    fn sources(&self) -> Sources<'_> {
        let interest = |readable| Interest {
            readable,
            writable: false,
        };
        let Some(client) = &self.client else {
            return Sources {
                other: Some((self.listener.as_fd(), interest(true))),
                ..Sources::default()
            };
        };
        // Its hang-up is always reported.
        let other = (client.socket.as_fd(), interest(false));
        Sources {
            input: client.sends.then(|| client.socket.as_fd()),
            output: client.receives.then(|| client.socket.as_fd()),
            other: (!client.sends).then_some(other),
        }
    }

    fn is_unsettled(&self) -> bool {
        self.client.as_ref().is_some_and(Client::is_gone)
    }

    fn settle(&mut self) {
        match &mut self.client {
            None => self.client = self.accept(),
            Some(client) => {
                client.receives &= client.sends || !client.has_hung_up();
                self.client.take_if(|client| client.is_gone());
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
