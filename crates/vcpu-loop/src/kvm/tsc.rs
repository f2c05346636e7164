// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The TSC part of a vCPU's state.
//!
//! KVM has two ways to set a TSC (KVM API, "Generic vcpu interface", `KVM_VCPU_TSC_OFFSET`). A value written to the MSR
//! is inexact: if it is within a second of the other vCPUs' value, KVM changes it to theirs. An offset to the host's
//! TSC is exact: vCPUs that were in sync stay in sync, and those that were not keep their difference. But an offset is
//! valid only on the host where it was read, until that host reboots.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{Error, Result};
use crate::sys::calls;

/// `IA32_TIME_STAMP_COUNTER` (Intel SDM, volume 4, table 2-2).
pub(super) const MSR_TSC: u32 = 0x10;

/// How far the TSC and the real-time clock of one host may disagree about elapsed time: the real-time clock may be
/// stepped by this many nanoseconds, and their frequencies may differ by one part in `DRIFT`.
const STEP_NS: i128 = 1_000_000_000;
const DRIFT: i128 = 1000;

/// How often the two clocks of a [`HostMoment`] are read at most, and how many nanoseconds around the TSC's reading are
/// close enough. Linux' watchdog of clocks takes a guest's TSC for unstable if it and kvmclock drift apart by about
/// 250 µs between two looks (`WATCHDOG_MAX_SKEW` in `kernel/time/clocksource.c`).
const READINGS: u32 = 8;
const CLOSE_NS: u64 = 20_000;

/// A vCPU's TSC as an offset, if KVM has `KVM_VCPU_TSC_OFFSET` (since Linux 5.16).
///
/// On the same host, without a reboot, a restore writes the offset, so the guest's TSC includes the time since the
/// save. Otherwise, the TSC continues from the saved value of MSR 0x10. [`moved`](Self::moved) makes one for a host and a
/// time of the VMM's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TscState {
    /// The guest's TSC minus the host's, at the guest's frequency, modulo 2^64.
    pub offset: u64,
    /// When it was read. `None` if the offset was computed for the host that restores it, for example by the KVM API's
    /// algorithm for migration; then a restore always writes it.
    pub read_at: Option<HostMoment>,
}

impl TscState {
    /// The state for another host, or the same one later: by KVM's formula for migration (KVM API, "Generic vcpu
    /// interface", `KVM_VCPU_TSC_OFFSET`). The guest's TSC, which runs at `khz`, had its value at the moment `from`. At the
    /// moment `to` it is `passed_ns` nanoseconds later. vCPUs that are moved by the same moments stay in sync.
    #[must_use]
    pub fn moved(self, from: &HostMoment, to: &HostMoment, passed_ns: u64, khz: u32) -> Self {
        // Modulo 2^64, as the TSC itself.
        let passed = u128::from(passed_ns) * u128::from(khz) / 1_000_000;
        let host = from.tsc.wrapping_sub(to.tsc);
        TscState {
            offset: self.offset.wrapping_add(host).wrapping_add(passed as u64),
            read_at: None,
        }
    }
}

/// A moment on two clocks of a host. Two moments tell whether they are from the same host and boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostMoment {
    /// The host's TSC, at the guest's frequency.
    pub tsc: u64,
    /// Nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl HostMoment {
    /// This moment, at the frequency that `vcpu` has now. `None` if KVM has no offset (before Linux 5.16), or the TSC
    /// can't be read. The vCPU must not be in the guest.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        HostMoment::now(vcpu, calls::tsc_offset(vcpu).ok()?)
    }

    /// The thread may lose its CPU between the two clocks. So both are read again until they are close, and the closest
    /// reading counts.
    fn now(fd: &VcpuFd, offset: u64) -> Option<Self> {
        let mut closest: Option<(u64, Self)> = None;
        for _ in 0..READINGS {
            let before = realtime_ns()?;
            let tsc = read(fd)?.wrapping_sub(offset);
            let apart = realtime_ns()?.abs_diff(before);
            if closest.is_none_or(|(least, _)| apart < least) {
                let realtime_ns = before + apart / 2;
                closest = Some((apart, HostMoment { tsc, realtime_ns }));
            }
            if apart <= CLOSE_NS {
                break;
            }
        }
        closest.map(|(_, moment)| moment)
    }

    /// Whether both clocks advanced by the same time until `later`, if the TSC runs at `khz`.
    fn is_of_the_host_of(&self, later: &HostMoment, khz: u32) -> bool {
        let (Some(ticks), true) = (later.tsc.checked_sub(self.tsc), khz > 0) else {
            return false;
        };
        let by_tsc = i128::from(ticks) * 1_000_000 / i128::from(khz);
        let by_clock = i128::from(later.realtime_ns) - i128::from(self.realtime_ns);
        (by_tsc - by_clock).abs() <= STEP_NS + by_tsc / DRIFT
    }
}

