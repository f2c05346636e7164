// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon device: memory that the guest gives back to the host (virtio 1.4, section 5.5).
//!
//! The driver gives back pages because it was asked to ([`Control::set_target`]), because nobody uses them (reporting), or
//! because a round of hints was started ([`Control::start_hinting`]). The device collects pages into ranges, and passes
//! these to a [`Host`] of the VMM's. It has no mapping of its own.

mod control;
mod device;
mod host;
mod queues;
mod ranges;
mod stats;

pub use control::{Control, Counters, Counts, HintError, Hinting};
pub use device::{Balloon, BalloonState, Options};
pub use host::Host;
pub use stats::{STATS, Stats};

/// The bytes of a page, whatever the guest's page size (5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
const STATS_VQ: u8 = 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u8 = 2;
/// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`.
const FREE_PAGE_HINT: u8 = 3;
/// `VIRTIO_BALLOON_F_PAGE_POISON`.
const PAGE_POISON: u8 = 4;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const PAGE_REPORTING: u8 = 5;
