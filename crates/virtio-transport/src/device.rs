// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The contract between a device and whoever runs it.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use vm_memory::GuestAddressSpace;

use crate::broken::Broken;
use crate::layout::Layout;
use crate::queue::{NotDrained, QueueState, Virtq};

/// A virtio device, without transport and without threads.
///
/// It is owned by exactly one thread, and [`Worker`](crate::worker::Worker) calls it there. Its life:
///
/// ```text
///            start(queues moved in)                stop -> Ok(queues given back)
///   [idle] --------------------------> [running] ------------------------------> [idle]
///     ^                                 |  ^  |
///     |                           process  |  | stop -> Err(NotDrained)
///     |                                 |  |  v
///     |                                 +--+-[draining]: takes no new request, completes those in flight
///     +-- reset, save, restore: only when idle      until `stop` again, or goes on at the next `Event::Queue`
/// ```
///
/// - **`stop` is idempotent.** When it has succeeded, nothing of the device's touches guest memory any more and none of
///   its sources is watched; called again, it gives back no queues.
/// - **`stop` may fail**, and then gives nothing back. It has begun to drain: the device takes no new request
///   before the next [`Event::Queue`].
/// - **A device takes a bounded number of requests per event**, and asks for the event again ([`Io::again`]).
/// - **A device never waits** but for the deadline that `stop` is given. Work in flight completes by a source that
///   the device has watched ([`Io::watch`]), whose events come as [`Event::Source`].
/// - **An error of a request is an answer to the guest.** [`Broken`] is for queues that can't be followed any more.
pub trait Device<M: GuestAddressSpace>: Send {
    /// What [`save`](Self::save) gives: plain data.
    type State: Serialize + DeserializeOwned;

    /// The name of its kind in saved states; no other kind has it.
    const KIND: &'static str;
    /// The form of its [`State`](Self::State). Raised when that changes; older forms are [`restore`](Self::restore)'s
    /// to take, or to refuse.
    const VERSION: u32;

    /// What it is to the driver: the same whenever it is asked.
    fn layout(&self) -> Layout;

    /// Appends its configuration to `out`: [`Layout::config_len`] bytes, little-endian. Drivers read a copy of it, which
    /// is taken after a start, a reset, a write and whenever the device says [`Io::config_changed`].
    fn config(&self, out: &mut Vec<u8>);

    /// The driver wrote `data`, 1 to 8 bytes, at offset `at` of the configuration; all of it lies inside. What isn't
    /// writable is left alone.
    fn set_config(&mut self, io: &mut Io<'_>, at: u32, data: &[u8]) {
        let _ = (io, at, data);
    }

    /// The driver is ready: takes the queues. Entries are `None` where the driver set up no queue. An [`Event::Queue`]
    /// of each queue follows, so no request is looked for yet.
    ///
    /// # Errors
    /// What the host can't do. The device is idle then.
    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError>;

    /// Something happened. Called only while it runs; between a failed [`stop`](Self::stop) and what follows it, with
    /// [`Event::Source`] only.
    ///
    /// # Errors
    /// [`Broken`], after which it gets no more [`Event::Queue`].
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken>;

    /// Gives the queues back when nothing is in flight, which it awaits until `by`, in the order of
    /// [`Layout::queues`]. Empty if it doesn't run.
    ///
    /// # Errors
    /// [`NotDrained`] if requests are still in flight at `by`.
    fn stop(&mut self, io: &mut Io<'_>, by: Instant)
    -> Result<Vec<Option<QueueState>>, NotDrained>;

    /// Brings everything that was completed to stable storage. Called after a stop, before a save.
    ///
    /// # Errors
    /// The host's.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Forgets what its driver told it. It does not run.
    fn reset(&mut self);

    /// Its state. It does not run.
    fn save(&self) -> Self::State;

    /// Takes a saved state of form `version`, which anybody may have written. It does not run. After an error it is as
    /// before.
    ///
    /// # Errors
    /// What can't be.
    fn restore(&mut self, version: u32, state: Self::State) -> Result<(), RestoreError>;
}

/// What a device runs with.
pub struct Active<M> {
    /// The features that the driver took.
    pub features: u64,
    /// Guest memory.
    pub memory: M,
    /// Its queues: nobody else has them.
    pub queues: Vec<Option<Virtq>>,
    /// Notifies the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

impl<M> fmt::Debug for Active<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active")
            .field("features", &self.features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// Notifies a driver. Called from the device's thread; takes no lock that a vCPU holds while it waits.
pub trait Interrupt: Send + Sync {
    /// Chains of this queue were given back. Ask [`Virtq::needs_interrupt`] before.
    fn queue(&self, queue: u16);
    /// The configuration changed, or the device needs a reset.
    fn config(&self);
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver may have made chains of this queue available.
    Queue(u16),
    /// A source is ready; which one, says the token that it was watched with.
    Source(u32),
}

/// What a source is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Something can be read.
    pub readable: bool,
    /// Something can be written.
    pub writable: bool,
}

/// The event loop of a device's thread, as the VMM has it. Level-triggered.
pub trait Poller {
    /// Watches `source`; its events carry `token`. Watched already, it is watched for something else.
    ///
    /// # Errors
    /// The host's.
    fn watch(&mut self, source: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()>;
    /// Watches `source` no more.
    ///
    /// # Errors
    /// The host's.
    fn unwatch(&mut self, source: BorrowedFd<'_>, token: u32) -> io::Result<()>;
}

/// What a device can do while it is called.
pub struct Io<'a> {
    poller: &'a mut dyn Poller,
    config_changed: bool,
    again: bool,
}

impl<'a> Io<'a> {
    /// For one call of a device's.
    pub fn new(poller: &'a mut dyn Poller) -> Self {
        Io {
            poller,
            config_changed: false,
            again: false,
        }
    }

