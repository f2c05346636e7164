// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `KVM_HC_CLOCK_PAIRING`: the host's wall clock and the guest's TSC at one instant.

use para_abi::KvmErrno;
use para_abi::kvm::{KVM_CLOCK_PAIRING_SIZE, KVM_CLOCK_PAIRING_WALLCLOCK, kvm_clock_pairing};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Answer, Caller};

const NANOSECONDS: u64 = 1_000_000_000;

/// Two clocks, read at the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The host's CLOCK_REALTIME, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// What the guest's RDTSC would have returned.
    pub guest_tsc: u64,
}

/// Returns a pair for a vCPU; `None` if the host's clock is not based on the TSC, or the TSC offset is unknown.
pub type Clock = Box<dyn Fn(u32) -> Option<Pair> + Send + Sync>;

/// The handler.
pub(super) struct ClockCalls<M> {
    pub(super) memory: M,
    pub(super) clock: Clock,
}

impl<M: GuestMemoryBackend> ClockCalls<M> {
    /// Writes a pair to the guest's `struct kvm_clock_pairing`, all of it or nothing.
    pub(super) fn pairing(&self, caller: &Caller, args: &[u64; 6]) -> Answer {
        let [gpa, clock_type, ..] = *args;
        if clock_type != KVM_CLOCK_PAIRING_WALLCLOCK {
            return Err(KvmErrno::KVM_EOPNOTSUPP);
        }
        let pair = (self.clock)(caller.vcpu);
        let pair = pair.ok_or(KvmErrno::KVM_EOPNOTSUPP)?;
        let gpa = GuestAddress(gpa);
        if !self.memory.check_range(gpa, KVM_CLOCK_PAIRING_SIZE) {
            return Err(KvmErrno::KVM_EFAULT);
        }
        // Written through guest memory, so that a dirty bitmap sees it.
        self.memory
            .write_slice(&bytes(pair), gpa)
            .map_err(|_| KvmErrno::KVM_EFAULT)?;
        Ok(0)
    }
}

/// The pair in the guest's layout, with flags 0.
fn bytes(pair: Pair) -> [u8; KVM_CLOCK_PAIRING_SIZE] {
    let pairing = kvm_clock_pairing {
        // Both fit: 2^64 nanoseconds are 2^35 seconds.
        sec: (pair.realtime_ns / NANOSECONDS) as i64,
        nsec: (pair.realtime_ns % NANOSECONDS) as i64,
        tsc: pair.guest_tsc,
        ..Default::default()
    };
    pairing.to_bytes()
}

#[cfg(test)]
mod tests {
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{GuestMemoryMmap, GuestMemoryRegion};

    use super::*;

    const PAIR: Pair = Pair {
        realtime_ns: 1_700_000_000_123_456_789,
        guest_tsc: 0x1122_3344_5566_7788,
    };
    const VCPU_1: Caller = Caller {
        vcpu: 1,
        cpl: 0,
        long_mode: true,
    };

    /// Two adjacent regions that touch at 0x2000 and end at 0x3000; a clock that works for vCPU 1 only.
    fn calls() -> ClockCalls<GuestMemoryMmap<AtomicBitmap>> {
        let ranges = [
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x2000), 0x1000),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        ClockCalls {
            memory,
            clock: Box::new(|vcpu| (vcpu == 1).then_some(PAIR)),
        }
    }

    fn at(gpa: u64) -> [u64; 6] {
        [gpa, 0, 5, 5, 5, 5]
    }

    #[test]
    fn the_pair_is_written_as_the_header_has_it() {
        let calls = calls();
        let rest = [0xa5; KVM_CLOCK_PAIRING_SIZE];
        calls
            .memory
            .write_slice(&rest, GuestAddress(0x1800))
            .unwrap();
        assert_eq!(calls.pairing(&VCPU_1, &at(0x1800)), Ok(0));
        let read = |offset: u64| -> u64 {
            calls
                .memory
                .read_obj(GuestAddress(0x1800 + offset))
                .unwrap()
        };
        assert_eq!(read(0), 1_700_000_000);
        assert_eq!(read(8), 123_456_789);
        assert_eq!(read(16), PAIR.guest_tsc);
        for offset in (24..64).step_by(8) {
            assert_eq!(read(offset), 0, "flags and padding");
        }
    }

    #[test]
    fn h3_the_store_marks_its_page_dirty() {
        let calls = calls();
        let dirty = |region: usize, offset| {
            let region = calls.memory.iter().nth(region).unwrap();
            GuestMemoryRegion::bitmap(region).dirty_at(offset)
        };
        assert!(!dirty(1, 0x40));
        calls.pairing(&VCPU_1, &at(0x2040)).unwrap();
        assert!(dirty(1, 0x40));
        assert!(!dirty(0, 0x40));
    }

    #[test]
    fn it_may_cross_a_region_and_must_not_leave_ram() {
        let calls = calls();
        assert_eq!(calls.pairing(&VCPU_1, &at(0x1fe0)), Ok(0));
        assert_eq!(calls.pairing(&VCPU_1, &at(0x3000 - 64)), Ok(0));
        let last = GuestAddress(0x3000 - 63);
        calls.memory.write_slice(&[0xa5; 63], last).unwrap();
        for gpa in [0, 0xfff, last.0, 0x2fff, 0x3000, u64::MAX, u64::MAX - 63] {
            let answer = calls.pairing(&VCPU_1, &at(gpa));
            assert_eq!(answer, Err(KvmErrno::KVM_EFAULT), "{gpa:#x}");
        }
        // Nothing is written if it doesn't all fit.
        let byte: u8 = calls.memory.read_obj(last).unwrap();
        assert_eq!(byte, 0xa5);
    }

    #[test]
    fn other_clocks_and_hosts_without_the_pair_are_not_supported() {
        let calls = calls();
        for clock in [1, 2, 1 << 32, u64::MAX] {
            let answer = calls.pairing(&VCPU_1, &[0x1000, clock, 0, 0, 0, 0]);
            assert_eq!(answer, Err(KvmErrno::KVM_EOPNOTSUPP));
        }
        let vcpu_0 = Caller { vcpu: 0, ..VCPU_1 };
        let answer = calls.pairing(&vcpu_0, &at(0x1000));
        assert_eq!(answer, Err(KvmErrno::KVM_EOPNOTSUPP));
    }
}
