// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links in memory that tests control, and a driver for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use virtio_models::net::{Frame, Link, LinkError, Mac, NetConfig, Offloads, Room};

pub const HEADER: usize = 12;

pub fn config() -> NetConfig {
    NetConfig::new(Mac([2, 0, 0, 0, 0, 1]))
}

/// A frame of `len` bytes.
pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// A header of a frame that wants nothing.
pub fn header() -> Vec<u8> {
    vec![0; HEADER]
}

/// A link that always has a frame, and takes all.
pub struct Endless {
    source: OwnedFd,
}

impl Endless {
    pub const LEN: usize = 300;

    pub fn new() -> Self {
        let source = eventfd(1, EventfdFlags::NONBLOCK).expect("an eventfd");
        Endless { source }
    }
}

impl Link for Endless {
    fn source(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn configure(&mut self, _: Offloads) -> Result<(), LinkError> {
        Ok(())
    }

    fn set_active(&mut self, _: bool) -> Result<(), LinkError> {
        Ok(())
    }

    fn send(&mut self, _: &mut Frame<'_>) -> Result<(), LinkError> {
        Ok(())
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        room.fill([0; HEADER], &frame(Self::LEN))
            .map_err(LinkError::Lost)
    }
}