    /// Watches a source of the device's: see [`Poller::watch`].
    ///
    /// # Errors
    /// The host's.
    pub fn watch(
        &mut self,
        source: BorrowedFd<'_>,
        token: u32,
        interest: Interest,
    ) -> io::Result<()> {
        self.poller.watch(source, token, interest)
    }

    /// Watches it no more.
    ///
    /// # Errors
    /// The host's.
    pub fn unwatch(&mut self, source: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.poller.unwatch(source, token)
    }

    /// The configuration is another one now: a copy of it is published, and the driver notified.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }

    /// Whether the device has said so.
    pub const fn has_config_changed(&self) -> bool {
        self.config_changed
    }

    /// The event that is being processed comes again, after other devices of the thread had their turn. A driver may
    /// refill a queue as fast as it is emptied, so a device takes a bounded number of requests per event.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Whether the device has said so.
    pub const fn wants_again(&self) -> bool {
        self.again
    }
}

impl fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("config_changed", &self.config_changed)
            .field("again", &self.again)
            .finish_non_exhaustive()
    }
}

/// Why a device can't start.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct StartError {
    /// What can't be done.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Why a saved state can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// It is the state of a device of another kind.
    #[error("the saved state is that of a device of kind {found:?}, not {wanted:?}")]
    Kind {
        /// The kind in the state.
        found: String,
        /// The device's.
        wanted: &'static str,
    },
    /// It has a form that isn't known.
    #[error(
        "the saved state has version {found}, and {newest} is the newest that is known: use the release that saved it"
    )]
    Version {
        /// Its form.
        found: u32,
        /// The newest that is known.
        newest: u32,
    },
    /// It is not of the form that it claims.
    #[error("the saved state of a device of kind {kind:?} can't be read: {why}")]
    Form {
        /// The device's kind.
        kind: &'static str,
        /// What the reader says.
        why: String,
    },
    /// It says what can't be.
    #[error("the saved state can't be: {0}")]
    Value(&'static str),
}

/// A device's state with its kind and form, as it goes into a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// [`Device::KIND`].
    pub kind: String,
    /// [`Device::VERSION`].
    pub version: u32,
    /// [`Device::State`].
    pub state: Value,
}

/// A device of any kind: what [`Device`] is, for those that hold many of them. Every `Device` is one.
pub trait AnyDevice<M: GuestAddressSpace>: Send {
    /// [`Device::layout`].
    fn layout(&self) -> Layout;
    /// A copy of the configuration, of exactly [`Layout::config_len`] bytes.
    fn config(&self) -> Vec<u8>;
    /// [`Device::set_config`].
    fn set_config(&mut self, io: &mut Io<'_>, at: u32, data: &[u8]);
    /// [`Device::start`].
    ///
    /// # Errors
    /// As there.
    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError>;
    /// [`Device::process`].
    ///
    /// # Errors
    /// As there.
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken>;
    /// [`Device::stop`].
    ///
    /// # Errors
    /// As there.
    fn stop(&mut self, io: &mut Io<'_>, by: Instant)
    -> Result<Vec<Option<QueueState>>, NotDrained>;
    /// [`Device::flush`].
    ///
    /// # Errors
    /// As there.
    fn flush(&mut self) -> io::Result<()>;
    /// [`Device::reset`].
    fn reset(&mut self);
    /// [`Device::save`], with kind and form.
    ///
    /// # Errors
    /// What can't be a JSON value.
    fn save(&self) -> Result<Saved, serde_json::Error>;
    /// [`Device::restore`], after kind and form were looked at.
    ///
    /// # Errors
    /// [`RestoreError`].
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;
}

impl<M: GuestAddressSpace, D: Device<M>> AnyDevice<M> for D {
    fn layout(&self) -> Layout {
        Device::layout(self)
    }

    fn config(&self) -> Vec<u8> {
        let len = Device::layout(self).config_len as usize;
        let mut config = Vec::with_capacity(len);
        Device::config(self, &mut config);
        config.resize(len, 0);
        config
    }

    fn set_config(&mut self, io: &mut Io<'_>, at: u32, data: &[u8]) {
        Device::set_config(self, io, at, data);
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        Device::start(self, io, active)
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        Device::process(self, io, event)
    }

    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        Device::stop(self, io, by)
    }

    fn flush(&mut self) -> io::Result<()> {
        Device::flush(self)
    }

    fn reset(&mut self) {
        Device::reset(self);
    }

    fn save(&self) -> Result<Saved, serde_json::Error> {
        Ok(Saved {
            kind: D::KIND.to_owned(),
            version: D::VERSION,
            state: serde_json::to_value(Device::save(self))?,
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.kind != D::KIND {
            let found = saved.kind.clone();
            let wanted = D::KIND;
            return Err(RestoreError::Kind { found, wanted });
        }
        if saved.version > D::VERSION {
            let (found, newest) = (saved.version, D::VERSION);
            return Err(RestoreError::Version { found, newest });
        }
        let state = D::State::deserialize(&saved.state).map_err(|error| RestoreError::Form {
            kind: D::KIND,
            why: error.to_string(),
        })?;
        Device::restore(self, saved.version, state)
    }
}
