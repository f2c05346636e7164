// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keys that disks and networks share.

use std::num::NonZeroU64;

use serde::de;
use serde::{Deserializer, Serializer};

use super::words::{self, Number};

/// The usual number of queues.
pub(super) const fn one() -> u16 {
    1
}

/// A number of queues. Its range is checked later; no number of queues is as large as the largest.
pub(super) fn queues<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let Number(queues) = words::word(from)?;
    Ok(u16::try_from(queues).unwrap_or(u16::MAX))
}

/// Bytes per second.
pub(super) fn bandwidth<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<NonZeroU64>, D::Error> {
    rate(words::word(from)?, "bandwidth")
}

/// Requests or frames per second.
pub(super) fn iops<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NonZeroU64>, D::Error> {
    let Number(iops) = words::word(from)?;
    rate(iops, "iops")
}

fn rate<E: de::Error>(rate: u64, key: &str) -> Result<Option<NonZeroU64>, E> {
    match NonZeroU64::new(rate) {
        Some(rate) => Ok(Some(rate)),
        None => Err(E::custom(format_args!(
            "with {key}=0 it would never answer"
        ))),
    }
}

/// Serializes bytes per second.
pub(super) fn write_bandwidth<S: Serializer>(
    rate: &Option<NonZeroU64>,
    to: S,
) -> Result<S::Ok, S::Error> {
    words::write_size(&rate.map_or(0, NonZeroU64::get), to)
}
