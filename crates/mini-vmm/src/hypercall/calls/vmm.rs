// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The calls of [`para_abi::vmm`], except for the one that writes to the console.

use log::info;
use para_abi::KvmErrno;

use super::{Answer, Caller};
use crate::outcome::{Outcome, OutcomeLatch};
use crate::start_time;

/// Logs at level info that the guest reached a point of its boot.
pub(super) fn boot_mark(caller: &Caller, args: &[u64; 6]) -> Answer {
    info!(
        "boot mark {:#x} of vCPU {} at {:.3} ms",
        args[0],
        caller.vcpu,
        start_time::elapsed().as_secs_f64() * 1e3
    );
    Ok(0)
}

/// Ends the run with the guest's status. The vCPU exits before the guest sees the answer, unless the run has already
/// ended.
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
}
