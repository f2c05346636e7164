// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any bytes as a kernel image: a result, never a panic, a hang or unbounded memory.
//!
//! The first byte of the input chooses protocol, decompressor and initrd; the rest is the image.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mini_vmm::boot::{self, BootRequest, Image};
use mini_vmm::layout::MIB;
use mini_vmm::memory;
use mini_vmm::config::{BootProtocol, Decompress};
use vm_memory::GuestMemoryMmap;

const RAM: u64 = 32 * MIB;

/// One memory for all inputs: data from earlier inputs does not matter.
static MEMORY: LazyLock<GuestMemoryMmap> =
    LazyLock::new(|| memory::allocate(RAM).expect("32 MiB of memory"));

fuzz_target!(|input: &[u8]| {
    let Some((choice, image)) = input.split_first() else {
        return;
    };
    let Ok(kernel) = Image::from_bytes(image.to_vec(), Path::new("kernel")) else {
        return;
    };
    let request = BootRequest {
        kernel: &kernel,
        initrd: (choice & 8 != 0).then_some(&kernel),
        cmdline: "console=ttyS0",
        protocol: match choice & 3 {
            0 | 3 => BootProtocol::Auto,
            1 => BootProtocol::Linux,
            _ => BootProtocol::Pvh,
        },
        decompress: match choice & 20 {
            0 => Decompress::Auto,
            4 => Decompress::Guest,
            _ => Decompress::Host,
        },
        rsdp: None,
        reserved: &[],
    };
    match boot::load(&*MEMORY, &request) {
        Ok(loaded) => {
            assert!(loaded.kernel_start.0 >= MIB && loaded.kernel_end.0 <= RAM);
            assert!(loaded.entry >= loaded.kernel_start && loaded.entry < loaded.kernel_end);
            if let Some((start, size)) = loaded.initrd {
                assert!(start >= loaded.kernel_end && start.0 + size <= RAM);
            }
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});
