// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device.

mod equipment;
mod turns;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_transport::Broken;
use virtio_transport::device::{Active, Device, Event, Interest, Io, RestoreError, StartError};
use virtio_transport::layout::Layout;
use virtio_transport::queue::{NotDrained, QueueState};
use vm_memory::GuestAddressSpace;

use super::backend::{Backend, Done, Operation};
use super::config::{self, CONFIG_WCE, FLUSH, WRITEBACK_AT};
use super::control::Control;
use super::counters::Counters;
use super::disk::Disk;
use super::image::Image;
use super::report::{Report, Reporter};
use super::retry::Retry;
use super::running::Running;
use crate::rate::{Limiter, Limits};
use crate::sys::Guest;

/// The first token of flushes that no driver requested. No queue has this number.
const OWN_FLUSH: u32 = 0xffff_0000;
/// The tokens of the device's sources.
const DONE: u32 = 0;
/// That of a back end that takes the place of one with the token [`DONE`], and the other way round.
const NEXT_DONE: u32 = 4;
const BELL: u32 = 1;
const TIMER: u32 = 2;
pub(super) const RETRY: u32 = 3;
pub(super) const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};

/// A disk.
///
/// A host error fails the request with `VIRTIO_BLK_S_IOERR`, and is reported once.
pub struct Block<M: GuestAddressSpace> {
    disk: Disk,
    /// Whether the driver sees a volatile cache, as in the configuration.
    writeback: bool,
    /// `None` until a driver starts the device, unless it is the caller's.
    backend: Option<Box<dyn Backend>>,
    /// The token of its source.
    done_token: u32,
    running: Option<Running<M>>,
    control: Arc<Control>,
    /// The version of the control's image that `backend` is of.
    version: u32,
    /// Whether requests wait for another image. Those in flight end first.
    replacing: bool,
    counters: Arc<Counters>,
    reporter: Reporter,
    done: Vec<Done>,
    /// The number of flushes that no driver requested.
    flushes: u16,
    limits: Limits,
    /// In a box, because it is moved out while it is used.
    limiter: Option<Box<Limiter>>,
    /// Queues that wait for the limiter or for space, one bit each.
    throttled: u64,
    /// Some of them wait for requests in flight to end.
    crowded: bool,
    /// The queue that is served first when a wait ends.
    first: u32,
    retry: Retry,
    /// Whether it takes no requests before the next queue event.
    draining: bool,
}

/// The state of a [`Block`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// The capacity in units of 512 bytes.
    pub sectors: u64,
    /// The capacity that the driver knows, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<u64>,
    /// Whether the driver sees a volatile cache.
    pub writeback: bool,
}

impl<M: GuestAddressSpace> Block<M> {
    /// A disk for an opened image.
    pub fn new(image: Image, report: Report) -> Self {
        Self::of(image.disk(), None, image.into_control(), report)
    }

    /// A disk with the caller's back end.
    ///
    /// # Panics
    /// If a field of `disk` is out of range.
    pub fn with_backend(disk: Disk, backend: Box<dyn Backend>, report: Report) -> Self {
        assert!(disk.is_possible(), "{disk:?}");
        Self::of(disk, Some(backend), Arc::default(), report)
    }

    /// Sets the limiter.
    #[must_use]
    pub fn with_limiter(mut self, limiter: Limiter) -> Self {
        self.limiter = Some(Box::new(limiter));
        self
    }

    fn of(
        disk: Disk,
        backend: Option<Box<dyn Backend>>,
        control: Arc<Control>,
        report: Report,
    ) -> Self {
        Block {
            writeback: disk.writes_back(),
            disk,
            backend,
            done_token: DONE,
            running: None,
            version: control.version(),
            control,
            replacing: false,
            counters: Arc::default(),
            reporter: Reporter::new(report),
            done: Vec::new(),
            flushes: 0,
            limits: Limits::default(),
            limiter: None,
            throttled: 0,
            crowded: false,
            first: 0,
            retry: Retry::default(),
            draining: false,
        }
    }

    /// The VMM's control of the running disk.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// The disk's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl<M: GuestAddressSpace + Send> Device<M> for Block<M>
where
    M::T: Send + Sync + 'static,
{
    type State = BlockState;

    const KIND: &'static str = "block";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        config::layout(&self.disk)
    }

    fn config(&self, out: &mut Vec<u8>) {
        config::config(&self.disk, self.writeback, out);
    }

