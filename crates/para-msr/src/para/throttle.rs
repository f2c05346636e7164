// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps a guest from flooding the host's log (H11).

use super::Registration;
use crate::handlers::LogLimit;

/// A [`LogLimit`] for each kind of [`Registration`], so that a flood of one kind doesn't hide the others.
///
/// ```
/// use para_msr::para::{EventThrottle, ParaMsr, PioPort, Stub};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let mut throttle = EventThrottle::default();
/// let mut para = ParaMsr::new(&memory, Stub::Pio(PioPort::DEFAULT));
/// let logged: Vec<u64> = (0..40).filter_map(|_| throttle.admit(&para.wrmsr(1))).collect();
/// assert_eq!(logged, [1, 2, 3, 4, 8, 16, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventThrottle {
    registered: LogLimit,
    refused: LogLimit,
    faults: LogLimit,
}

impl EventThrottle {
    /// Counts an event. Returns its number among events of its kind, from 1, if it should be logged.
    pub fn admit(&mut self, event: &Registration) -> Option<u64> {
        match event {
            Registration::Registered(_) => self.registered.next_line(),
            Registration::Refused(_) => self.refused.next_line(),
            Registration::Fault(_) => self.faults.next_line(),
        }
    }
}
