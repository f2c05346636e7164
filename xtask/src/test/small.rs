// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots of the small kernel, which finds devices on its command line and processors in the MPtable.

use super::cases::{Case, Image, LINUX};

/// A disk of random bytes, which the guest reads.
const SMALL: Case = Case {
    image: Image::Small,
    before: "dd if=/dev/urandom of=/tmp/raw bs=1M count=8 2>/dev/null",
    guest: READ,
    after: CHECK,
    expect: &["DISK READ", "MADT USED"],
    long: true,
    ..LINUX
};

/// Without ACPI there is no power-off, so the guest restarts.
const ACPI_OFF: Case = Case {
    cpus: 2,
    cmdline: Some("acpi=off reboot=k"),
    guest: READ_SLEEP_REBOOT,
    expect: &["DISK READ", "MPTABLE USED", "SLEPT"],
    ..SMALL
};

const FIRECRACKER: Option<&str> = Some(
    r#""drives": [{"drive_id": "disk", "path_on_host": "/tmp/raw", "is_root_device": false}]"#,
);

/// Reads the disk, and says that ACPI named the processors.
const READ: &str = "echo SUM $(sha256sum </dev/vda)
    dmesg | grep -q 'ACPI (MADT) for SMP' && echo MADT USED";
/// Also sleeps on each CPU, which needs its clock's interrupts.
const READ_SLEEP_REBOOT: &str = "echo SUM $(sha256sum </dev/vda)
    dmesg | grep -q 'MultiProcessor Specification v1.4' && echo MPTABLE USED
    for cpu in 0 1; do taskset -c $cpu usleep 200000 || exit; done
    echo SLEPT
    reboot -f";
const CHECK: &str = "grep -q \"SUM $(sha256sum </tmp/raw | cut -c -64)\" /tmp/out && echo DISK READ
    rm /tmp/raw";

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "small-pci", arguments: "--disk path=/tmp/raw", ..SMALL },
    Case { name: "small-acpi-off", arguments: "--virtio mmio,cmdline --disk path=/tmp/raw", exit: 32, ..ACPI_OFF },
    // The command line also gets `pci=off` and the devices. A restart ends Firecracker with 0.
    Case { name: "small-firecracker", firecracker: FIRECRACKER, ..SMALL },
    Case { name: "small-firecracker-acpi-off", firecracker: FIRECRACKER, ..ACPI_OFF },
];
