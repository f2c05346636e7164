// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that returns what it reads. The suite was developed with it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddressSpace;

use crate::broken::Broken;
use crate::chain::Chain;
use crate::device::{Active, Device, Event, Interest, Io, RestoreError, StartError};
use crate::layout::{Layout, RING_FEATURES};
use crate::memory::View;
use crate::queue::{NotDrained, QueueState};

/// Bytes are returned inverted.
const INVERT: u64 = 1;
/// Bytes are returned swapped in pairs. Requires [`INVERT`].
const SWAP: u64 = 2;

/// Returns what it reads, inverted if the driver accepted feature 0. What doesn't fit is dropped.
///
/// Queue 0 is answered at once. Queue 1 is answered through a source, one request per event, so that requests are in
/// flight meanwhile. The configuration has six bytes: the number of answered requests (four bytes), a key that the
/// driver can write, and a constant.
pub struct Echo<M> {
    active: Option<Active<M>>,
    chain: Chain,
    held: Vec<Chain>,
    bell: Bell,
    state: EchoState,
}

/// The state of an [`Echo`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoState {
    /// How many requests were answered since the reset.
    pub answered: u32,
    /// The byte that the driver wrote, at most 128.
    pub key: u8,
}

/// A source that the device can make ready.
#[derive(Debug)]
struct Bell(UnixStream, UnixStream);

impl Bell {
    fn new() -> Self {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        near.set_nonblocking(true).expect("a socket");
        Bell(near, far)
    }

    fn ring(&mut self) {
        self.1.write_all(&[1]).expect("a socket");
    }

    /// Consumes one event.
    fn take(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(1))
    }
}

impl<M> Echo<M> {
    /// An idle device.
    ///
    /// # Panics
    /// If the host has no sockets left.
    pub fn new() -> Self {
        Echo {
            active: None,
            chain: Chain::new(),
            held: Vec::new(),
            bell: Bell::new(),
            state: EchoState::default(),
        }
    }

    /// The number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.held.len()
    }
}

impl<M> Default for Echo<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> std::fmt::Debug for Echo<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Echo")
            .field("active", &self.active)
            .field("held", &self.held.len())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Answers one request. Returns the number of bytes written.
fn answer<M: GuestAddressSpace>(
    active: &Active<M>,
    view: &View<'_, M::M>,
    chain: &Chain,
    state: EchoState,
) -> Result<u32, Broken> {
    let len = chain.readable_len().min(chain.writable_len()).min(1 << 16);
    let mut data = vec![0; len as usize];
    if chain.reader(view).read(&mut data).is_err() {
        return Ok(0);
    }
    if data.first() == Some(&0xee) {
        return Err(Broken::Device("the guest asked the echo device to break"));
    }
    let mask = if active.features & INVERT != 0 {
        0xff
    } else {
        0
    };
    data.iter_mut().for_each(|byte| *byte ^= mask ^ state.key);
    if active.features & SWAP != 0 {
        data.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    }
    let mut writer = chain.writer(view);
    let written = writer.write(&data);
    Ok(written.map_or(0, |()| writer.written()))
}

impl<M: GuestAddressSpace + Send> Echo<M> {
    /// The most requests per event.
    const BURST: usize = 16;

    fn finish(&mut self, queue: usize, chain: &Chain) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        let written = answer(active, &view, chain, self.state);
        self.state.answered = self.state.answered.wrapping_add(1);
        if let Some(virtq) = active.queues.get_mut(queue).and_then(Option::as_mut) {
            virtq.push(&view, chain.head(), *written.as_ref().unwrap_or(&0))?;
            if virtq.needs_interrupt(&view)? {
                active.interrupt.queue(queue as u16);
            }
        }
        written.map(drop)
    }

    /// Takes requests from a queue, up to a limit.
    fn take(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        for _ in 0..Self::BURST {
            let Some(active) = &mut self.active else {
                return Ok(());
            };
            let Some(virtq) = active.queues.get_mut(queue).and_then(Option::as_mut) else {
                return Ok(());
            };
            let memory = active.memory.memory();
            let view = View::new(&*memory);
            let mut chain = std::mem::take(&mut self.chain);
            if virtq.pop(&view, &mut chain)? {
                if queue == 0 {
                    self.finish(queue, &chain)?;
                    self.chain = chain;
                } else {
                    self.held.push(chain);
                    self.bell.ring();
                }
            } else if !virtq.enable_kicks(&view)? {
                self.chain = chain;
                return Ok(());
            }
        }
        io.again();
        Ok(())
    }

    /// Answers the newest request in flight, so answers are out of order.
    fn complete(&mut self) -> Result<(), Broken> {
        if !self.bell.take() {
            return Ok(());
        }
        match self.held.pop() {
            Some(chain) => self.finish(1, &chain),
            None => Ok(()),
        }
    }
}

impl<M: GuestAddressSpace + Send> Device<M> for Echo<M> {
    type State = EchoState;

    const KIND: &'static str = "echo";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        Layout {
            id: 42,
            features: RING_FEATURES | INVERT | SWAP,
            requires: &[(1, 0)],
            queues: vec![64, 32],
            config_len: 6,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        out.extend(self.state.answered.to_le_bytes());
        out.extend([self.state.key, 0x42]);
    }

    fn set_config(&mut self, _: &mut Io<'_>, at: u32, data: &[u8]) {
        let key = 4_u32.checked_sub(at).and_then(|at| data.get(at as usize));
        if let Some(key) = key {
            self.state.key = (*key).min(128);
        }
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        let interest = Interest {
            readable: true,
            writable: false,
        };
        io.watch(self.bell.0.as_fd(), 7, interest)
            .map_err(|source| StartError {
                what: "the bell can't be watched",
                source,
            })?;
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        let answered = self.state.answered;
        let processed = match event {
            Event::Queue(queue) => self.take(io, queue.into()),
            Event::Source(_) => self.complete(),
        };
        if self.state.answered / 1000 != answered / 1000 {
            io.config_changed();
        }
        processed
    }

    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        // Its requests complete at once, but past the deadline it must not wait for them.
        while !self.held.is_empty() && Instant::now() < by {
            let _ = self.complete();
        }
        let in_flight = self.held.len() as u16;
        if in_flight != 0 {
            return Err(NotDrained { in_flight });
        }
        let Some(active) = self.active.take() else {
            return Ok(Vec::new());
        };
        let _ = io.unwatch(self.bell.0.as_fd(), 7);
        let states = active.queues.iter();
        states
            .map(|queue| queue.as_ref().map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {
        self.state = EchoState::default();
    }

    fn save(&self) -> EchoState {
        self.state
    }

    fn restore(&mut self, _: u32, state: EchoState) -> Result<(), RestoreError> {
        if state.key > 128 {
            return Err(RestoreError::Value("the echo's key is above 128"));
        }
        self.state = state;
        Ok(())
    }
}
