// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When to tell a guest that it was stopped (`KVM_KVMCLOCK_CTRL`).
//!
//! The flag makes a Linux guest ignore its watchdogs once, even for a real lock-up. So it is set only after pauses that
//! a watchdog could notice, and not, for example, after a short pause to read a register.

use std::time::{Duration, Instant};

/// The shortest time-out of Linux's watchdogs, `kernel.watchdog_thresh=1` (Linux's
/// Documentation/admin-guide/lockup-watchdogs.rst).
const NOTICEABLE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// It runs, or never ran: it missed nothing.
    Nothing,
    /// The time of the pause.
    Pause(Instant),
    /// It was restored; the time since the save is unknown.
    Unknown,
}

/// How long a vCPU has not run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    since: Since,
    noticeable: Duration,
}

impl Stopped {
    pub(super) const NEVER: Stopped = Stopped {
        since: Since::Nothing,
        noticeable: NOTICEABLE,
    };

    pub(super) fn set_noticeable(&mut self, noticeable: Duration) {
        self.noticeable = noticeable;
    }

    pub(super) fn paused(&mut self, now: Instant) {
        if self.since == Since::Nothing {
            self.since = Since::Pause(now);
        }
    }

    pub(super) fn restored(&mut self) {
        self.since = Since::Unknown;
    }

    /// Notes that the vCPU runs again, and returns whether to tell the guest.
    pub(super) fn resuming(&mut self, now: Instant) -> bool {
        match std::mem::replace(&mut self.since, Since::Nothing) {
            Since::Nothing => false,
            Since::Pause(then) => now.saturating_duration_since(then) >= self.noticeable,
            Since::Unknown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_of_what_it_could_notice() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut stopped = Stopped::NEVER;
        assert!(!stopped.resuming(at(5000)), "it never ran");
        stopped.paused(at(6000));
        assert!(!stopped.resuming(at(6999)), "too short");
        stopped.paused(at(7000));
        stopped.paused(at(7999));
        assert!(stopped.resuming(at(8000)), "since the first pause");
        assert!(!stopped.resuming(at(20_000)), "told already");
        stopped.paused(at(21_000));
        stopped.restored();
        assert!(stopped.resuming(at(21_001)), "saved at an unknown time");
        stopped.set_noticeable(Duration::ZERO);
        stopped.paused(at(22_000));
        assert!(stopped.resuming(at(22_000)));
    }
}
