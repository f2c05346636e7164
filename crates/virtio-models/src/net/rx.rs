// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames for the guest: from a link into the buffers of a receive queue (virtio 1.4, 5.1.9.3 and 5.1.9.4).

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_transport::Broken;
use virtio_transport::chain::{Chain, Segment};
use virtio_transport::queue::Virtq;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddressSpace, GuestMemory, Permissions};

use super::config::MRG_RXBUF;
use super::header;
use super::link::{Link, LinkError};
use super::turn::{BURST, Means, Turn};
use crate::sys::{Fit, HEADER, MAX_FRAME, Space};

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
    held: VecDeque<Chain>,
    /// Chains to use again.
    spare: Vec<Chain>,
    /// The length of a frame that needs more buffers than were there.
    parked: Option<usize>,
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

    /// Receives frames, up to a limit.
    pub(super) fn serve(
        &mut self,
        link: &mut dyn Link,
        queue: &mut Virtq,
        memory: &Arc<M::T>,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        self.wants = false;
        for _ in 0..BURST {
            if !means.allows() {
                self.throttled = true;
                return Ok(Turn::Rest);
            }
            if !self.refill(queue, memory, means)? {
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
                self.deliver(queue, memory, means, len)?;
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
        memory: &Arc<M::T>,
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
            if !queue.pop(&***memory, &mut chain)? {
                self.keep(chain);
                if self.parked.is_none() && !self.held.is_empty() {
                    return Ok(true);
                }
                if queue.enable_kicks(&***memory)? {
                    continue;
                }
                return Ok(false);
            }
            // A chain that isn't held goes back: the next turn has space for it, or the queue is returned.
            let head = chain.head();
            let held = self.hold(memory, chain);
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
    fn hold(&mut self, memory: &Arc<M::T>, chain: Chain) -> Result<Option<Chain>, Broken> {
        if chain.writable_len() < HEADER as u64 {
            let what = "a receive buffer is shorter than a frame's header";
            return Err(Broken::Device(what));
        }
        match self.space.add(memory, places(chain.writable())) {
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
        queue: &mut Virtq,
        memory: &Arc<M::T>,
        means: &mut Means<'_>,
        len: usize,
    ) -> Result<(), Broken> {
        let mut header = *self.space.header();
        if !header::incoming(&mut header, len, means.features, means.mtu) {
            self.drop(means);
            return Ok(());
        }
        let memory = &***memory;
        let mut left = HEADER + len;
        self.returned.clear();
        for chain in &self.held {
            // Fits: it is at most `left`.
            let here = chain.writable_len().min(left as u64) as usize;
            mark(memory, chain.writable(), here);
            self.returned.push((chain.head(), here as u32));
            left -= here;
            if left == 0 {
                break;
            }
        }
        let count = self.returned.len() as u16;
        header[10..].copy_from_slice(&count.to_le_bytes());
        if let Some(first) = self.held.front() {
            let written = first.writer(memory).write(&header);
            written.map_err(|_| Broken::Device("a receive buffer is not in guest memory"))?;
        }
        queue.push_all(memory, &self.returned)?;
        for _ in 0..count {
            self.space.remove_first();
            if let Some(chain) = self.held.pop_front() {
                self.keep(chain);
            }
        }
        means.done(len);
        Ok(())
    }

    /// Keeps a chain to use it again.
    fn keep(&mut self, chain: Chain) {
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

/// Segments as addresses and lengths.
pub(super) fn places(
    segments: &[Segment],
) -> impl Iterator<Item = (vm_memory::GuestAddress, usize)> + '_ {
    let place = |segment: &Segment| (segment.address, segment.len as usize);
    segments.iter().map(place)
}

/// Marks the first `len` bytes of these segments as written.
fn mark<G: GuestMemory>(memory: &G, segments: &[Segment], mut len: usize) {
    for (address, here) in places(segments) {
        let here = here.min(len);
        len -= here;
        let slices = memory.get_slices(address, here, Permissions::Write);
        for slice in slices.into_iter().flatten().flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
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
            assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
            receiver.keep(chain);
            kept.push(receiver.spare.len());
        }
        assert_eq!(kept, [1, 2, 3, 3, 3]);
    }
}
