// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The TSCs of a saved machine, which go on as its kvmclock does.
//!
//! Linux takes its time from the TSC if that is stable, and from kvmclock if not. So both must have gone on by the same
//! time, whether the machine was saved here or on another host.

use kvm_ioctls::VcpuFd;
use vcpu_loop::kvm::{HostMoment, VcpuState};

use super::{Clock, MachineState};

/// Gives the saved vCPUs TSC offsets for this host and now, and lets a kvmclock that stood go on from the same moment.
/// `vcpu` is one of the new machine, which has not run. Returns how the state's kvmclock goes on.
///
/// Without offsets (before Linux 5.16) nothing changes: then the TSCs go on from their values.
pub fn move_here(state: &mut MachineState, vcpu: &VcpuFd, clock: Clock) -> Clock {
    let khz = state.vcpus.first().and_then(|first| first.vcpu.tsc_khz);
    let Some(khz) = khz else {
        return clock;
    };
    // A frequency that this host can't have is refused at the restore, which sets it for each vCPU.
    if vcpu.get_tsc_khz().is_ok_and(|here| here != khz) && vcpu.set_tsc_khz(khz).is_err() {
        return clock;
    }
    let Some(here) = HostMoment::of(vcpu) else {
        return clock;
    };
    let stood_at = match clock {
        // The TSCs go on from now, and kvmclock is restored later.
        Clock::Stands => state.vm.go_on_from(here.realtime_ns),
        Clock::GoesOn => None,
    };
    let vcpus = state.vcpus.iter_mut().map(|saved| &mut saved.vcpu);
    move_to(vcpus, &here, clock, stood_at, khz);
    Clock::GoesOn
}

/// Moves the TSCs to the moment `here`. All of them move by the same time, so those in sync stay so. kvmclock was read
/// after them, at the time of day `stood_at`, from which it stood.
fn move_to<'a>(
    vcpus: impl Iterator<Item = &'a mut VcpuState>,
    here: &HostMoment,
    clock: Clock,
    stood_at: Option<u64>,
    khz: u32,
) {
    let mut from: Option<HostMoment> = None;
    for vcpu in vcpus {
        let Some(tsc) = &mut vcpu.tsc else {
            continue;
        };
        from = from.or(tsc.read_at);
        let Some(from) = &from else {
            continue;
        };
        let passed_ns = match clock {
            Clock::Stands => stood_at.map_or(0, |at| at.saturating_sub(from.realtime_ns)),
            // The time of day may have gone back, and then kvmclock stands, too.
            Clock::GoesOn => here.realtime_ns.saturating_sub(from.realtime_ns),
        };
        *tsc = tsc.moved(from, here, passed_ns, khz);
    }
}

#[cfg(test)]
mod tests {
    use vcpu_loop::kvm::TscState;

    use super::*;
    use crate::snapshot::format_1::saved;

    const KHZ: u32 = 1_000_000;

    /// Two vCPUs with these offsets, read at different moments.
    fn vcpus(offsets: [u64; 2]) -> [VcpuState; 2] {
        let mut moment = (1000, 50_000);
        offsets.map(|offset| {
            moment = (moment.0 + 300, moment.1 + 300);
            let (tsc, realtime_ns) = moment;
            VcpuState {
                tsc: Some(TscState {
                    offset,
                    read_at: Some(HostMoment { tsc, realtime_ns }),
                }),
                ..saved().vcpus.remove(0).vcpu
            }
        })
    }

    fn offsets(vcpus: &[VcpuState; 2]) -> [u64; 2] {
        vcpus.each_ref().map(|vcpu| vcpu.tsc.unwrap().offset)
    }

    #[test]
    fn all_vcpus_move_by_the_same_time() {
        // The host has rebooted: its TSC is lower.
        let here = HostMoment {
            tsc: 200,
            realtime_ns: 1_050_300,
        };
        // kvmclock was read 40 ns after the first TSC.
        for (clock, stood_at, passed) in [
            (Clock::Stands, None, 0),
            (Clock::Stands, Some(50_340), 40),
            (Clock::Stands, Some(7), 0),
            (Clock::GoesOn, None, 1_000_000),
        ] {
            let mut vcpus = vcpus([7000, 7005]);
            move_to(vcpus.iter_mut(), &here, clock, stood_at, KHZ);
            let first = 7000 + 1300 - 200 + passed;
            assert_eq!(offsets(&vcpus), [first, first + 5]);
        }
    }

    #[test]
    fn a_time_of_day_that_went_back_is_no_time() {
        let here = HostMoment {
            tsc: 1300,
            realtime_ns: 1,
        };
        let mut vcpus = vcpus([7, 7]);
        move_to(vcpus.iter_mut(), &here, Clock::GoesOn, None, KHZ);
        assert_eq!(offsets(&vcpus), [7, 7]);
    }

    #[test]
    fn a_state_without_offsets_stays_as_it_is() {
        let mut vcpus = vcpus([7, 7]);
        vcpus[0].tsc = None;
        vcpus[1].tsc.as_mut().unwrap().read_at = None;
        let here = HostMoment {
            tsc: 0,
            realtime_ns: 0,
        };
        let tscs = |vcpus: &[VcpuState; 2]| vcpus.each_ref().map(|vcpu| vcpu.tsc);
        let before = tscs(&vcpus);
        move_to(vcpus.iter_mut(), &here, Clock::GoesOn, None, KHZ);
        assert_eq!(tscs(&vcpus), before);
    }
}
