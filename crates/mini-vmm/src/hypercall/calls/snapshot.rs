// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VMM_HC_SNAPSHOT`: the guest asks for a snapshot of itself.
//!
//! The handler only notes who asks, and that vCPU leaves the guest. The control loop then pauses the others, writes the
//! snapshot, and answers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use para_abi::KvmErrno;

use super::{Answer, Caller};
use crate::sync::lock;

/// The shortest time between two snapshots. A guest that asks in a loop can't keep the host's disk busy.
const INTERVAL: Duration = Duration::from_secs(1);

/// No vCPU waits.
const NOBODY: u32 = u32::MAX;

/// What a guest has asked for.
#[derive(Debug)]
pub struct SelfSnapshots {
    asked: Mutex<Asked>,
    /// The vCPU that waits, or [`NOBODY`]. Each call of the guest reads it, so it needs no lock.
    waits: AtomicU32,
}

impl Default for SelfSnapshots {
    fn default() -> Self {
        SelfSnapshots {
            asked: Mutex::default(),
            waits: AtomicU32::new(NOBODY),
        }
    }
}

#[derive(Debug, Default)]
struct Asked {
    /// Who waits for a snapshot.
    by: Option<Caller>,
    /// When the last snapshot was finished.
    last: Option<Instant>,
}

impl SelfSnapshots {
    /// Notes a call, for which the flags in argument 0 must be 0. The answer is the original's, if all goes well.
    pub(super) fn ask(&self, caller: &Caller, args: &[u64; 6], now: Instant) -> Answer {
        if args[0] != 0 {
            return Err(KvmErrno::KVM_EINVAL);
        }
        let mut asked = lock(&self.asked);
        let is_soon = |last| now.saturating_duration_since(last) < INTERVAL;
        if asked.by.is_some() || asked.last.is_some_and(is_soon) {
            return Err(KvmErrno::KVM_EAGAIN);
        }
        asked.by = Some(*caller);
        self.waits.store(caller.vcpu, Ordering::Release);
        Ok(0)
    }

    /// Whether this vCPU waits for a snapshot. Then it must run no guest code.
    pub(super) fn is_caller(&self, vcpu: u32) -> bool {
        self.waits.load(Ordering::Relaxed) == vcpu
    }

    /// Who waits for a snapshot.
    pub fn caller(&self) -> Option<Caller> {
        match self.waits.load(Ordering::Acquire) {
            NOBODY => None,
            _ => lock(&self.asked).by,
        }
    }

    /// The caller has its answer at `now`.
    pub fn answered(&self, now: Instant) {
        *lock(&self.asked) = Asked {
            by: None,
            last: Some(now),
        };
        self.waits.store(NOBODY, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller {
        vcpu: 1,
        cpl: 0,
        long_mode: true,
    };

    #[test]
    fn one_at_a_time_and_not_too_often() {
        let (snapshots, start) = (SelfSnapshots::default(), Instant::now());
        let ask = |at| snapshots.ask(&CALLER, &[0, 7, 7, 7, 7, 7], start + at);
        assert_eq!(snapshots.caller(), None);
        assert_eq!(ask(Duration::ZERO), Ok(0));
        assert_eq!(snapshots.caller(), Some(CALLER));
        assert!(snapshots.is_caller(1) && !snapshots.is_caller(0));
        // It may take long.
        assert_eq!(ask(100 * INTERVAL), Err(KvmErrno::KVM_EAGAIN));
        snapshots.answered(start + 200 * INTERVAL);
        assert_eq!(snapshots.caller(), None);
        assert!(!snapshots.is_caller(1));
        let almost = 201 * INTERVAL - Duration::from_nanos(1);
        assert_eq!(ask(almost), Err(KvmErrno::KVM_EAGAIN));
        assert_eq!(ask(201 * INTERVAL), Ok(0));
    }

    #[test]
    fn flags_are_for_later() {
        let snapshots = SelfSnapshots::default();
        for flags in [1, 1 << 32, u64::MAX] {
            let answer = snapshots.ask(&CALLER, &[flags, 0, 0, 0, 0, 0], Instant::now());
            assert_eq!(answer, Err(KvmErrno::KVM_EINVAL));
        }
        assert_eq!(snapshots.caller(), None);
    }
}
