// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `KVM_HC_KICK_CPU`, `KVM_HC_SEND_IPI` and `KVM_HC_SCHED_YIELD`.

use std::thread;

use para_abi::KvmErrno;

use super::{Answer, Caller};
use crate::irq::MsiSender;
use crate::layout::msi_address;

/// Bits of the local APIC's interrupt command register (Intel SDM volume 3A, "Interrupt Command Register"). An MSI's
/// data has the same bits at the same positions.
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0x700;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const ASSERT: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const SHORTHAND: u64 = 0xc_0000;

/// Delivery modes, at their bit position.
const FIXED: u64 = 0;
const LOWEST_PRIORITY: u64 = 0x100;
const REMOTE_READ: u64 = 0x300;
const INIT: u64 = 0x500;

/// The handlers of a machine whose APIC IDs are 0 to `cpus - 1`.
pub(super) struct InterruptCalls {
    pub(super) msi: MsiSender,
    pub(super) cpus: u8,
}

impl InterruptCalls {
    /// Sends an interrupt to the vCPU with this APIC ID, never a broadcast. Returns whether its local APIC accepted it.
    /// Vector, delivery mode and trigger mode are in bits 0 to 10 and 15, as in the interrupt command register.
    pub(super) fn deliver(&self, apic_id: u8, what: u16) -> bool {
        let address = msi_address(apic_id);
        let data = u32::from(what) | ASSERT as u32;
        // An error means that no local APIC has this ID.
        self.msi.signal(address, data).unwrap_or(false)
    }

    /// Wakes a vCPU from HLT, even with interrupts disabled: KVM does so for the delivery mode that hardware calls
    /// "remote read". Then the caller yields, as in KVM. KVM reports no error for a missing vCPU, so neither does this.
    pub(super) fn kick(&self, args: &[u64; 6]) -> Answer {
        // KVM uses 32 bits of it.
        let apic_id = args[1] as u32;
        if apic_id < u32::from(self.cpus) {
            self.deliver(apic_id as u8, REMOTE_READ as u16);
        }
        thread::yield_now();
        Ok(0)
    }

    /// Sends one interrupt to each vCPU of a bitmap.
    pub(super) fn send_ipi(&self, caller: &Caller, args: &[u64; 6]) -> Answer {
        let [low, high, first, icr, ..] = *args;
        if icr & (LOGICAL_DESTINATION | SHORTHAND) != 0 {
            return Err(KvmErrno::KVM_EINVAL);
        }
        // When de-asserted, level-triggered modes have no effect. KVM treats SIPI, NMI, SMI and kicks as edges.
        let has_level = matches!(icr & DELIVERY_MODE, FIXED | LOWEST_PRIORITY | INIT);
        if has_level && icr & LEVEL_TRIGGERED != 0 && icr & ASSERT == 0 {
            return Ok(0);
        }
        let what = (icr & (VECTOR | DELIVERY_MODE | LEVEL_TRIGGERED)) as u16;
        let (low, high, width) = match caller.long_mode {
            true => (low, high, 64),
            false => (low & 0xffff_ffff, high & 0xffff_ffff, 32),
        };
        // KVM uses 32 bits of the first ID. The sum with the second word's offset may wrap around to 0.
        let first = first as u32;
        let mut taken = 0;
        for (first, targets) in [(first, low), (first.wrapping_add(width), high)] {
            let first = u64::from(first);
            for apic_id in first..u64::from(self.cpus).min(first + 64) {
                if targets >> (apic_id - first) & 1 != 0 {
                    taken += u64::from(self.deliver(apic_id as u8, what));
                }
            }
        }
        Ok(taken)
    }

