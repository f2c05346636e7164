// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interface between a device and the code that runs it.

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

/// A virtio device, without a transport and without threads.
///
/// It belongs to exactly one thread, on which [`Worker`](crate::worker::Worker) calls it. Its life cycle:
///
/// ```text
///            start(queues moved in)                stop -> Ok(queues returned)
///   [idle] --------------------------> [running] ------------------------------> [idle]
///     ^                                 |  ^  |
///     |                           process  |  | stop -> Err(NotDrained)
///     |                                 |  |  v
///     |                                 +--+-[draining]: takes no new request, completes those in flight
///     +-- reset, save, restore: only when idle      until `stop` again, or goes on at the next `Event::Queue`
/// ```
///
/// - **`stop` is idempotent.** After it succeeded, the device accesses no guest memory and watches no source. If called
///   again, it returns no queues.
/// - **`stop` may fail**, and then returns nothing. The device then drains: it takes no new request before the next
///   [`Event::Queue`].
/// - **A device takes a bounded number of requests per event**, and requests the event again ([`Io::again`]).
/// - **A device never blocks**, except until the deadlines of `stop` and `flush`. Requests in flight complete through a source that
///   the device watches ([`Io::watch`]); its events arrive as [`Event::Source`].
/// - **An error of a request is an answer to the guest.** [`Broken`] is for queues that can't be followed any more.
pub trait Device<M: GuestAddressSpace>: Send {
    /// The saved state: plain data.
    type State: Serialize + DeserializeOwned;

    /// The name of its kind in saved states. It must be unique.
    const KIND: &'static str;
    /// The version of its [`State`](Self::State). Increase it when the format changes. [`restore`](Self::restore)
    /// decides about older versions.
    const VERSION: u32;

    /// The device's ID, features and queues. Constant.
    fn layout(&self) -> Layout;

    /// Appends its configuration to `out`: [`Layout::config_len`] bytes, little-endian. Drivers read a copy, which is
    /// updated after a start, a reset, a write and [`Io::config_changed`].
    fn config(&self, out: &mut Vec<u8>);

    /// The driver wrote `data`, 1 to 8 bytes, at offset `at` of the configuration, all inside it. Ignore what isn't
    /// writable.
    fn set_config(&mut self, io: &mut Io<'_>, at: u32, data: &[u8]) {
        let _ = (io, at, data);
    }

    /// The driver is ready: take the queues. An entry is `None` if the driver didn't set up that queue. An
    /// [`Event::Queue`] for each queue follows, so don't look for requests yet.
    ///
    /// # Errors
    /// The host's failure. The device is idle then.
    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError>;

    /// Handles an event. Called only while the device runs. After a failed [`stop`](Self::stop) it gets only
    /// [`Event::Source`] until the next `stop` or [`Event::Queue`].
    ///
    /// # Errors
    /// [`Broken`]; then it gets no more [`Event::Queue`].
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken>;

    /// Waits until `by` for requests in flight, then returns the queues in the order of [`Layout::queues`]. Returns an
    /// empty list if the device doesn't run.
    ///
    /// # Errors
    /// [`NotDrained`] if requests are still in flight at `by`.
    fn stop(&mut self, io: &mut Io<'_>, by: Instant)
    -> Result<Vec<Option<QueueState>>, NotDrained>;

    /// Writes completed data to stable storage, waiting for that until `by`. Called after a stop, before a save.
    ///
    /// # Errors
    /// The host's failure; `ErrorKind::TimedOut` if it isn't done at `by`. The device is unchanged then.
    fn flush(&mut self, by: Instant) -> io::Result<()> {
        let _ = by;
        Ok(())
    }

    /// Resets all state that the driver set. Called only when idle.
    fn reset(&mut self);

    /// Its state. Called only when idle.
    fn save(&self) -> Self::State;

    /// Restores a saved state of version `version`. The state is untrusted. Called only when idle. After an error the
    /// device is unchanged.
    ///
    /// # Errors
    /// Why the state is refused.
    fn restore(&mut self, version: u32, state: Self::State) -> Result<(), RestoreError>;
}

/// What a device gets at its start.
pub struct Active<M> {
    /// The features that the driver accepted.
    pub features: u64,
    /// Guest memory.
    pub memory: M,
    /// Its queues. The device owns them.
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

/// Notifies a driver. Called on the device's thread. It must not take a lock that a vCPU holds while it waits.
pub trait Interrupt: Send + Sync {
    /// Chains of this queue were returned. Check [`Virtq::needs_interrupt`] first.
    fn queue(&self, queue: u16);
    /// The configuration changed, or the device needs a reset.
    fn config(&self);
    /// Repeats an interrupt that the driver has not acknowledged, if the transport knows of one. Called when a device is
    /// resumed: a saved machine may have lost it on its way to the vCPU.
    fn repeat(&self) {}
}

/// An event for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver may have made chains of this queue available.
    Queue(u16),
    /// The source that is watched with this token is ready.
    Source(u32),
}

/// The events to watch a source for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Data can be read.
    pub readable: bool,
    /// Data can be written.
    pub writable: bool,
}

