// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any text as the command line of a kernel with any maximum length.
//!
//! The first two bytes of the input are the kernel's maximum length; the rest is the line.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mini_vmm::boot::{self, BootRequest, Image};
use mini_vmm::layout::{CMDLINE, CMDLINE_SIZE, MIB};
use mini_vmm::memory;
use mini_vmm::config::{BootProtocol, Decompress};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

static MEMORY: LazyLock<GuestMemoryMmap> =
    LazyLock::new(|| memory::allocate(32 * MIB).expect("32 MiB of memory"));

/// The smallest bzImage that can be loaded, for a command line of up to `max` bytes.
fn kernel(max: u16) -> Image {
    let mut image = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &64u32.to_le_bytes());
    put(0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &u32::MAX.to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &u32::from(max).to_le_bytes());
    Image::from_bytes(image, Path::new("kernel")).expect("not empty")
}

fuzz_target!(|input: &[u8]| {
    let Some((max, line)) = input.split_first_chunk() else {
        return;
    };
    let Ok(cmdline) = std::str::from_utf8(line) else {
        return;
    };
    let max = u16::from_le_bytes(*max).max(1);
    let kernel = kernel(max);
    let request = BootRequest {
        kernel: &kernel,
        initrd: None,
        cmdline,
        protocol: BootProtocol::Auto,
        decompress: Decompress::Auto,
        rsdp: None,
        reserved: &[],
    };
    let fits = cmdline.len() <= usize::from(max)
        && cmdline.len() < CMDLINE_SIZE as usize
        && !cmdline.contains('\0');
    assert_eq!(boot::load(&*MEMORY, &request).is_ok(), fits);
    if fits {
        let mut written = vec![0xff; cmdline.len() + 1];
        MEMORY
            .read_slice(&mut written, GuestAddress(CMDLINE))
            .expect("in RAM");
        assert_eq!(written.split_last(), Some((&0, cmdline.as_bytes())));
    }
});