/// `None` if KVM has no offset, or the TSC can't be read.
pub(super) fn save(fd: &VcpuFd) -> Option<TscState> {
    let offset = calls::tsc_offset(fd).ok()?;
    let read_at = Some(HostMoment::now(fd, offset)?);
    Some(TscState { offset, read_at })
}

/// Sets the offset, and returns whether it did; if not, the caller restores the TSC as an MSR. The frequency must
/// already be set.
pub(super) fn restore(fd: &VcpuFd, saved: &TscState) -> Result<bool> {
    let Ok(now) = calls::tsc_offset(fd) else {
        return Ok(false);
    };
    if let Some(read_at) = saved.read_at {
        let khz = fd.get_tsc_khz().unwrap_or(0);
        let here = HostMoment::now(fd, now);
        if !here.is_some_and(|here| read_at.is_of_the_host_of(&here, khz)) {
            return Ok(false);
        }
    }
    calls::set_tsc_offset(fd, saved.offset).map_err(|source| Error::Call {
        call: "KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)",
        source,
    })?;
    Ok(true)
}

/// The time of day, in nanoseconds since 1970.
fn realtime_ns() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// The guest's TSC.
fn read(fd: &VcpuFd) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: MSR_TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    let read = fd.get_msrs(&mut msrs).ok()?;
    msrs.as_slice()[..read].first().map(|msr| msr.data)
}

/// Reads the difference between a vCPU's TSC and the host's, at any time, without the [`KvmVcpu`](super::KvmVcpu).
#[derive(Debug)]
pub struct TscOffset {
    vcpu: OwnedFd,
}

impl TscOffset {
    /// The offset of `vcpu`, to be read later; `None` if the process has no file descriptor left. KVM has the offset
    /// since Linux 5.16. This doesn't check, which saves a call at start-up; an older KVM fails the
    /// [`read`](Self::read).
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        let vcpu = calls::duplicate(vcpu).ok()?;
        Some(TscOffset { vcpu })
    }

    /// The current value of the guest's TSC minus the host's, modulo 2^64. KVM blocks the call while the vCPU is in the
    /// guest, so call it on the vCPU's own thread.
    ///
    /// # Errors
    /// KVM's error.
    pub fn read(&self) -> io::Result<u64> {
        calls::tsc_offset(&self.vcpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 GHz.
    const KHZ: u32 = 2_000_000;
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_moved_tsc_stands_or_goes_on_and_vcpus_stay_in_sync() {
        let [from, to] =
            [(5_000, 10), (900, 70)].map(|(tsc, realtime_ns)| HostMoment { tsc, realtime_ns });
        for (offset, passed_ns) in [
            (0, 0),
            (0, 3 * SECOND),
            (u64::MAX - 7, 0),
            (1 << 63, u64::MAX),
        ] {
            let saved = TscState {
                offset,
                read_at: Some(from),
            };
            let there = saved.moved(&from, &to, passed_ns, KHZ);
            assert_eq!(there.read_at, None);
            let [before, after] = [
                from.tsc.wrapping_add(offset),
                to.tsc.wrapping_add(there.offset),
            ];
            assert_eq!(after.wrapping_sub(before), passed_ns.wrapping_mul(2));
            let other = TscState {
                offset: offset.wrapping_add(40),
                ..saved
            };
            let other = other.moved(&from, &to, passed_ns, KHZ);
            assert_eq!(other.offset.wrapping_sub(there.offset), 40);
        }
    }

    #[test]
    fn one_host_is_told_from_another() {
        let moment = |ticks: u64, realtime_ns: u64| HostMoment {
            tsc: ticks,
            realtime_ns,
        };
        let saved = moment(100 * SECOND, 1000 * SECOND);
        let same = |later: HostMoment| saved.is_of_the_host_of(&later, KHZ);
        // Ten seconds, and a clock that was stepped by a little less than a second.
        assert!(same(saved));
        assert!(same(moment(120 * SECOND, 1010 * SECOND)));
        assert!(same(moment(120 * SECOND, 1009 * SECOND + 1)));
        // A month, with a clock that is 500 ppm wrong.
        let month = 30 * 24 * 3600;
        let wrong = month + month / 2000;
        assert!(same(moment(
            (100 + 2 * month) * SECOND,
            (1000 + wrong) * SECOND
        )));
        // Hosts that booted earlier or later, or have another clock.
        assert!(!same(moment(200 * SECOND, 1010 * SECOND)));
        assert!(!same(moment(99 * SECOND, 1010 * SECOND)));
        assert!(!same(moment(120 * SECOND, 500 * SECOND)));
        assert!(!saved.is_of_the_host_of(&saved, 0));
        let end = moment(u64::MAX, u64::MAX);
        assert!(!moment(0, u64::MAX).is_of_the_host_of(&end, 1));
        assert!(!moment(0, 0).is_of_the_host_of(&end, 1));
    }
}
