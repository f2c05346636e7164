// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels in guest memory, and checks of what is there.

#![allow(dead_code)] // each test file uses a part of it

use super::{AT, Ph, RAM, elf};
use linux_loader::bootparam::boot_params;
use mini_vmm::boot::{self, BootRequest, Image, Loaded};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::{ACPI_TABLES, CMDLINE, ZERO_PAGE};
use mini_vmm::memory;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub fn image(bytes: Vec<u8>) -> Image {
    Image::from_bytes(bytes, Path::new("test")).unwrap()
}

pub struct Booted {
    pub mem: GuestMemoryMmap,
    pub loaded: Loaded,
}

impl Booted {
    pub fn new(kernel: Vec<u8>, protocol: BootProtocol, who: Decompress) -> Self {
        let mem = memory::allocate(RAM).unwrap();
        let (kernel, initrd) = (image(kernel), image(b"initrd".repeat(1000)));
        let request = BootRequest {
            kernel: &kernel,
            initrd: Some(&initrd),
            cmdline: "console=ttyS0 grüße",
            protocol,
            decompress: who,
            rsdp: Some(GuestAddress(ACPI_TABLES)),
            reserved: &[],
        };
        let loaded = boot::load(&mem, &request).unwrap_or_else(|e| panic!("{e}"));
        Booted { mem, loaded }
    }

    pub fn auto(kernel: Vec<u8>) -> Self {
        Self::new(kernel, BootProtocol::Auto, Decompress::Auto)
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn zero_page(&self) -> boot_params {
        self.mem.read_obj(GuestAddress(ZERO_PAGE)).unwrap()
    }

    pub fn check_common(&self) {
        assert_eq!(self.bytes(CMDLINE, 22), "console=ttyS0 grüße\0".as_bytes());
        let (start, size) = self.loaded.initrd.unwrap();
        assert_eq!((start.0, size), (RAM - 8192, 6000));
        assert_eq!(self.bytes(start.0, 6000), b"initrd".repeat(1000));
    }

    pub fn check_zero_page(&self) {
        self.check_common();
        let params = self.zero_page();
        let hdr = params.hdr;
        assert_eq!({ hdr.boot_flag }, 0xaa55);
        assert_eq!({ hdr.header }.to_le_bytes(), *b"HdrS");
        assert_eq!({ hdr.type_of_loader }, 0xff);
        assert_eq!(u64::from(hdr.cmd_line_ptr), CMDLINE);
        assert_eq!(u64::from(hdr.ramdisk_image), RAM - 8192);
        assert_eq!({ hdr.ramdisk_size }, 6000);
        assert_eq!({ params.acpi_rsdp_addr }, ACPI_TABLES);
        assert_eq!({ params.sentinel }, 0);
        let table = params.e820_table;
        let map: Vec<_> = memory::memory_map(&self.mem, &[])
            .iter()
            .map(|e| (e.start, e.size, e.kind as u32))
            .collect();
        let told: Vec<_> = table[..usize::from(params.e820_entries)]
            .iter()
            .map(|e| (e.addr, e.size, e.r#type))
            .collect();
        assert_eq!(told, map);
    }
}

pub fn kernel_elf() -> Vec<u8> {
    let text = Ph {
        memory_size: 0x3000,
        virt: 0xffff_ffff_8100_0000,
        ..Ph::load(AT, b"text of the kernel")
    };
    let percpu = Ph {
        virt: 0,
        ..Ph::load(AT + 0x3000, b"percpu")
    };
    elf(AT, &[text, percpu])
}

pub fn pvh_elf() -> Vec<u8> {
    elf(AT, &[Ph::load(AT, &[0x90; 64]), Ph::pvh(AT + 0x20)])
}
