// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of a whole machine. Its VM-wide part is what KVM keeps per VM, besides vCPUs and our devices.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vcpu_loop::kvm::hex;
use vm_memory::GuestMemoryMmap;

use crate::cpu;
use crate::devices::{Saved, SavedOverlay};
use crate::machine::MachineVcpuState;
use crate::memory::Served;

/// A machine's state without its memory: plain data, untrusted when it comes from a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// The vCPUs, in order.
    pub vcpus: Vec<MachineVcpuState>,
    /// What KVM keeps per VM.
    pub vm: VmState,
    /// The devices.
    pub devices: Vec<Saved>,
}

impl MachineState {
    /// Sets what the call of a vCPU returns: RAX.
    pub fn answer(&mut self, vcpu: u32, answer: u32) {
        if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
            state.vcpu.regs.rax = answer.into();
        }
    }

    /// The vendor string of its CPUs (CPUID leaf 0), or an empty one.
    pub fn cpu_vendor(&self) -> String {
        let leaves = self.vcpus.first().map(|first| &first.vcpu.cpuid);
        leaves.map_or_else(String::new, |leaves| cpu::vendor(leaves))
    }
}

/// A machine that goes on elsewhere: its memory, and its state.
#[derive(Debug)]
pub struct Frozen {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The process that brings its pages, if there is one.
    pub served: Option<Served>,
    /// Everything else.
    pub state: Box<MachineState>,
    /// What it wrote to disks with overlays.
    pub overlays: Vec<SavedOverlay>,
    /// How its clock goes on.
    pub clock: Clock,
}

/// What KVM keeps per VM, in its own structures (KVM API 4.26, 4.29, 4.71).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The two PICs and the IOAPIC.
    #[serde(with = "hex")]
    chips: [kvm_irqchip; CHIPS.len()],
    /// The interval timer, if the machine has one.
    #[serde(with = "hex::option", default)]
    pit: Option<kvm_pit_state2>,
    /// kvmclock, in nanoseconds.
    clock_ns: u64,
    /// The host's time of day at that moment, in nanoseconds since 1970, if KVM has it (since Linux 5.16).
    #[serde(default)]
    realtime_ns: Option<u64>,
}

/// How a restored machine's kvmclock and TSCs go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// From its saved value, as if no time had passed.
    Stands,
    /// With the time that has passed since the save, by the hosts' time of day.
    GoesOn,
}

/// The interrupt controllers by KVM's numbers, in the order of [`VmState`].
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Why VM-wide state can't be saved or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// KVM refused a call.
    #[error("KVM can't {step} ({reason}); run `mini-vmm check`, and look at the host's kernel log")]
    Kvm {
        /// The step.
        step: &'static str,
        /// KVM's error.
        reason: kvm_ioctls::Error,
    },
    /// Only one of machine and saved state has the interval timer.
    #[error(
        "the machine {} an interval timer and its saved state {}: restore it with the --legacy-timer that it was saved \
         with",
        if *in_machine { "has" } else { "lacks" },
        if *in_machine { "does not" } else { "has one" }
    )]
    Timer {
        /// Whether the machine is the one that has it.
        in_machine: bool,
    },
    /// The state has no time of day from which passed time could be counted.
    #[error(
        "the saved state has no time of day, since its host's kernel was older than 5.16; let its clock go on from where \
         it stood"
    )]
    NoRealtime,
    /// The state has a chip in another one's place.
    #[error(
        "the saved state has interrupt controller {found} in the place of {expected}; it is damaged, take a new one"
    )]
    Chip {
        /// KVM's number of the expected chip.
        expected: u32,
        /// KVM's number of the chip in the state.
        found: u32,
    },
}

/// Adds the step that KVM refused to its error.
fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |reason| Error::Kvm { step, reason }
}

impl VmState {
    /// Reads the timer and the interrupt controllers, without kvmclock. No vCPU may run. Save the local APICs afterwards.
    ///
    /// While vCPUs are stopped, the timer still ticks. KVM passes a tick on to the interrupt controllers and from there
    /// to a local APIC, and keeps no trace of it in what it has passed. So what sends is read before what receives: a
    /// tick between two reads is in the second one.
    ///
    /// # Errors
    /// [`Error::Kvm`] names the call.
    pub fn save_interrupts(vm: &VmFd, has_timer: bool) -> Result<Self, Error> {
        let pit = match has_timer {
            true => Some(vm.get_pit2().map_err(kvm("read the interval timer"))?),
            false => None,
        };
        let mut chips = [kvm_irqchip::default(); CHIPS.len()];
        for (chip, id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = id;
            vm.get_irqchip(chip)
                .map_err(kvm("read an interrupt controller"))?;
        }
        Ok(VmState {
            chips,
            pit,
            clock_ns: 0,
            realtime_ns: None,
        })
    }

