// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device.

mod equipment;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Device, Event, Io, RestoreError, StartError};
use virtio_transport::layout::Layout;
use virtio_transport::memory::View;
use virtio_transport::queue::{NotDrained, QueueState, Virtq};
use vm_memory::GuestAddressSpace;

use super::config::{self, CTRL_VQ, MAX_PAIRS, MIN_MTU, MQ, Mac, NetConfig};
use super::control::{self, Command, ERR, OK};
use super::limits::{Control, Limited};
use super::link::Link;
use super::pair::Pair;
use super::report::{Counters, Report};
use super::status::{State, Status};
use super::turn::BURST;
use crate::rate::Limiter;

/// The tokens of the device's sources. Those of links follow, and then those of their alarms and the VMM's.
const RX_TIMER: u32 = 0;
const TX_TIMER: u32 = 1;
const LINKS: u32 = 2;
const ALARMS: u32 = LINKS + MAX_PAIRS as u32;
const BELL: u32 = ALARMS + MAX_PAIRS as u32;

/// A network interface.
///
/// A malformed frame is dropped and counted. A link that is down or lost is a link status for the driver, and is
/// reported once.
pub struct Net<M: GuestAddressSpace> {
    config: NetConfig,
    pairs: Vec<Pair<M>>,
    /// How many pairs the driver uses.
    used_pairs: usize,
    /// The pairs that receive and send first: those after the last that did, since a limit may be enough for one only.
    first_rx: usize,
    first_tx: usize,
    status: Status,
    active: Option<Active<M>>,
    /// Guest memory as it was at the last event. Buffers that are held share it.
    memory: Option<Arc<M::T>>,
    control: Chain,
    /// There may be commands in the control queue.
    control_due: bool,
    limits: Arc<Control>,
    rx: Limited,
    tx: Limited,
    counters: Arc<Counters>,
}

/// The state of a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// The guest's MAC address.
    pub mac: Mac,
    /// The MTU in bytes.
    pub mtu: Option<u16>,
    /// How many pairs of queues the driver uses.
    pub pairs: u16,
}

impl<M: GuestAddressSpace> Net<M> {
    /// A device with a pair of queues for each link. The links are of the same kind.
    ///
    /// # Panics
    /// If there are no links or more than [`MAX_PAIRS`], if the MAC address isn't [unicast](Mac::is_unicast), or if the
    /// MTU is below [`MIN_MTU`].
    pub fn new(config: NetConfig, links: Vec<Box<dyn Link>>, report: Report) -> Self {
        assert!((1..=MAX_PAIRS).contains(&links.len()), "{}", links.len());
        assert!(config.is_possible(), "{config:?}");
        Net {
            limits: Arc::new(Control::new(config.rx, config.tx)),
            config,
            pairs: (LINKS..)
                .zip(ALARMS..)
                .zip(links)
                .map(|((token, alarm), link)| Pair::new(link, [token, alarm]))
                .collect(),
            used_pairs: 1,
            first_rx: 0,
            first_tx: 0,
            status: Status::new(report),
            active: None,
            memory: None,
            control: Chain::new(),
            control_due: false,
            rx: Limited::default(),
            tx: Limited::default(),
            counters: Arc::default(),
        }
    }

    /// Sets the limiters of what the guest receives and sends.
    #[must_use]
    pub fn with_limiters(mut self, rx: Option<Limiter>, tx: Option<Limiter>) -> Self {
        (self.rx, self.tx) = (Limited::of(rx), Limited::of(tx));
        self
    }

    /// Takes the limits from `control`, now and later.
    #[must_use]
    pub fn with_control(mut self, control: Arc<Control>) -> Self {
        self.limits = control;
        self
    }

    /// The VMM's control of the running network.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.limits)
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The number of the control queue. Without `VIRTIO_NET_F_MQ` it follows the first pair (5.1.2).
    fn control_queue(&self) -> Option<u16> {
        let features = self.active.as_ref()?.features;
        let pairs = if features & MQ != 0 {
            self.pairs.len()
        } else {
            1
        };
        // Fits: there are at most `MAX_PAIRS`.
        (features & CTRL_VQ != 0).then_some(2 * pairs as u16)
    }

    /// Executes commands, up to a limit.
    fn command(&mut self, io: &mut Io<'_>, number: u16) -> Result<(), Broken> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        let mut chain = std::mem::take(&mut self.control);
        let mut result = Ok(true);
        for _ in 0..BURST {
            result = self.command_from(io, number, &view, &mut chain);
            if result != Ok(true) {
                break;
            }
        }
        self.control = chain;
        self.control_due = result?;
        if let Some(active) = &mut self.active
            && let Some(queue) = &mut active.queues[usize::from(number)]
            && queue.needs_interrupt(&view)?
        {
            active.interrupt.queue(number);
        }
        Ok(())
    }

