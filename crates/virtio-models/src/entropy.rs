// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device: random numbers from the host's `getrandom` (virtio 1.4, section 5.4).

use std::fmt;
use std::time::Instant;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Device, Event, Interest, Io, RestoreError, StartError};
use virtio_transport::layout::{Layout, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::queue::{NotDrained, QueueState};
use vm_memory::{GuestAddressSpace, GuestMemory};

use crate::rate::Limiter;

/// The device ID (virtio 1.4, section 5).
const ID: u16 = 4;
/// The size of its queue, in entries. Linux has one request in flight.
const QUEUE_SIZE: u16 = 64;
/// The most random bytes for one request. A driver asks again for the rest.
pub const MAX_REQUEST: u64 = 64 << 10;
/// Requests per turn; then other devices of the thread have theirs.
const BURST: usize = 16;
/// The token of the limiter's timer.
const TIMER: u32 = 0;
/// Bytes requested from the host at once. Up to 256, a signal doesn't interrupt the call (getrandom(2)).
const PIECE: usize = 256;

const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};

/// Fills the driver's buffers with random bytes.
///
/// Each request is answered at once with at most [`MAX_REQUEST`] bytes. So no request holds the thread for long. A host
/// without entropy, as shortly after its boot, gives no bytes: the answer's length is 0.
///
/// # Example
/// ```
/// use virtio_models::entropy::Entropy;
/// use virtio_transport::{AnyDevice, testing::Memory};
///
/// let device: Box<dyn AnyDevice<Memory>> = Box::new(Entropy::new());
/// assert_eq!(device.layout().id, 4);
/// ```
pub struct Entropy<M> {
    active: Option<Active<M>>,
    chain: Chain,
    limiter: Option<Limiter>,
}

/// The state of an [`Entropy`]: it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyState {}

impl<M> Entropy<M> {
    /// A device without a driver.
    pub const fn new() -> Self {
        Entropy {
            active: None,
            chain: Chain::new(),
            limiter: None,
        }
    }

    /// Sets the limiter: of the random bytes, and of the requests.
    #[must_use]
    pub fn with_limiter(mut self, limiter: Option<Limiter>) -> Self {
        self.limiter = limiter;
        self
    }
}

impl<M> Default for Entropy<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> fmt::Debug for Entropy<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy")
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

/// Fills a chain's buffers. Returns the number of bytes written.
fn fill<M: GuestMemory>(view: &View<'_, M>, chain: &Chain) -> u32 {
    let mut writer = chain.writer(view);
    let mut left = writer.left().min(MAX_REQUEST) as usize;
    let mut random = [0; PIECE];
    while left != 0 {
        let piece = &mut random[..left.min(PIECE)];
        let filled = retry_on_intr(|| getrandom(&mut *piece, GetRandomFlags::NONBLOCK));
        let Ok(filled @ 1..) = filled else { break };
        match writer.write(&piece[..filled]) {
            Ok(()) => left -= filled,
            Err(_) => break,
        }
    }
    writer.written()
}

impl<M: GuestAddressSpace + Send> Device<M> for Entropy<M> {
    type State = EntropyState;

    const KIND: &'static str = "entropy";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        Layout {
            id: ID,
            features: RING_FEATURES,
            requires: &[],
            queues: vec![QUEUE_SIZE],
            config_len: 0,
        }
    }

    fn config(&self, _: &mut Vec<u8>) {}

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        if let Some(limiter) = &self.limiter {
            let what = "the host can't limit its random numbers";
            let watched = io.watch(limiter.source(), TIMER, READABLE);
            watched.map_err(|source| StartError { what, source })?;
        }
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        if let (Event::Source(TIMER), Some(limiter)) = (event, &mut self.limiter) {
            limiter.rest();
        }
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.first_mut().and_then(Option::as_mut) else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        let mut has_more = true;
        for _ in 0..BURST {
            if self
                .limiter
                .as_mut()
                .is_some_and(|limiter| !limiter.allows())
            {
                // The timer ends the wait.
                has_more = false;
                break;
            }
            if queue.pop(&view, &mut self.chain)? {
                let written = fill(&view, &self.chain);
                self.limiter
                    .iter_mut()
                    .for_each(|limiter| limiter.count(written.into()));
                queue.push(&view, self.chain.head(), written)?;
            } else if !queue.enable_kicks(&view)? {
                has_more = false;
                break;
            }
        }
        if has_more {
            io.again();
        }
        if queue.needs_interrupt(&view)? {
            active.interrupt.queue(0);
        }
        Ok(())
    }

    fn stop(&mut self, io: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        if let Some(limiter) = &self.limiter {
            let _ = io.unwatch(limiter.source(), TIMER);
        }
        let queues = self.active.take().map(|active| active.queues);
        let queues = queues.unwrap_or_default();
        let states = queues.iter().map(|queue| queue.as_ref());
        states
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {}

    fn save(&self) -> EntropyState {
        EntropyState {}
    }

    fn restore(&mut self, _: u32, _: EntropyState) -> Result<(), RestoreError> {
        Ok(())
    }
}