    /// Reads kvmclock.
    ///
    /// # Errors
    /// [`Error::Kvm`] names the call.
    pub fn save_clock(&mut self, vm: &VmFd) -> Result<(), Error> {
        let clock = vm.get_clock().map_err(kvm("read kvmclock"))?;
        self.clock_ns = clock.clock;
        self.realtime_ns = (clock.flags & KVM_CLOCK_REALTIME != 0).then_some(clock.realtime);
        Ok(())
    }

    /// Checks that the state fits a machine with or without an interval timer. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Timer`] or [`Error::Chip`].
    pub fn check(&self, has_timer: bool) -> Result<(), Error> {
        if self.pit.is_some() != has_timer {
            let in_machine = has_timer;
            return Err(Error::Timer { in_machine });
        }
        match self
            .chips
            .iter()
            .zip(CHIPS)
            .find(|(chip, id)| chip.chip_id != *id)
        {
            None => Ok(()),
            Some((chip, expected)) => Err(Error::Chip {
                expected,
                found: chip.chip_id,
            }),
        }
    }

    /// Writes the interrupt controllers and the timer. Restore the local APICs first: writing the IOAPIC makes KVM
    /// deliver what is pending in it, and a local APIC restored later would lose that.
    ///
    /// The timer's period starts again, since KVM doesn't save its phase.
    ///
    /// # Errors
    /// [`Error::Kvm`] names the call.
    pub fn restore_interrupts(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(kvm("write an interrupt controller"))?;
        }
        match &self.pit {
            Some(pit) => vm.set_pit2(pit).map_err(kvm("write the interval timer")),
            None => Ok(()),
        }
    }

    /// Checks that kvmclock can go on so.
    ///
    /// # Errors
    /// [`Error::NoRealtime`].
    pub fn check_clock(&self, clock: Clock) -> Result<(), Error> {
        match (clock, self.realtime_ns) {
            (Clock::GoesOn, None) => Err(Error::NoRealtime),
            _ => Ok(()),
        }
    }

    /// Lets kvmclock go on from its saved value at a later time of day, in nanoseconds since 1970, as if it had been saved
    /// then. Returns the time of day at which it was.
    pub fn go_on_from(&mut self, realtime_ns: u64) -> Option<u64> {
        self.realtime_ns.replace(realtime_ns)
    }

    /// Resumes kvmclock from its saved value. Call it last, so that it includes little of the restore's own time.
    ///
    /// # Errors
    /// [`Error::Kvm`] names the call.
    pub fn restore_clock(&self, vm: &VmFd, goes: Clock) -> Result<(), Error> {
        let mut clock = kvm_clock_data {
            clock: self.clock_ns,
            ..Default::default()
        };
        if let (Clock::GoesOn, Some(realtime)) = (goes, self.realtime_ns) {
            // KVM adds what has passed since then, unless the time of day went back (KVM API 4.30).
            (clock.realtime, clock.flags) = (realtime, KVM_CLOCK_REALTIME);
        }
        vm.set_clock(&clock).map_err(kvm("set kvmclock"))
    }
}

impl std::fmt::Debug for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmState")
            .field("has_timer", &self.pit.is_some())
            .field("clock_ns", &self.clock_ns)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(pit: bool) -> VmState {
        VmState {
            chips: CHIPS.map(|chip_id| kvm_irqchip {
                chip_id,
                ..Default::default()
            }),
            pit: pit.then(kvm_pit_state2::default),
            clock_ns: 1,
            realtime_ns: Some(2),
        }
    }

    #[test]
    fn a_timer_on_one_side_alone_is_refused() {
        for timer in [false, true] {
            assert_eq!(state(timer).check(timer), Ok(()));
            let in_machine = !timer;
            assert_eq!(
                state(timer).check(in_machine),
                Err(Error::Timer { in_machine })
            );
        }
    }

    #[test]
    fn a_chip_in_the_place_of_another_is_refused() {
        for (place, expected) in CHIPS.into_iter().enumerate() {
            let mut bad = state(false);
            bad.chips[place].chip_id = 7;
            assert_eq!(bad.check(false), Err(Error::Chip { expected, found: 7 }));
        }
    }

    #[test]
    fn time_can_pass_only_if_its_start_was_saved() {
        let mut state = state(false);
        assert_eq!(state.check_clock(Clock::GoesOn), Ok(()));
        state.realtime_ns = None;
        assert_eq!(state.check_clock(Clock::Stands), Ok(()));
        assert_eq!(state.check_clock(Clock::GoesOn), Err(Error::NoRealtime));
    }

    #[test]
    fn text_loses_nothing() {
        let text = serde_json::to_string(&state(true)).unwrap();
        let parsed: VmState = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
        assert!(
            serde_json::from_str::<VmState>(r#"{"chips": [], "pit": null, "clock_ns": 0}"#)
                .is_err()
        );
    }
}
