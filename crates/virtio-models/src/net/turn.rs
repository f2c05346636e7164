// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What both directions have in common.

use super::link::LinkError;
use super::report::Count;
use crate::rate::Limiter;

/// The most frames of a queue before others get a turn.
pub(super) const BURST: usize = 64;

/// What to do after a turn.
#[derive(Debug)]
pub(super) enum Turn {
    /// Wait for an event.
    Rest,
    /// There may be more frames.
    More,
    /// Nothing, until the link works.
    Failed(LinkError),
}

/// What is necessary for the frames of a direction.
pub(super) struct Means<'a> {
    pub(super) features: u64,
    pub(super) mtu: Option<u16>,
    pub(super) limiter: Option<&'a mut Limiter>,
    pub(super) count: &'a Count,
}

impl Means<'_> {
    /// Whether another frame may pass now.
    pub(super) fn allows(&mut self) -> bool {
        self.limiter.as_mut().is_none_or(|limiter| limiter.allows())
    }

    /// Counts a frame of `len` bytes that passed.
    pub(super) fn done(&mut self, len: usize) {
        self.count.frame(len);
        if let Some(limiter) = &mut self.limiter {
            limiter.count(len as u64);
        }
    }
}
