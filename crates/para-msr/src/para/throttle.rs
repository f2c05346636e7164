// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeping a guest from flooding the host's log (H11).

use super::Registration;
use crate::handlers::LogLimit;

/// A [`LogLimit`] for each kind of [`Registration`], so that a flood of one kind doesn't hide the others.
///
/// ```
/// use para_msr::para::{EventThrottle, Fault, FaultReason, Registration};
///
/// let mut throttle = EventThrottle::default();
/// let event = Registration::Fault(Fault { value: 1, reason: FaultReason::Misaligned });
/// if let Some(number) = throttle.admit(&event) {
///     println!("vCPU 0: {event} (number {number})");
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventThrottle {
    registered: LogLimit,
    refused: LogLimit,
    faults: LogLimit,
}

impl EventThrottle {
    /// Counts an event, and returns its number among its kind, from 1, if it is to be logged.
    pub fn admit(&mut self, event: &Registration) -> Option<u64> {
        match event {
            Registration::Registered(_) => self.registered.next_line(),
            Registration::Refused(_) => self.refused.next_line(),
            Registration::Fault(_) => self.faults.next_line(),
        }
    }
}
