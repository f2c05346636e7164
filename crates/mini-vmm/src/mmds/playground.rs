// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The service without a machine, for tests and fuzzing. Time passes only when it is told to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::packet::MAX_FRAME;
use super::stack::MAX_CONNECTIONS;
use super::{ADDRESS, MmdsSpec, Service, Stack, Store, Version, is_for};

/// The service with a document.
#[derive(Debug)]
pub struct Playground {
    stack: Stack,
    now: Instant,
}

impl Playground {
    /// The service, with what is in `store`.
    pub fn new(version: Version, imds_compat: bool, store: Store) -> Self {
        let service = Service::new(&MmdsSpec {
            version,
            nets: Vec::new(),
            address: ADDRESS,
            imds_compat,
            store,
        });
        Playground {
            stack: Stack::new(Arc::new(service), ADDRESS),
            now: Instant::now(),
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// Sends a frame to the service. Returns whether it is for the service; others go to the network.
    pub fn send(&mut self, frame: &[u8], pair: usize) -> bool {
        let is_ours = is_for(frame, ADDRESS);
        if is_ours {
            self.stack.take(frame, pair, self.now);
        }
        is_ours
    }

    /// The next frame for a pair of queues, if there is one now.
    ///
    /// # Panics
    /// The service holds more than it should, or doesn't keep its word about when there is a frame.
    pub fn receive(&mut self, pair: usize) -> Option<Vec<u8>> {
        let (connections, replies) = self.stack.sizes();
        assert!(connections <= MAX_CONNECTIONS && replies <= 64);
        let promised = self.stack.wake_at(pair, self.now);
        let mut frame = Vec::new();
        let has_one = self.stack.next(pair, self.now, &mut frame);
        let is_promised = promised.is_some_and(|at| at <= self.now);
        assert!(is_promised || !has_one, "a frame without a promise");
        assert!(frame.len() <= MAX_FRAME);
        has_one.then_some(frame)
    }

    /// How long until there is a frame, if nothing more is sent.
    pub fn next_in(&self, pair: usize) -> Option<Duration> {
        let at = self.stack.wake_at(pair, self.now)?;
        Some(at.saturating_duration_since(self.now))
    }

    /// The number of connections.
    pub fn connections(&self) -> usize {
        self.stack.sizes().0
    }
}
