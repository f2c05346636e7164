// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's turns.

use virtio_transport::Broken;
use virtio_transport::device::Io;
use vm_memory::GuestAddressSpace;

use super::Net;
use crate::net::link::LinkError;
use crate::net::pair::Pair;
use crate::net::turn::{Means, Turn};
use crate::sys::{Guest, current};

impl<M: GuestAddressSpace> Net<M>
where
    M::T: Send + Sync,
{
    /// Serves the pairs for which there may be something to do.
    pub(super) fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let count = self.used_pairs;
        if let Some(active) = &self.active
            && self.pairs[..count].iter().any(Pair::is_due)
        {
            let memory = current(&active.memory, &mut self.memory);
            let guest = Guest::new(&memory);
            let (first_rx, first_tx) = (self.first_rx, self.first_tx);
            for index in 0..count {
                self.receive(io, (first_rx + index) % count, &guest)?;
            }
            for index in 0..count {
                let index = (first_tx + index) % count;
                self.send(io, index, &guest)?;
                if self.pairs[index].expects_answer() {
                    let before = self.counters.received();
                    self.receive(io, index, &guest)?;
                    self.pairs[index].learn(self.counters.received() != before);
                }
            }
        }
        let state = self.status.state();
        let mut failure = None;
        for pair in &mut self.pairs[..count] {
            if let Err(error) = pair.watch(io, state) {
                failure = Some(error);
            }
        }
        if let Some(error) = failure {
            self.status.fail(io, LinkError::Lost(error));
        }
        if self.control_due || self.pairs[..count].iter().any(Pair::is_due) {
            io.again();
        }
        Ok(())
    }

    fn receive(
        &mut self,
        io: &mut Io<'_>,
        index: usize,
        guest: &Guest<'_, M::T>,
    ) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let mut means = Means {
            features: active.features,
            mtu: self.config.mtu,
            limiter: self.rx.limiter.as_mut(),
            count: &self.counters.received,
        };
        let is_up = self.status.is_up();
        let before = self.counters.received();
        let turn = self.pairs[index].receive(active, index, guest, is_up, &mut means)?;
        if self.rx.limiter.is_some() && self.counters.received() != before {
            self.first_rx = index + 1;
        }
        if let Turn::Failed(error) = turn {
            self.status.fail(io, error);
        }
        Ok(())
    }

    fn send(
        &mut self,
        io: &mut Io<'_>,
        index: usize,
        guest: &Guest<'_, M::T>,
    ) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let mut means = Means {
            features: active.features,
            mtu: self.config.mtu,
            limiter: self.tx.limiter.as_mut(),
            count: &self.counters.sent,
        };
        let is_up = self.status.is_up();
        let before = self.counters.sent();
        let turn = self.pairs[index].send(active, index, guest, is_up, &mut means)?;
        if self.tx.limiter.is_some() && self.counters.sent() != before {
            self.first_tx = index + 1;
        }
        if let Turn::Failed(error) = turn {
            self.status.fail(io, error);
        }
        Ok(())
    }
}
