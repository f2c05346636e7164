// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device.

mod serve;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Event, Interest, Io, RestoreError, StartError};
use virtio_transport::layout::{Layout, RING_FEATURES};
use virtio_transport::queue::{NotDrained, QueueState};
use virtio_transport::{Broken, Device};
use vm_memory::GuestAddressSpace;

use super::control::{Control, Counters, DONE, STOP, State};
use super::queues::{self, Role};
use super::ranges::Ranges;
use super::{DEFLATE_ON_OOM, FREE_PAGE_HINT, Host, PAGE_POISON, PAGE_REPORTING, STATS_VQ};
use crate::timer::Timer;

/// The device ID of virtio 1.4, section 5.
const ID: u16 = 5;
/// As many as QEMU's. A request of Linux has up to 256 pages, or 32 reported blocks.
const QUEUE_SIZE: u16 = 128;
/// The bytes of the configuration.
const CONFIG_LEN: u32 = 16;
/// The token of the VMM's commands.
const BELL: u32 = 0;
/// The token of the timer for statistics.
const TIMER: u32 = 1;

const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};

/// What a balloon offers its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The driver may take pages back by itself when the guest has no memory left (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
    pub deflate_on_oom: bool,
    /// The guest tells about its memory (`VIRTIO_BALLOON_F_STATS_VQ`).
    pub stats: bool,
    /// The guest reports free pages by itself (`VIRTIO_BALLOON_F_PAGE_REPORTING`).
    pub reporting: bool,
    /// The guest gives hints at free pages when it is asked to (`VIRTIO_BALLOON_F_FREE_PAGE_HINT`).
    pub hinting: bool,
}

impl Options {
    fn features(self) -> u64 {
        let bit = |holds, bit: u8| u64::from(holds) << bit;
        bit(self.stats, STATS_VQ)
            | bit(self.deflate_on_oom, DEFLATE_ON_OOM)
            | bit(self.hinting, FREE_PAGE_HINT)
            | bit(self.reporting || self.hinting, PAGE_POISON)
            | bit(self.reporting, PAGE_REPORTING)
    }
}

/// A balloon.
pub struct Balloon<M: GuestAddressSpace> {
    options: Options,
    control: Arc<Control>,
    counters: Arc<Counters>,
    host: Box<dyn Host<M>>,
    active: Option<Active<M>>,
    /// The role of each queue of the running device.
    roles: Vec<Option<Role>>,
    timer: Option<Timer>,
    /// What the driver sees.
    shown: Shown,
    /// The driver's own value of free pages.
    poison: [u8; 4],
    /// The head of the buffer for statistics that waits for the next request.
    held: Option<u16>,
    chain: Chain,
    ranges: Ranges,
}

/// What the VMM decides and the driver sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    target: u32,
    command: u32,
    interval: u32,
}

impl Shown {
    const fn of(state: &State) -> Self {
        Shown {
            target: state.target,
            command: state.command,
            interval: state.interval,
        }
    }
}

/// The state of a [`Balloon`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// The pages that it should have.
    pub target: u32,
    /// The pages that it has.
    pub actual: u32,
    /// The driver's value of free pages.
    pub poison: u32,
    /// The seconds between two requests for statistics.
    pub interval: u32,
    /// The number of the last round of hints.
    pub round: u32,
    /// Whether the driver may have hinted pages that it does not use. A restored one is told to use them.
    pub hinted: bool,
}

impl<M: GuestAddressSpace> Balloon<M> {
    /// A device without a driver, which obeys `control` and gives memory to `host`.
    pub fn new(options: Options, control: Arc<Control>, host: Box<dyn Host<M>>) -> Self {
        let mut state = control.state();
        state.forget_driver();
        let shown = Shown::of(&state);
        drop(state);
        Balloon {
            options,
            control,
            counters: Arc::default(),
            host,
            active: None,
            roles: Vec::new(),
            timer: None,
            shown,
            poison: [0; 4],
            held: None,
            chain: Chain::new(),
            ranges: Ranges::default(),
        }
    }

    /// Its counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Tells the driver what the VMM decided meanwhile. A new interval begins with a request.
    fn obey(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.control.bell.hear();
        let new = Shown::of(&self.control.state());
        let old = std::mem::replace(&mut self.shown, new);
        if (old.target, old.command) != (new.target, new.command) {
            io.config_changed();
        }
        if old.interval != new.interval {
            self.ask()?;
        }
        Ok(())
    }

