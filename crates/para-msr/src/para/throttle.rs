// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeping a guest from flooding the host's log (H11).

use super::Registration;

/// Lets the first few of any number of equal events through, then only those whose number is a power of two:
/// a log gets less than 70 lines from it, whatever the guest does, and still shows how often it happened.
///
/// ```
/// use para_msr::para::Throttle;
///
/// let mut throttle = Throttle::default();
/// let logged: Vec<u64> = (0..1000).filter_map(|_| throttle.admit()).collect();
/// assert_eq!(logged, [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    seen: u64,
}

impl Throttle {
    /// So many events are let through before only powers of two are.
    pub const FIRST: u64 = 4;

    /// Counts an event, and returns its number, from 1, if it is to be logged.
    pub fn admit(&mut self) -> Option<u64> {
        self.seen = self.seen.saturating_add(1);
        (self.seen <= Self::FIRST || self.seen.is_power_of_two()).then_some(self.seen)
    }

    /// How many events were counted.
    pub const fn seen(&self) -> u64 {
        self.seen
    }
}

/// A [`Throttle`] for each kind of [`Registration`], so that a flood of one kind doesn't hide the others.
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
    registered: Throttle,
    refused: Throttle,
    faults: Throttle,
}

impl EventThrottle {
    /// Counts an event, and returns its number among its kind, from 1, if it is to be logged.
    pub fn admit(&mut self, event: &Registration) -> Option<u64> {
        match event {
            Registration::Registered(_) => self.registered.admit(),
            Registration::Refused(_) => self.refused.admit(),
            Registration::Fault(_) => self.faults.admit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h11_a_flood_of_events_gets_few_lines() {
        let mut throttle = Throttle { seen: u64::MAX - 2 };
        assert_eq!(throttle.admit(), None);
        assert_eq!(throttle.admit(), None);
        assert_eq!(throttle.admit(), None, "the count doesn't wrap");
        assert_eq!(throttle.seen(), u64::MAX);
        let lines = (0..64)
            .filter(|bit| {
                Throttle {
                    seen: (1 << bit) - 1,
                }
                .admit()
                .is_some()
            })
            .count();
        assert_eq!(lines, 64, "every power of two is a line, with 3 one more");
    }
}
