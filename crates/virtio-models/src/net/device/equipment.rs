// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a network uses on the host: its links and its limiters, which the VMM may change.

use std::io;

use virtio_transport::device::{Io, StartError};
use vm_memory::GuestAddressSpace;

use super::{BELL, Net, RX_TIMER, TX_TIMER};
use crate::net::config::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6};
use crate::net::link::{LinkError, Offloads};
use crate::net::pair::READABLE;

impl<M: GuestAddressSpace> Net<M> {
    /// Sets up the links for a driver. Returns an error if they don't do what is offered.
    pub(super) fn connect(&mut self, io: &mut Io<'_>, features: u64) -> Result<(), StartError> {
        let offloads = Offloads {
            csum: features & GUEST_CSUM != 0,
            tso4: features & GUEST_TSO4 != 0,
            tso6: features & GUEST_TSO6 != 0,
        };
        for index in 0..self.pairs.len() {
            let link = &mut self.pairs[index].link;
            let mut set = link.set_active(index < self.used_pairs);
            // The queues of a tap share its settings.
            if index == 0 {
                set = set.and_then(|()| link.configure(offloads));
            }
            match set {
                Err(LinkError::Refused(source)) => {
                    let what = "the network link can't be set up";
                    return Err(StartError { what, source });
                }
                Err(error) => self.status.fail(io, error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Makes or changes the limiters. They are watched then.
    pub(super) fn limit(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        let runs = self.active.is_some();
        let [rx, tx] = self.limits.limits();
        self.rx.set(io, rx, RX_TIMER, runs)?;
        self.tx.set(io, tx, TX_TIMER, runs)
    }

    /// Watches what the VMM asks for.
    pub(super) fn listen(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        self.limit(io)?;
        io.watch(self.limits.bell.source()?, BELL, READABLE)
    }

    pub(super) fn unwatch(&mut self, io: &mut Io<'_>) {
        self.rx.unwatch(io, RX_TIMER);
        self.tx.unwatch(io, TX_TIMER);
        if let Ok(bell) = self.limits.bell.source() {
            let _ = io.unwatch(bell, BELL);
        }
        for pair in &mut self.pairs {
            pair.unwatch(io);
        }
    }
}