    /// Watches the VMM's commands and the time.
    fn watch(&mut self, io: &mut Io<'_>) -> std::io::Result<()> {
        io.watch(self.control.bell.source()?, BELL, READABLE)?;
        if self.options.stats {
            let timer = Timer::new()?;
            io.watch(timer.source(), TIMER, READABLE)?;
            self.timer = Some(timer);
            self.wait()?;
        }
        Ok(())
    }

    /// Waits for the time of the next request for statistics. Without an interval there is none.
    fn wait(&mut self) -> std::io::Result<()> {
        match (&mut self.timer, self.shown.interval) {
            (Some(timer), 1..) => timer.set(Duration::from_secs(u64::from(self.shown.interval))),
            _ => Ok(()),
        }
    }

    fn unwatch(&mut self, io: &mut Io<'_>) {
        if let Ok(bell) = self.control.bell.source() {
            let _ = io.unwatch(bell, BELL);
        }
        if let Some(timer) = self.timer.take() {
            let _ = io.unwatch(timer.source(), TIMER);
        }
    }

    const fn poison(&self) -> u32 {
        u32::from_le_bytes(self.poison)
    }
}

impl<M: GuestAddressSpace> fmt::Debug for Balloon<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("options", &self.options)
            .field("control", &self.control)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace + Send> Device<M> for Balloon<M> {
    type State = BalloonState;

    const KIND: &'static str = "balloon";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        let features = self.options.features();
        Layout {
            id: ID,
            features: features | RING_FEATURES,
            requires: &[],
            queues: vec![QUEUE_SIZE; queues::count(features)],
            config_len: CONFIG_LEN,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        let actual = self.control.actual();
        for field in [self.shown.target, actual, self.shown.command] {
            out.extend(field.to_le_bytes());
        }
        out.extend(self.poison);
    }

    fn set_config(&mut self, _: &mut Io<'_>, at: u32, data: &[u8]) {
        let mut state = self.control.state();
        let mut actual = state.actual.to_le_bytes();
        for (at, byte) in (at as usize..).zip(data) {
            match at {
                4..8 => actual[at - 4] = *byte,
                12..16 => self.poison[at - 12] = *byte,
                _ => {}
            }
        }
        state.actual = u32::from_le_bytes(actual);
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        self.roles = queues::roles(active.features, &active.queues);
        let mut state = self.control.state();
        state.hints = self.roles.contains(&Some(Role::Hints));
        self.shown = Shown::of(&state);
        drop(state);
        let watched = self.watch(io);
        if let Err(source) = watched {
            self.unwatch(io);
            let what = "the host can't wait for what a balloon shall do";
            return Err(StartError { what, source });
        }
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        match event {
            Event::Source(BELL) => self.obey(io),
            Event::Source(_) => {
                self.timer.iter_mut().for_each(Timer::rest);
                self.ask()
            }
            Event::Queue(number) => match self.roles.get(usize::from(number)) {
                Some(Some(Role::Stats)) => self.hear(number),
                Some(Some(role)) => self.serve(io, number, *role),
                _ => Ok(()),
            },
        }
    }

    fn stop(&mut self, io: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let Some(mut active) = self.active.take() else {
            return Ok(Vec::new());
        };
        self.unwatch(io);
        self.control.state().hints = false;
        // The buffer is there for a device that goes on.
        if let (Some(head), Some(number)) = (self.held.take(), self.number(Role::Stats))
            && let Some(Some(queue)) = active.queues.get_mut(usize::from(number))
        {
            queue.unpop(head);
        }
        let states = active.queues.iter().map(Option::as_ref);
        states
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {
        let mut state = self.control.state();
        state.forget_driver();
        self.shown = Shown::of(&state);
        self.poison = [0; 4];
    }

    fn save(&self) -> BalloonState {
        let state = self.control.state();
        BalloonState {
            target: state.target,
            actual: state.actual,
            poison: self.poison(),
            interval: state.interval,
            round: state.round,
            hinted: state.command != STOP,
        }
    }

    fn restore(&mut self, _: u32, saved: BalloonState) -> Result<(), RestoreError> {
        let mut state = self.control.state();
        state.forget_driver();
        state.target = saved.target;
        state.actual = saved.actual;
        state.interval = saved.interval;
        state.round = saved.round;
        state.command = if saved.hinted { DONE } else { STOP };
        self.shown = Shown::of(&state);
        self.poison = saved.poison.to_le_bytes();
        Ok(())
    }
}