    fn set_config(&mut self, _: &mut Io<'_>, at: u32, data: &[u8]) {
        let features = self.running.as_ref().map(|running| running.active.features);
        let offered = config::layout(&self.disk).features;
        let may = features.unwrap_or(offered) & CONFIG_WCE != 0;
        let at = WRITEBACK_AT.checked_sub(at).map(|at| at as usize);
        if let Some(mode) = at.and_then(|at| data.get(at))
            && may
        {
            self.writeback = *mode != 0;
        }
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        if let Err(source) = self.watch(io) {
            self.unwatch(io);
            let what = "the disk's image can't be read and written";
            return Err(StartError { what, source });
        }
        if self.measure() {
            io.config_changed();
        }
        // A driver that can't flush relies on each write being stable (5.2.6.2).
        if active.features & FLUSH == 0 && self.disk.flushes() {
            self.writeback = false;
        }
        self.draining = false;
        self.running = Some(Running::new(active));
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        let Some(memory) = self.memory() else {
            return Ok(());
        };
        let guest = &Guest::new(&memory);
        let took = match event {
            Event::Queue(queue) => {
                self.draining = false;
                if self.throttled != 0 && (self.limiter.is_some() || self.crowded) {
                    // It does not overtake those that wait.
                    self.throttled |= 1 << (queue % 64);
                    self.go_on(io, guest)
                } else {
                    self.take(io, guest, queue)
                }
            }
            Event::Source(TIMER) => {
                self.limiter.iter_mut().for_each(|limiter| limiter.rest());
                self.go_on(io, guest)
            }
            Event::Source(RETRY) => {
                self.retry.rest();
                Ok(())
            }
            Event::Source(BELL) => {
                self.control.bell.hear();
                self.obey(io);
                self.go_on(io, guest)
            }
            Event::Source(_) => Ok(()),
        };
        let (mut began, mut result) = self.settle(guest);
        result = took.and(result);
        let replaces = self.replacing && self.is_idle();
        if replaces {
            self.replace(io);
        }
        if result.is_ok() && (replaces || self.has_space()) {
            self.crowded = false;
            result = self.go_on(io, guest);
            // The event that comes again may be one that looks at no queue.
            self.crowded |= io.wants_again();
            let (all, settled) = self.settle(guest);
            (began, result) = (all, result.and(settled));
        }
        if self.has_space() {
            io.again();
        }
        if !began {
            self.retry.soon(io);
        }
        result
    }

    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        loop {
            // It stops, whether or not it is broken.
            let Some(memory) = self.memory() else {
                return Ok(Vec::new());
            };
            let (began, _) = self.settle(&Guest::new(&memory));
            let in_flight = self.running.as_ref().map_or(0, Running::in_flight);
            if in_flight == 0 {
                break;
            }
            if Instant::now() >= by {
                self.draining = true;
                if !began {
                    self.retry.soon(io);
                }
                let in_flight = u16::try_from(in_flight).unwrap_or(u16::MAX);
                return Err(NotDrained { in_flight });
            }
            self.wait(began, by);
        }
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        self.unwatch(io);
        let queues = running.active.queues.iter();
        queues
            .map(|queue| queue.as_ref().map(|queue| queue.state()).transpose())
            .collect()
    }

    fn flush(&mut self, by: Instant) -> io::Result<()> {
        let Some(backend) = &mut self.backend else {
            return Ok(());
        };
        // An earlier one that was given up may complete meanwhile.
        self.flushes = self.flushes.wrapping_add(1);
        let token = OWN_FLUSH | u32::from(self.flushes);
        backend.push(token, Operation::Flush);
        loop {
            let Some(backend) = &mut self.backend else {
                return Ok(());
            };
            let began = backend.submit();
            backend.reap(&mut self.done);
            if let Some(done) = self.done.drain(..).find(|done| done.token == token) {
                return done.result.map(drop);
            }
            if Instant::now() >= by {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait(began, by);
        }
    }

    fn reset(&mut self) {
        self.writeback = self.disk.writes_back();
        self.measure();
    }

    fn save(&self) -> BlockState {
        let (sectors, known) = self.capacities();
        BlockState {
            sectors,
            known: (known != sectors).then_some(known),
            writeback: self.writeback,
        }
    }

    fn restore(&mut self, _: u32, state: BlockState) -> Result<(), RestoreError> {
        if state.sectors > self.disk.sectors {
            let what = "the disk is smaller than when the machine was saved";
            return Err(RestoreError::Value(what));
        }
        if state.writeback && self.disk.readonly && !self.disk.writes_back() {
            return Err(RestoreError::Value(
                "a read-only disk has no cache to switch on",
            ));
        }
        self.writeback = state.writeback;
        // If the image has another size, the driver learns that at the start.
        self.disk.sectors = state.known.unwrap_or(state.sectors);
        Ok(())
    }
}

impl<M: GuestAddressSpace> fmt::Debug for Block<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("disk", &self.disk)
            .field("writeback", &self.writeback)
            .finish_non_exhaustive()
    }
}
