// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The calls of [`para_abi::vmm`] but the one that writes to the console.

use std::sync::atomic::{AtomicU32, Ordering};

use log::{Level, log_enabled};
use para_abi::KvmErrno;

use super::{Answer, Caller};
use crate::devices::LogLimit;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::start_time;

/// Boot marks that are logged at any rate: a boot has a few dozen, all within a second.
const FREE_MARKS: u32 = 256;

/// Marks logged so far and the limit beyond, of the whole process: a reset must not renew them.
static MARKS: Marks = Marks {
    free: AtomicU32::new(FREE_MARKS),
    limit: LogLimit::new(),
};

/// What bounds the log of a guest that sets marks for ever.
struct Marks {
    free: AtomicU32,
    limit: LogLimit,
}

impl Marks {
    /// Whether a mark may be logged.
    fn admit(&self) -> bool {
        let take = |free: u32| free.checked_sub(1);
        let free = &self.free;
        free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Logs a mark with the time since the VMM's start.
    fn log(&self, vcpu: u32, mark: u64) {
        // Counted only where somebody reads them.
        if !log_enabled!(Level::Info) {
            return;
        }
        let ms = start_time::elapsed().as_secs_f64() * 1e3;
        let line = format_args!("boot mark {mark:#x} of vCPU {vcpu} at {ms:.3} ms");
        match self.admit() {
            true => log::info!("{line}"),
            false => self.limit.info(line),
        }
    }
}

/// Does nothing, for who measures the way here and back.
pub(super) fn nop() -> Answer {
    Ok(0)
}

/// Logs, at level info, how far the guest is.
pub(super) fn boot_mark(caller: &Caller, args: &[u64; 6]) -> Answer {
    MARKS.log(caller.vcpu, args[0]);
    Ok(0)
}

/// Ends the run with a status of the guest's choice. The vCPU leaves the guest before it sees the
/// answer, unless the run is over already.
pub(super) fn exit(outcome: &OutcomeLatch, args: &[u64; 6]) -> Answer {
    let status = u8::try_from(args[0]).map_err(|_| KvmErrno::KVM_EINVAL)?;
    outcome.set(Outcome::GuestExit(status));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_is_the_outcome_and_not_twice() {
        let latch = OutcomeLatch::new().unwrap();
        for status in [256, 0x100_0000_0000, u64::MAX] {
            let answer = exit(&latch, &[status, 0, 0, 0, 0, 0]);
            assert_eq!(answer, Err(KvmErrno::KVM_EINVAL));
        }
        assert_eq!(latch.get(), None);
        assert_eq!(exit(&latch, &[255, 1, 1, 1, 1, 1]), Ok(0));
        assert_eq!(exit(&latch, &[0; 6]), Ok(0));
        assert_eq!(latch.get(), Some(Outcome::GuestExit(255)));
    }

    #[test]
    fn marks_have_an_end() {
        let marks = Marks {
            free: AtomicU32::new(2),
            limit: LogLimit::new(),
        };
        let admitted: Vec<bool> = (0..5).map(|_| marks.admit()).collect();
        assert_eq!(admitted, [true, true, false, false, false]);
        assert_eq!(marks.free.load(Ordering::Relaxed), 0);
    }
}
