// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The plan of a machine: a pure value, made from its description before anything is created.

use std::borrow::Cow;

use pci_root::Window;

use crate::config::VmSpec;
use crate::devices::{self, Slot};
use crate::irq::NoPin;

/// The plan of a machine. The ACPI tables and the bus are both built from it, so they can't disagree.
#[derive(Clone, Debug)]
pub struct MachinePlan {
    /// vCPUs, 1 to [`MAX_CPUS`](crate::layout::MAX_CPUS); APIC ids count from 0.
    pub cpus: u8,
    /// Whether the machine has a PC's PIT and PIC. Linux ignores both on a hardware-reduced platform, so the platform
    /// then has fixed hardware.
    pub legacy_timer: bool,
    /// The devices that KVM does not emulate, in the order of their creation.
    pub devices: Vec<Slot>,
}

impl MachinePlan {
    /// The plan of the machine that `spec` describes.
    ///
    /// # Errors
    /// Its devices need more interrupt lines than the machine has.
    pub fn new(spec: &VmSpec) -> Result<Self, NoPin> {
        Ok(MachinePlan {
            cpus: spec.cpus,
            legacy_timer: spec.legacy_timer,
            devices: devices::plan(spec)?,
        })
    }

    /// The kernel's command line: the user's `said`, followed by the words that devices need.
    pub(crate) fn cmdline<'a>(&self, said: &'a str) -> Cow<'a, str> {
        let mut cmdline = Cow::Borrowed(said);
        for words in self
            .devices
            .iter()
            .filter_map(|device| device.cmdline.as_ref())
        {
            let line = cmdline.to_mut();
            line.push(' ');
            line.push_str(words);
        }
        cmdline
    }

    /// Addresses in the hole that the guest leaves alone, as (start, bytes).
    pub(crate) fn reserved(&self) -> Vec<(u64, u64)> {
        let roots = self.devices.iter().filter_map(|device| device.pci);
        let ecam = roots.map(|windows| windows.span(Window::Ecam));
        ecam.map(|span| (span.base, span.size)).collect()
    }

    /// The FADT's `IAPC_BOOT_ARCH`: `usual`, with the changes that devices need.
    pub(crate) fn boot_arch(&self, usual: u16) -> u16 {
        let changes = self.devices.iter().map(|device| device.boot_arch);
        changes.fold(usual, |all, change| all ^ change)
    }
}

#[cfg(test)]
mod tests {
    use vcpu_loop::bus::Space;

    use super::*;
    use crate::config::{RngSpec, VirtioSpec};
    use crate::layout;

    #[test]
    fn windows_are_apart() {
        let mut spec = VmSpec::new("vmlinux");
        (spec.debug_exit, spec.rtc) = (Some(layout::DEBUG_EXIT), true);
        (spec.legacy_timer, spec.rng) = (true, Some(RngSpec::default()));
        for (virtio, count) in [(VirtioSpec::Pci, 13), (VirtioSpec::Mmio, 10)] {
            spec.virtio = virtio;
            let plan = MachinePlan::new(&spec).unwrap();
            let windows = plan.devices.iter().flat_map(|d| d.windows.clone());
            let mut windows: Vec<_> = windows.collect();
            windows.sort_by_key(|window| (window.space == Space::Mmio, window.base));
            assert_eq!(windows.len(), count);
            for pair in windows.windows(2) {
                let apart = pair[0].base + pair[0].size <= pair[1].base;
                assert!(apart || pair[0].space != pair[1].space, "{pair:?}");
            }
        }
    }

    #[test]
    fn names_and_interrupts_are_used_once() {
        let mut spec = VmSpec::new("vmlinux");
        (spec.debug_exit, spec.rtc) = (Some(layout::DEBUG_EXIT), true);
        let devices = MachinePlan::new(&spec).unwrap().devices;
        let mut names: Vec<_> = devices.iter().map(|device| &device.id).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), devices.len());
        let mut interrupts: Vec<_> = devices.iter().filter_map(|device| device.gsi).collect();
        interrupts.sort_unstable();
        assert_eq!(
            interrupts,
            [layout::SERIAL_GSI, layout::GED_GSI, layout::RTC_GSI]
        );
        assert!(
            interrupts
                .iter()
                .all(|gsi| layout::FIXED_GSIS.contains(gsi))
        );
    }
}
