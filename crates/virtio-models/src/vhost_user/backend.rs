// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A backend: how to connect to it, and what it offered first.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::kind::{Kind, Shape};
use super::session::{Offer, Session};

/// How long a backend may take for all answers of a negotiation, of a start or of a stop.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Connects to a backend: a stream socket of the Unix family. It must not block.
pub type Connect = Box<dyn FnMut() -> io::Result<OwnedFd> + Send>;

/// A backend, for one device at a time.
pub struct Backend {
    shape: Shape,
    offer: Offer,
    patience: Duration,
    inner: Mutex<Inner>,
}

struct Inner {
    connect: Connect,
    /// The connection, unless a device has it.
    session: Option<Session>,
    is_lent: bool,
}

impl Backend {
    /// Connects to a backend for a device of this shape, and negotiates.
    ///
    /// # Errors
    /// [`Fault`]: it can't be reached, doesn't answer, or can't serve such a device.
    pub fn open(shape: Shape, connect: Connect) -> Result<Self, Fault> {
        Self::open_with(shape, connect, PATIENCE, PATIENCE)
    }

    /// As [`open`](Self::open), with other times that the backend may take for its answers: `first` in this call, and
    /// `later` in others.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(
        shape: Shape,
        mut connect: Connect,
        first: Duration,
        later: Duration,
    ) -> Result<Self, Fault> {
        let (session, offer) = dial(&mut connect, &shape, first)?;
        let inner = Inner {
            connect,
            session: Some(session),
            is_lent: false,
        };
        Ok(Backend {
            shape,
            offer,
            patience: later,
            inner: Mutex::new(inner),
        })
    }

    pub(super) const fn kind(&self) -> &Kind {
        &self.shape.kind
    }

    pub(super) const fn offer(&self) -> &Offer {
        &self.offer
    }

    pub(super) const fn queue_size(&self) -> u16 {
        self.shape.queue_size
    }

    /// When answers to what is asked now are late.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Takes the connection, or makes a new one. [`give_back`](Self::give_back) it.
    pub(super) fn take(&self) -> Result<Session, Fault> {
        let mut inner = self.inner();
        if inner.is_lent {
            return Err(Fault::InUse);
        }
        // It may have ended meanwhile.
        let kept = inner.session.take();
        let session = match kept.filter(|session| session.unasked().is_ok()) {
            Some(session) => session,
            None => self.dial_again(&mut inner)?,
        };
        inner.is_lent = true;
        Ok(session)
    }

    fn dial_again(&self, inner: &mut Inner) -> Result<Session, Fault> {
        let (session, offer) = dial(&mut inner.connect, &self.shape, self.patience)?;
        // The guest has seen the first one.
        let is_same = offer.features & self.offer.features == self.offer.features
            && offer.queues == self.offer.queues
            && offer.config.len() == self.offer.config.len();
        is_same.then_some(session).ok_or(Fault::Changed)
    }

    /// Returns a connection, if it can be used again.
    pub(super) fn give_back(&self, session: Option<Session>) {
        let mut inner = self.inner();
        inner.session = session;
        inner.is_lent = false;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dial(
    connect: &mut Connect,
    shape: &Shape,
    patience: Duration,
) -> Result<(Session, Offer), Fault> {
    let socket = connect().map_err(Fault::Unreachable)?;
    Session::negotiate(socket, shape, Instant::now() + patience)
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("shape", &self.shape)
            .field("offer", &self.offer)
            .finish_non_exhaustive()
    }
}