/// The event loop of a device's thread, provided by the VMM. Level-triggered.
pub trait Poller {
    /// Watches `source`; its events carry `token`. If it is already watched, changes its events.
    ///
    /// # Errors
    /// The host's failure.
    fn watch(&mut self, source: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()>;
    /// Stops watching `source`.
    ///
    /// # Errors
    /// The host's failure.
    fn unwatch(&mut self, source: BorrowedFd<'_>, token: u32) -> io::Result<()>;
}

/// What a device can do during a call.
pub struct Io<'a> {
    poller: &'a mut dyn Poller,
    config_changed: bool,
    again: bool,
}

impl<'a> Io<'a> {
    /// For one call of a device.
    pub fn new(poller: &'a mut dyn Poller) -> Self {
        Io {
            poller,
            config_changed: false,
            again: false,
        }
    }

    /// Watches a source: see [`Poller::watch`].
    ///
    /// # Errors
    /// The host's failure.
    pub fn watch(
        &mut self,
        source: BorrowedFd<'_>,
        token: u32,
        interest: Interest,
    ) -> io::Result<()> {
        self.poller.watch(source, token, interest)
    }

    /// Stops watching a source.
    ///
    /// # Errors
    /// The host's failure.
    pub fn unwatch(&mut self, source: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.poller.unwatch(source, token)
    }

    /// The configuration has changed: publish a copy and notify the driver.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }

    /// Whether the device called [`config_changed`](Self::config_changed).
    pub const fn has_config_changed(&self) -> bool {
        self.config_changed
    }

    /// Repeats the current event, after other devices of the thread had their turn. A driver may refill a queue as fast
    /// as it is emptied, so a device must take a bounded number of requests per event.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Whether the device called [`again`](Self::again).
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
    /// What failed.
    pub what: &'static str,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Why a saved state can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The state belongs to a device of another kind.
    #[error("the saved state is that of a device of kind {found:?}, not {wanted:?}")]
    Kind {
        /// The kind in the state.
        found: String,
        /// The device's.
        wanted: &'static str,
    },
    /// Its version is unknown.
    #[error(
        "the saved state has version {found}, and {newest} is the newest that is known: use the release that saved it"
    )]
    Version {
        /// Its version.
        found: u32,
        /// The newest known version.
        newest: u32,
    },
    /// It doesn't match the format of its version.
    #[error("the saved state of a device of kind {kind:?} can't be read: {why}")]
    Form {
        /// The device's kind.
        kind: &'static str,
        /// The parser's error.
        why: String,
    },
    /// It has an impossible value.
    #[error("the saved state can't be: {0}")]
    Value(&'static str),
}

/// A device's state with its kind and version, as stored in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// [`Device::KIND`].
    pub kind: String,
    /// [`Device::VERSION`].
    pub version: u32,
    /// [`Device::State`].
    pub state: Value,
}

/// An object-safe form of [`Device`], for code that holds devices of many kinds. Every `Device` implements it.
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
    /// As for [`Device::start`].
    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError>;
    /// [`Device::process`].
    ///
    /// # Errors
    /// As for [`Device::process`].
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken>;
    /// [`Device::stop`].
    ///
    /// # Errors
    /// As for [`Device::stop`].
    fn stop(&mut self, io: &mut Io<'_>, by: Instant)
    -> Result<Vec<Option<QueueState>>, NotDrained>;
    /// [`Device::flush`].
    ///
    /// # Errors
    /// As for [`Device::flush`].
    fn flush(&mut self, by: Instant) -> io::Result<()>;
    /// [`Device::reset`].
    fn reset(&mut self);
    /// [`Device::save`], with kind and version.
    ///
    /// # Errors
    /// The state has a value that JSON can't express.
    fn save(&self) -> Result<Saved, serde_json::Error>;
    /// [`Device::restore`], after a check of kind and version.
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

    fn flush(&mut self, by: Instant) -> io::Result<()> {
        Device::flush(self, by)
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
