// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames of the guest: from a transmit queue to a link (virtio 1.4, 5.1.9.2).

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use vm_memory::GuestMemory;

use super::header;
use super::link::{Link, LinkError};
use super::turn::{BURST, Means, Turn};
use crate::segments::places;
use crate::sys::{Gather, HEADER, MAX_FRAME};

/// The shortest frame in bytes: Ethernet's header.
const MIN_FRAME: u64 = 14;

/// Sends the frames of a pair of queues.
#[derive(Default)]
pub(super) struct Sender {
    chain: Chain,
    gather: Gather,
    /// The chains of this turn's frames, without written bytes.
    returned: Vec<(u16, u32)>,
    /// There may be something to do.
    pub(super) due: bool,
    /// The last turn sent a frame.
    pub(super) sent: bool,
    /// It waits for the limiter.
    pub(super) throttled: bool,
    /// It waits for the link.
    pub(super) blocked: bool,
}

impl Sender {
    /// Sends frames, up to a limit. Without a link they are dropped. The driver gets all of them back at once.
    pub(super) fn serve<G: GuestMemory>(
        &mut self,
        link: Option<&mut dyn Link>,
        queue: &mut Virtq,
        view: &View<'_, G>,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        let turn = self.send_all(link, queue, view, means);
        let pushed = queue.push_all(view, &self.returned);
        self.returned.clear();
        turn.and_then(|turn| pushed.map(|()| turn))
    }

    fn send_all<G: GuestMemory>(
        &mut self,
        mut link: Option<&mut dyn Link>,
        queue: &mut Virtq,
        view: &View<'_, G>,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        self.blocked = false;
        queue.disable_kicks(view)?;
        for _ in 0..BURST {
            if !means.allows() {
                self.throttled = true;
                return Ok(Turn::Rest);
            }
            if !queue.pop(view, &mut self.chain)? {
                if queue.enable_kicks(view)? {
                    continue;
                }
                return Ok(self.flush(link));
            }
            let head = self.chain.head();
            let sent = match &mut link {
                Some(link) => self.send(*link, view, means),
                None => Ok(None),
            };
            if let Err(LinkError::Busy) = sent {
                queue.unpop(head);
                self.blocked = true;
                return Ok(Turn::Rest);
            }
            self.returned.push((head, 0));
            match sent {
                Ok(Some(len)) => {
                    means.done(len);
                    self.sent = true;
                }
                Ok(None) => means.count.dropped(),
                Err(error) => {
                    means.count.dropped();
                    return Ok(Turn::Failed(error));
                }
            }
        }
        Ok(Turn::More)
    }

    /// Sends a frame. Returns its length, or `None` if it is malformed.
    fn send<G: GuestMemory>(
        &mut self,
        link: &mut dyn Link,
        view: &View<'_, G>,
        means: &Means<'_>,
    ) -> Result<Option<usize>, LinkError> {
        let len = self.chain.readable_len();
        let range = HEADER as u64 + MIN_FRAME..=(HEADER + MAX_FRAME) as u64;
        if !range.contains(&len) {
            return Ok(None);
        }
        let Ok(header) = self.chain.reader(view).read_obj() else {
            return Ok(None);
        };
        let mut header = header::bytes(header);
        if !header::outgoing(&mut header, means.features) {
            return Ok(None);
        }
        let segments = places(self.chain.readable());
        let Some(mut frame) = self.gather.frame(view, header, segments) else {
            return Ok(None);
        };
        link.send(&mut frame)?;
        Ok(Some(frame.len()))
    }

    /// Sends what the link holds back.
    fn flush(&mut self, link: Option<&mut dyn Link>) -> Turn {
        match link.map(|link| link.flush()) {
            None | Some(Ok(()) | Err(LinkError::Refused(_))) => Turn::Rest,
            Some(Err(LinkError::Busy)) => {
                self.blocked = true;
                Turn::Rest
            }
            Some(Err(error)) => Turn::Failed(error),
        }
    }
}
