// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event sources of the virtio devices' thread.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use virtio_transport::device::{Interest, Poller};

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    /// The mailbox.
    Mail,
    /// A queue notification of the driver.
    Kick {
        /// The device.
        seat: usize,
        /// The queue.
        queue: u16,
    },
    /// A source of a device.
    Source {
        /// The device.
        seat: usize,
        /// The device's own token for it.
        token: u32,
    },
}

/// The bit that distinguishes a source from a kick. The seat is above it, the queue or the device's token below.
const SOURCE: u64 = 1 << 32;

impl Token {
    fn to_data(self) -> EventData {
        EventData::new_u64(match self {
            Token::Mail => u64::MAX,
            Token::Kick { seat, queue } => (seat as u64) << 33 | u64::from(queue),
            Token::Source { seat, token } => (seat as u64) << 33 | SOURCE | u64::from(token),
        })
    }

    fn from_data(data: EventData) -> Self {
        let data = data.u64();
        let seat = (data >> 33) as usize;
        match data {
            u64::MAX => Token::Mail,
            _ if data & SOURCE == 0 => Token::Kick {
                seat,
                queue: data as u16,
            },
            _ => Token::Source {
                seat,
                token: data as u32,
            },
        }
    }
}

/// An epoll instance, created when the thread starts.
#[derive(Debug, Default)]
pub(super) struct Epoll {
    epoll: Option<OwnedFd>,
    watched: BTreeSet<Token>,
}

impl Epoll {
    /// Creates it.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn open(&mut self) -> io::Result<()> {
        if self.epoll.is_none() {
            self.epoll = Some(epoll::create(CreateFlags::CLOEXEC)?);
        }
        Ok(())
    }

    /// Watches `source` until it is closed.
    ///
    /// # Errors
    /// The host's failure.
    pub fn watch(
        &mut self,
        source: BorrowedFd<'_>,
        token: Token,
        flags: EventFlags,
    ) -> io::Result<()> {
        let epoll = self.epoll.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        match epoll::add(epoll, source, token.to_data(), flags) {
            Err(Errno::EXIST) => epoll::modify(epoll, source, token.to_data(), flags)?,
            added => added?,
        }
        self.watched.insert(token);
        Ok(())
    }

    fn unwatch(&mut self, source: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let epoll = self.epoll.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        self.watched.remove(&token);
        Ok(epoll::delete(epoll, source)?)
    }

    /// Forgets the sources of a device, which are closed with it.
    pub fn forget(&mut self, gone: usize) {
        self.watched.retain(|token| match token {
            Token::Mail => true,
            Token::Kick { seat, .. } | Token::Source { seat, .. } => *seat != gone,
        });
    }

    /// Whether the token is still watched: an event may belong to a source that was removed after the wait.
    pub fn watches(&self, token: Token) -> bool {
        self.watched.contains(&token)
    }

    /// Waits for events, if `blocks`, and puts them into `events`.
    ///
    /// # Errors
    /// The host's failure.
    pub fn wait(&self, events: &mut Vec<epoll::Event>, blocks: bool) -> io::Result<()> {
        let epoll = self.epoll.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        events.clear();
        let at_once = Timespec::default();
        let timeout = (!blocks).then_some(&at_once);
        match epoll::wait(epoll.as_fd(), spare_capacity(events), timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The source of an event.
    pub fn token(event: &epoll::Event) -> Token {
        Token::from_data(event.data)
    }
}

/// Watches the sources of one device.
pub(super) struct SeatPoller<'a> {
    pub epoll: &'a mut Epoll,
    pub seat: usize,
}

impl Poller for SeatPoller<'_> {
    fn watch(&mut self, source: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interest.readable);
        flags.set(EventFlags::OUT, interest.writable);
        let seat = self.seat;
        self.epoll
            .watch(source, Token::Source { seat, token }, flags)
    }

    fn unwatch(&mut self, source: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        let seat = self.seat;
        self.epoll.unwatch(source, Token::Source { seat, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for seat in [0, 1, 31, 1000] {
            for token in [0, 1, u32::MAX] {
                for token in [
                    Token::Mail,
                    Token::Source { seat, token },
                    Token::Kick {
                        seat,
                        queue: token as u16,
                    },
                ] {
                    assert_eq!(Token::from_data(token.to_data()), token);
                }
            }
        }
    }
}
