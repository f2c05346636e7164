// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots of Debian's kernels by clients of Firecracker's API. Each pauses and resumes the guest, and presses its power
//! button.

use super::cases::{Case, Image, LINUX, POWER_BUTTON};
use crate::kernels::Series;

/// The program that clients start in the bed.
pub const FIRECRACKER: &str = "/tmp/firecracker";

const CLIENT: Case = Case {
    cmdline: Some("reboot=k panic=1 pci=off"),
    before: "ln -sf /bin/mini-vmm /tmp/firecracker",
    guest: POWER_BUTTON,
    expect: &["BUTTON"],
    ..LINUX
};

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "client-fctools", client: Some("fctools_boots"), image: Image::Debian(Series::V6_1), ..CLIENT },
    Case { name: "client-firecracker-rs-sdk", client: Some("firecracker_rs_sdk_boots"), cpus: 2,
        image: Image::Debian(Series::V6_12), long: true, ..CLIENT },
];