    /// Yields the host CPU. Linux has no call to name the vCPU that the guest waits for.
    pub(super) fn sched_yield(&self) -> Answer {
        thread::yield_now();
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::irq::Msi;
    use crate::sync::lock;

    const KERNEL: Caller = Caller {
        vcpu: 0,
        cpl: 0,
        long_mode: true,
    };
    const FIXED_0X40: u64 = ASSERT | 0x40;
    const NMI: u64 = 0x400;
    const SMI: u64 = 0x200;
    const STARTUP: u64 = 0x600;

    /// The APIC IDs and data of messages, without the bit that all of them have.
    type Recorder = Arc<Mutex<Vec<(u8, u16)>>>;

    /// Calls whose messages are recorded. The vCPUs of `deaf` accept none.
    fn calls(cpus: u8, deaf: &[u8]) -> (InterruptCalls, Recorder) {
        let (recorder, deaf) = (Recorder::default(), deaf.to_vec());
        let seen = Arc::clone(&recorder);
        let msi = MsiSender::new(move |Msi { address, data }| {
            let apic_id = (address >> 12) as u8;
            assert_eq!(address, msi_address(apic_id));
            assert_eq!(u64::from(data) & ASSERT, ASSERT);
            lock(&seen).push((apic_id, (u64::from(data) ^ ASSERT) as u16));
            Ok(!deaf.contains(&apic_id))
        });
        (InterruptCalls { msi, cpus }, recorder)
    }

    fn seen(recorder: &Recorder) -> Vec<(u8, u16)> {
        std::mem::take(&mut lock(recorder))
    }

    #[test]
    fn a_kick_goes_to_the_second_argument() {
        let (calls, recorder) = calls(4, &[]);
        assert_eq!(calls.kick(&[9, 3, 0, 0, 0, 0]), Ok(0));
        assert_eq!(seen(&recorder), [(3, 0x300)]);
    }

    #[test]
    fn a_kick_of_nobody_reaches_nobody() {
        let (calls, recorder) = calls(4, &[]);
        for id in [4, 0xff, 0x100, 0xffff_ffff, u64::MAX] {
            assert_eq!(calls.kick(&[0, id, 0, 0, 0, 0]), Ok(0));
        }
        assert_eq!(seen(&recorder), []);
        // KVM uses 32 bits.
        assert_eq!(calls.kick(&[0, 1 << 32 | 1, 0, 0, 0, 0]), Ok(0));
        assert_eq!(seen(&recorder), [(1, 0x300)]);
    }

    #[test]
    fn ipis_go_to_the_bitmap_and_are_counted() {
        let (calls, recorder) = calls(64, &[3]);
        let answer = calls.send_ipi(&KERNEL, &[0b1011, 0, 2, FIXED_0X40, 0, 0]);
        assert_eq!(answer, Ok(2), "2 and 5 took it, 3 did not");
        assert_eq!(seen(&recorder), [(2, 0x40), (3, 0x40), (5, 0x40)]);
        // The high word starts 64 IDs further on, or 32 for a 32-bit caller, whose registers have no upper halves.
        let args = [0, 1, 1, NMI | ASSERT, 0, 0];
        assert_eq!(calls.send_ipi(&KERNEL, &args), Ok(0), "there is no vCPU 65");
        let legacy = Caller {
            long_mode: false,
            ..KERNEL
        };
        assert_eq!(calls.send_ipi(&legacy, &args), Ok(1));
        assert_eq!(seen(&recorder), [(33, 0x400)]);
    }

    #[test]
    fn destinations_that_are_no_bitmap_are_refused() {
        let (calls, recorder) = calls(2, &[]);
        for icr in [LOGICAL_DESTINATION, 0x4_0000, 0x8_0000, 0xc_0000] {
            let answer = calls.send_ipi(&KERNEL, &[3, 0, 0, icr | FIXED_0X40, 0, 0]);
            assert_eq!(answer, Err(KvmErrno::KVM_EINVAL), "{icr:#x}");
        }
        assert_eq!(seen(&recorder), []);
    }

    #[test]
    fn a_deasserted_level_is_for_nobody() {
        let (calls, recorder) = calls(2, &[]);
        for (icr, count) in [
            (LEVEL_TRIGGERED | 0x40, 0),
            (LEVEL_TRIGGERED | LOWEST_PRIORITY | 0x40, 0),
            (LEVEL_TRIGGERED | INIT, 0),
            (LEVEL_TRIGGERED | ASSERT | INIT, 2),
            (LEVEL_TRIGGERED | NMI, 2),
            (LEVEL_TRIGGERED | SMI, 2),
            (LEVEL_TRIGGERED | REMOTE_READ, 2),
            (LEVEL_TRIGGERED | STARTUP, 2),
            (0x40, 2),
        ] {
            let answer = calls.send_ipi(&KERNEL, &[3, 0, 0, icr, 0, 0]);
            assert_eq!(answer, Ok(count), "{icr:#x}");
            assert_eq!(seen(&recorder).len() as u64, count);
        }
    }

    #[test]
    fn an_asserted_level_is_passed_on_as_one() {
        let (calls, recorder) = calls(1, &[]);
        for (icr, what) in [
            (FIXED_0X40, 0x40),
            (0x40, 0x40),
            (LEVEL_TRIGGERED | FIXED_0X40, 0x8040),
            (LEVEL_TRIGGERED | ASSERT | LOWEST_PRIORITY | 0x41, 0x8141),
            // Bits without a meaning, such as the delivery status.
            (FIXED_0X40 | 1 << 12 | 1 << 13 | 1 << 20 | 1 << 63, 0x40),
        ] {
            let answer = calls.send_ipi(&KERNEL, &[1, 0, 0, icr, 0, 0]);
            assert_eq!((answer, seen(&recorder)), (Ok(1), vec![(0, what)]));
        }
    }

    #[test]
    fn the_second_word_may_wrap_around_to_the_first_vcpus() {
        let (calls, recorder) = calls(3, &[]);
        let legacy = Caller {
            long_mode: false,
            ..KERNEL
        };
        for (caller, first, ids) in [
            (&KERNEL, 0xffff_ffc0, vec![0, 2]),
            (&KERNEL, 0xffff_ffc1, vec![1]),
            (&KERNEL, 0xffff_ffbf, vec![]),
            (&KERNEL, 0xffff_ffe0, vec![]),
            (&legacy, 0xffff_ffe0, vec![0, 2]),
            // The first word doesn't wrap.
            (&KERNEL, u64::MAX, vec![]),
        ] {
            let args = [u64::MAX, 0b101, first, FIXED_0X40, 0, 0];
            assert_eq!(calls.send_ipi(caller, &args), Ok(ids.len() as u64));
            let seen: Vec<_> = seen(&recorder).into_iter().map(|(id, _)| id).collect();
            assert_eq!(seen, ids, "{first:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bitmap_reaches_beyond_the_machine(args: [u64; 6], cpus in 1u8..=64, long_mode: bool) {
            let (calls, recorder) = calls(cpus, &[]);
            let caller = Caller { long_mode, ..KERNEL };
            let answer = calls.send_ipi(&caller, &args);
            calls.kick(&args).unwrap();
            let seen = seen(&recorder);
            prop_assert!(seen.iter().all(|(id, _)| *id < cpus));
            prop_assert!(answer.is_err() || answer.unwrap() <= u64::from(cpus));
        }
    }
}
