// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames for the guest: from a link into the buffers of a receive queue (virtio 1.4, 5.1.9.3 and 5.1.9.4).

use std::collections::VecDeque;

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use vm_memory::GuestAddressSpace;

use super::config::MRG_RXBUF;
use super::header;
use super::link::{Link, LinkError};
use super::turn::{BURST, Means, Turn};
use crate::segments::{mark, places};
use crate::sys::{Fit, Guest, HEADER, MAX_FRAME, Space};

/// The longest chains that are kept to be used again, in segments. Drivers use shorter ones. A hostile one could make
/// each chain of a queue a long one, in turn.
const KEPT: usize = 64;

/// Receives the frames of a pair of queues.
///
/// It holds buffers that the driver made available, so that a frame is read into them directly. It returns those that a
/// frame used, and puts the others back when it stops.
pub(super) struct Receiver<M: GuestAddressSpace> {
    space: Space<M::T>,
    /// The chains of `space`, in its order.
    held: VecDeque<Box<Chain>>,
    /// Chains to use again. They move from here to `held` and back.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Chain>>,
    /// The length of a frame that needs more buffers than were there.
    parked: Option<usize>,
    /// The buffers that this turn's frames used: heads and numbers of bytes.
    returned: Vec<(u16, u32)>,
    /// There may be something to do.
    pub(super) due: bool,
    /// It waits for the limiter.
    pub(super) throttled: bool,
    /// It waits for a frame. If not, it waits for buffers or the limiter, and frames wait on the host.
    pub(super) wants: bool,
}

impl<M: GuestAddressSpace> Receiver<M> {
    pub(super) fn new() -> Self {
        Receiver {
            space: Space::new(),
            held: VecDeque::new(),
            spare: Vec::new(),
            parked: None,
            returned: Vec::new(),
            due: false,
            throttled: false,
            wants: false,
        }
    }

    /// Receives frames, up to a limit. The driver sees all of them at once.
    pub(super) fn serve(
        &mut self,
        link: &mut dyn Link,
        queue: &mut Virtq,
        guest: &Guest<'_, M::T>,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        let turn = self.receive(link, queue, guest, means);
        let pushed = queue.push_all(guest.view(), &self.returned);
        self.returned.clear();
        turn.and_then(|turn| pushed.map(|()| turn))
    }

    fn receive(
        &mut self,
        link: &mut dyn Link,
        queue: &mut Virtq,
        guest: &Guest<'_, M::T>,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        self.wants = false;
        for _ in 0..BURST {
            if !means.allows() {
                self.throttled = true;
                return Ok(Turn::Rest);
            }
            if !self.refill(queue, guest, means)? {
                return Ok(Turn::Rest);
            }
            let len = match self.parked.take() {
                Some(len) => len,
                None => match link.receive(self.space.room()) {
                    Ok(len) => len,
                    Err(error @ (LinkError::Busy | LinkError::Refused(_))) => {
                        if let LinkError::Refused(_) = error {
                            means.count.dropped();
                        }
                        self.wants = true;
                        return Ok(Turn::Rest);
                    }
                    Err(error) => return Ok(Turn::Failed(error)),
                },
            };
            if len <= self.space.len() {
                self.deliver(guest.view(), means, len)?;
            } else if means.features & MRG_RXBUF != 0 {
                self.parked = Some(len);
            } else {
                self.drop(means);
            }
        }
        Ok(Turn::More)
    }

    fn drop(&mut self, means: &Means<'_>) {
        self.parked = None;
        self.space.forget();
        means.count.dropped();
    }

