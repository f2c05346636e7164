// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The boots with parameters that a user may add to the kernel's command line, each once per kernel. `cargo xtask test`
//! runs one of each kind, `--long` all.

use crate::kernels::Series;

use super::cases::{Case, Image, LINUX};

/// Checks that time passes in the guest: it sleeps.
const SLEEP: &str = "usleep 100000 && echo SLEPT";
const SLEEP_AND_REBOOT: &str = "usleep 100000 && echo SLEPT; reboot -f";

const WORD: Case = Case {
    long: true,
    guest: SLEEP,
    expect: &["SLEPT"],
    ..LINUX
};
const RESTART: Case = Case {
    long: true,
    guest: "reboot -f",
    exit: 32,
    ..LINUX
};
const TIMER: &str = "--legacy-timer";

/// Each case for both kernels. The kernels skip the tests of their cryptography, which take half of a boot.
macro_rules! on_both {
    ($($name:literal $words:literal { $($field:tt)* })*) => {
        &[$(
            Case {
                name: concat!("6.1-", $name),
                image: Image::Debian(Series::V6_1),
                cmdline: Some(concat!("cryptomgr.notests ", $words)),
                $($field)*
            },
            Case {
                name: concat!("6.12-", $name),
                image: Image::Debian(Series::V6_12),
                cmdline: Some(concat!("cryptomgr.notests ", $words)),
                $($field)*
            },
        )*]
    };
}

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = on_both! {
    // Without the IOAPIC: the PIC exists, but ACPI doesn't announce it.
    "noapic" "noapic" { long: false, ..WORD }
    // Of two vCPUs, one.
    "nosmp" "nosmp" { cpus: 2, online: Some(1), ..WORD }
    "maxcpus-0" "maxcpus=0" { cpus: 2, online: Some(1), ..WORD }
    "maxcpus-1" "maxcpus=1" { cpus: 2, online: Some(1), ..WORD }
    // Without the usual clocks.
    "nolapic" "nolapic" { arguments: TIMER, long: false, ..WORD }
    // Without ACPI, Linux can't power off, and it waits for a missing clock chip by reading it 10,000 times.
    "acpi-off" "acpi=off" { arguments: TIMER, guest: SLEEP_AND_REBOOT, exit: 32, ..WORD }
    "no-kvmclock" "no-kvmclock" { arguments: TIMER, ..WORD }
    "nopv" "nopv" { arguments: TIMER, ..WORD }
    "notsc" "notsc" { ..WORD }
    "tsc-unstable" "tsc=unstable" { ..WORD }
    "notscdeadline" "lapic=notscdeadline" { ..WORD }
    "nox2apic" "nox2apic" { ..WORD }
    "no5lvl" "no5lvl" { ..WORD }
    "nokaslr" "nokaslr" { ..WORD }
    "pci-off" "pci=off" { ..WORD }
    // Each way to restart.
    "reboot-k" "reboot=k" { ..RESTART }
    "reboot-p" "reboot=p" { ..RESTART }
    "reboot-t" "reboot=t" { exit: 33, ..RESTART }
    "reboot-e" "reboot=e" { ..RESTART }
    "reboot-b" "reboot=b" { long: false, ..RESTART }
};