    /// Executes a command. Returns whether there was one.
    fn command_from(
        &mut self,
        io: &mut Io<'_>,
        number: u16,
        view: &View<'_, M::M>,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        let Some(queue) = self.queue(number) else {
            return Ok(false);
        };
        if !queue.pop(view, chain)? {
            return queue.enable_kicks(view);
        }
        let answer = match control::read(view, chain) {
            Some(Command::Pairs(count)) => self.use_pairs(io, count),
            None => ERR,
        };
        let mut writer = chain.writer(view);
        let _ = writer.write(&[answer]);
        let (head, written) = (chain.head(), writer.written());
        if let Some(queue) = self.queue(number) {
            queue.push(view, head, written)?;
        }
        Ok(true)
    }

    fn queue(&mut self, number: u16) -> Option<&mut Virtq> {
        let active = self.active.as_mut()?;
        active.queues.get_mut(usize::from(number))?.as_mut()
    }

    /// Uses this many pairs. Returns the answer to the command.
    fn use_pairs(&mut self, io: &mut Io<'_>, count: usize) -> u8 {
        let has_queues = self.active.as_ref().is_some_and(|a| a.features & MQ != 0);
        if !has_queues || !(1..=self.pairs.len()).contains(&count) {
            return ERR;
        }
        let mut answer = OK;
        for index in 0..self.pairs.len() {
            let (before, now) = (index < self.used_pairs, index < count);
            if before == now {
                continue;
            }
            if let Err(error) = self.pairs[index].link.set_active(now) {
                answer = ERR;
                self.status.fail(io, error);
            }
            let pair = &mut self.pairs[index];
            if now {
                (pair.rx.due, pair.tx.due) = (true, true);
            } else {
                let queues = self.active.as_mut().map(|active| &mut active.queues);
                pair.stop(io, index, queues);
            }
        }
        self.used_pairs = count;
        answer
    }

    /// Notes what an event is about.
    fn note(&mut self, io: &mut Io<'_>, event: Event) {
        match event {
            Event::Queue(queue) if Some(queue) == self.control_queue() => self.control_due = true,
            Event::Queue(queue) => {
                let used = &mut self.pairs[..self.used_pairs];
                if let Some(pair) = used.get_mut(usize::from(queue / 2)) {
                    pair.kick(queue % 2 == 0);
                }
                // It does not overtake those that wait for the limit.
                match queue % 2 == 0 {
                    true => self.retry_rx(),
                    false => self.retry_tx(),
                }
            }
            Event::Source(RX_TIMER) => {
                self.rx.rest();
                self.retry_rx();
            }
            Event::Source(TX_TIMER) => {
                self.tx.rest();
                self.retry_tx();
            }
            Event::Source(BELL) => {
                self.limits.bell.hear();
                if let Err(error) = self.limit(io) {
                    self.status.unlimited(error);
                }
                self.retry_rx();
                self.retry_tx();
            }
            Event::Source(token) => {
                let used = &mut self.pairs[..self.used_pairs];
                if let Some(pair) = used.get_mut((token - LINKS) as usize % MAX_PAIRS) {
                    pair.ready();
                    // The event may be older than the failure.
                    if self.status.state() == State::Down && pair.is_writable() {
                        self.status.restore(io);
                        self.wake();
                    }
                }
            }
        }
    }

    /// Looks again at the pairs that wait until the limit allows to receive more.
    fn retry_rx(&mut self) {
        for pair in &mut self.pairs {
            pair.rx.due |= std::mem::take(&mut pair.rx.throttled);
        }
    }

    /// Looks again at the pairs that wait until the limit allows to send more.
    fn retry_tx(&mut self) {
        for pair in &mut self.pairs {
            pair.tx.due |= std::mem::take(&mut pair.tx.throttled);
        }
    }

    /// Looks at all pairs in use, after the link is up again.
    fn wake(&mut self) {
        for pair in &mut self.pairs[..self.used_pairs] {
            (pair.rx.due, pair.tx.due) = (true, true);
        }
    }
}

impl<M: GuestAddressSpace + Send> Device<M> for Net<M>
where
    M::T: Send + Sync,
{
    type State = NetState;

    const KIND: &'static str = "net";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        let has_headers = self.pairs.iter().all(|pair| pair.link.has_headers());
        config::layout(&self.config, self.pairs.len(), has_headers)
    }

    fn config(&self, out: &mut Vec<u8>) {
        let is_up = self.status.is_up();
        config::config(&self.config, self.pairs.len(), is_up, out);
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        if active.features & MQ == 0 {
            self.used_pairs = 1;
        }
        let limited = self.listen(io).map_err(|source| StartError {
            what: "the network's limits can't be kept",
            source,
        });
        if let Err(error) = limited.and_then(|()| self.connect(io, active.features)) {
            self.unwatch(io);
            return Err(error);
        }
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        self.note(io, event);
        if self.control_due
            && let Some(number) = self.control_queue()
        {
            self.command(io, number)?;
        }
        self.serve(io)
    }

    fn stop(&mut self, io: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let Some(mut active) = self.active.take() else {
            return Ok(Vec::new());
        };
        (self.memory, self.control_due) = (None, false);
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            pair.stop(io, index, Some(&mut active.queues));
        }
        self.unwatch(io);
        let states = active.queues.iter().map(|queue| queue.as_ref());
        states
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {
        self.used_pairs = 1;
        self.pairs.iter_mut().for_each(|pair| pair.link.forget());
    }

    fn save(&self) -> NetState {
        NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            // Fits: there are at most `MAX_PAIRS`.
            pairs: self.used_pairs as u16,
        }
    }

    fn restore(&mut self, _: u32, state: NetState) -> Result<(), RestoreError> {
        let NetState { mac, mtu, pairs } = state;
        if !mac.is_unicast() {
            return Err(RestoreError::Value(
                "the MAC address is not that of an interface",
            ));
        }
        if mtu.is_some() != self.config.mtu.is_some() || mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(RestoreError::Value("the MTU is not that of this device"));
        }
        if !(1..=self.pairs.len()).contains(&usize::from(pairs)) {
            return Err(RestoreError::Value(
                "the driver uses more queues than there are",
            ));
        }
        (self.config.mac, self.config.mtu) = (mac, mtu);
        self.used_pairs = pairs.into();
        self.pairs.iter_mut().for_each(|pair| pair.link.forget());
        Ok(())
    }
}

impl<M: GuestAddressSpace> fmt::Debug for Net<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("config", &self.config)
            .field("pairs", &self.pairs.len())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