    /// Takes buffers, enough for any frame if there are as many. Returns `false` if it must wait for the driver.
    fn refill(
        &mut self,
        queue: &mut Virtq,
        guest: &Guest<'_, M::T>,
        means: &Means<'_>,
    ) -> Result<bool, Broken> {
        let is_merging = means.features & MRG_RXBUF != 0;
        loop {
            let is_enough = match self.parked {
                Some(len) => self.space.len() >= len,
                None if is_merging => self.space.len() >= MAX_FRAME,
                None => !self.held.is_empty(),
            };
            if is_enough {
                return Ok(true);
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            if !queue.pop(guest.view(), &mut chain)? {
                self.keep(chain);
                if self.parked.is_none() && !self.held.is_empty() {
                    return Ok(true);
                }
                if queue.enable_kicks(guest.view())? {
                    continue;
                }
                return Ok(false);
            }
            // A chain that isn't held goes back: the next turn has space for it, or the queue is returned.
            let head = chain.head();
            let held = self.hold(guest, chain);
            if !matches!(held, Ok(None)) {
                queue.unpop(head);
            }
            match held? {
                None => {}
                Some(chain) => {
                    self.keep(chain);
                    if self.parked.is_some() {
                        self.drop(means);
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// Holds a chain. Returns it if there is no space for it.
    fn hold(
        &mut self,
        guest: &Guest<'_, M::T>,
        chain: Box<Chain>,
    ) -> Result<Option<Box<Chain>>, Broken> {
        if chain.writable_len() < HEADER as u64 {
            let what = "a receive buffer is shorter than a frame's header";
            return Err(Broken::Device(what));
        }
        match self.space.add(guest, places(chain.writable())) {
            Fit::Added => self.held.push_back(chain),
            Fit::Full if !self.held.is_empty() => return Ok(Some(chain)),
            Fit::Full => return Err(Broken::Device("a receive buffer has too many pieces")),
            Fit::Bad => return Err(Broken::Device("a receive buffer is not in guest memory")),
        }
        Ok(None)
    }

    /// Returns the buffers of a frame of `len` bytes, which is in them already.
    fn deliver(
        &mut self,
        view: &View<'_, M::M>,
        means: &mut Means<'_>,
        len: usize,
    ) -> Result<(), Broken> {
        let mut header = *self.space.header();
        if !header::incoming(&mut header, len, means.features, means.mtu) {
            self.drop(means);
            return Ok(());
        }
        let Some(first) = self.held.pop_front() else {
            return Ok(());
        };
        let mut left = self.give_back(view, &first, HEADER + len);
        let mut count = 1_u16;
        while left != 0
            && let Some(chain) = self.held.pop_front()
        {
            left = self.give_back(view, &chain, left);
            self.keep(chain);
            count += 1;
        }
        header[10..].copy_from_slice(&count.to_le_bytes());
        let written = first.writer(view).write_obj(&header::words(header));
        written.map_err(|_| Broken::Device("a receive buffer is not in guest memory"))?;
        self.keep(first);
        means.done(len);
        Ok(())
    }

    /// Returns a chain, which is the first of `space`, with as many of `left` bytes as fit. Returns how many are left.
    fn give_back(&mut self, view: &View<'_, M::M>, chain: &Chain, left: usize) -> usize {
        // Fits: it is at most `left`.
        let here = chain.writable_len().min(left as u64) as usize;
        mark(view, chain.writable(), here);
        self.returned.push((chain.head(), here as u32));
        self.space.remove_first();
        left - here
    }

    /// Keeps a chain to use it again.
    fn keep(&mut self, chain: Box<Chain>) {
        if chain.capacity() <= KEPT {
            self.spare.push(chain);
        }
    }

    /// Puts all buffers back. A frame that waits for more of them is lost.
    pub(super) fn release(&mut self, queue: Option<&mut Virtq>) {
        if let Some(queue) = queue {
            for chain in self.held.iter().rev() {
                queue.unpop(chain.head());
            }
        }
        *self = Receiver::new();
    }
}

#[cfg(test)]
mod tests {
    use virtio_transport::testing::{Buffers, DriverRing, MEMORY, Memory, memory};

    use super::*;

    #[test]
    fn long_chains_are_not_kept() {
        let memory = memory(MEMORY);
        let mut ring = DriverRing::new(&memory, 0, 256);
        let features = virtio_transport::layout::INDIRECT_DESC;
        let mut queue = Virtq::new(&ring.state(), features, &*memory).expect("a queue");
        let mut receiver = Receiver::<Memory>::new();
        let mut kept = Vec::new();
        for segments in [1, 19, KEPT, KEPT + 1, 1000] {
            let buffers = Buffers {
                readable: vec![],
                writable: vec![(0x8_0000, 1); segments],
            };
            ring.send_indirect(0x4_0000, &buffers);
            let mut chain = Chain::new();
            assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
            receiver.keep(Box::new(chain));
            kept.push(receiver.spare.len());
        }
        assert_eq!(kept, [1, 2, 3, 3, 3]);
    }
}
