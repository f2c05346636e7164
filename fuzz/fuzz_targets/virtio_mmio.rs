// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver on the MMIO transport that does whatever the input says, with registers, rings, notifications, pauses and
//! saved states. What a driver set up stays while the device runs, and the device works after a reset.

#![no_main]

use libfuzzer_sys::fuzz_target;
use virtio_transport::testing::{Echo, MmioPort, monkey};

fuzz_target!(|input: &[u8]| {
    monkey::<MmioPort>(|| Box::new(Echo::new()), input);
});
