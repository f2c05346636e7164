// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernel images for tests. They are well-formed by default, and every field can be changed.

#![allow(dead_code)] // each test file uses a part of it

pub mod booted;

use std::path::Path;

use mini_vmm::boot::{self, BootRequest, Error, Image, Loaded};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::MIB;
use mini_vmm::memory;
use vm_memory::GuestMemoryMmap;

/// Loadable segment.
pub const PT_LOAD: u32 = 1;
/// Program interpreter.
pub const PT_INTERP: u32 = 3;
/// Notes.
pub const PT_NOTE: u32 = 4;

/// A program header and the first bytes of its file part.
#[derive(Clone, Debug)]
pub struct Ph {
    pub kind: u32,
    pub virt: u64,
    pub phys: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub align: u64,
    pub data: Vec<u8>,
    /// The data's file offset in the header, if it should be wrong.
    pub offset: Option<u64>,
}

impl Ph {
    /// A segment with equal virtual and physical addresses.
    pub fn load(phys: u64, data: &[u8]) -> Self {
        Ph {
            kind: PT_LOAD,
            virt: phys,
            phys,
            file_size: data.len() as u64,
            memory_size: data.len() as u64,
            align: 0x1000,
            data: data.to_vec(),
            offset: None,
        }
    }

    /// Notes padded for this alignment.
    pub fn notes(align: u64, data: &[u8]) -> Self {
        Ph {
            kind: PT_NOTE,
            align,
            ..Ph::load(0, data)
        }
    }

    /// Xen's note for the PVH entry point, as wide as in Linux, after another note.
    pub fn pvh(entry: u64) -> Self {
        let mut data = note(b"GNU\0", 3, b"idid");
        data.extend(note(b"Xen\0", 18, &entry.to_le_bytes()));
        Ph::notes(4, &data)
    }
}

/// An ELF note.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    padded_note(4, name, kind, desc)
}

/// An ELF note whose descriptor starts and ends at multiples of `align`.
pub fn padded_note(align: usize, name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(align), 0);
    }
    note
}

/// A 64-bit x86 ELF executable.
pub fn elf(entry: u64, phs: &[Ph]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend(2u16.to_le_bytes()); // ET_EXEC
    out.extend(62u16.to_le_bytes()); // EM_X86_64
    out.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for half in [64, 56, phs.len() as u16, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * phs.len() as u64;
    for ph in phs {
        out.extend(ph.kind.to_le_bytes());
        out.extend(7u32.to_le_bytes());
        for word in [
            ph.offset.unwrap_or(offset),
            ph.virt,
            ph.phys,
            ph.file_size,
            ph.memory_size,
            ph.align,
        ] {
            out.extend(word.to_le_bytes());
        }
        offset += ph.data.len() as u64;
    }
    for ph in phs {
        out.extend(&ph.data);
    }
    out
}

/// Overwrites bytes of an image.
pub fn patch(mut image: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

/// The contents of a bzImage's setup header.
#[derive(Clone, Debug)]
pub struct Bz {
    pub version: u16,
    pub loadflags: u8,
    pub xloadflags: u16,
    pub cmdline_size: u32,
    pub initrd_addr_max: u32,
    pub pref_address: u64,
    pub init_size: u32,
    pub alignment: u32,
    pub relocatable: u8,
    /// The compressed kernel with its trailer.
    pub payload: Vec<u8>,
}

impl Default for Bz {
    fn default() -> Self {
        Bz {
            version: 0x020f,
            loadflags: 1,
            xloadflags: 1,
            cmdline_size: 2047,
            initrd_addr_max: 0x7fff_ffff,
            pref_address: 16 << 20,
            init_size: 8 << 20,
            alignment: 2 << 20,
            relocatable: 1,
            payload: Vec::new(),
        }
    }
}

/// The payload's offset in the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x400;

impl Bz {
    /// The image: one setup sector, then the protected-mode code: `0xc0` bytes, the payload, `0xc0` bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut code = vec![0xc0; PAYLOAD_OFFSET];
        code.extend(&self.payload);
        code.resize((code.len() + 1).next_multiple_of(16), 0xc0);

        let mut out = vec![0; 1024];
        let mut put = |offset: usize, bytes: &[u8]| {
            out[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, b"MZ");
        put(0x1f1, &[1]);
        put(0x1f4, &(code.len() as u32 / 16).to_le_bytes());
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.loadflags]);
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x230, &self.alignment.to_le_bytes());
        put(0x234, &[self.relocatable]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
        put(0x24c, &(self.payload.len() as u32).to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        out.extend(code);
        out
    }
}

/// A zstd frame with one stored block: `data`, then the trailer with its size.
pub fn zstd_stored(data: &[u8]) -> Vec<u8> {
    let size = (data.len() as u32).to_le_bytes();
    // A single segment with a four-byte size.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend(size);
    // The last block, stored.
    let block = (data.len() as u32) << 3 | 1;
    frame.extend(&block.to_le_bytes()[..3]);
    frame.extend(data);
    frame.extend(size);
    frame
}

/// lz4's legacy frame with literals only: `data` in one block, then the trailer with its size.
pub fn lz4_stored(data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut rest = data.len();
    block.push((rest.min(15) as u8) << 4);
    if rest >= 15 {
        rest -= 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
    }
    block.extend(data);
    let mut out = b"\x02\x21\x4c\x18".to_vec();
    out.extend((block.len() as u32).to_le_bytes());
    out.extend(block);
    out.extend((data.len() as u32).to_le_bytes());
    out
}

/// The RAM of test machines.
pub const RAM: u64 = 64 * MIB;
/// Where test kernels lie.
pub const AT: u64 = 16 * MIB;
/// One gibibyte.
pub const GIB: u64 = 1024 * MIB;

/// A machine to boot a test kernel on.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub ram: u64,
    pub initrd: Option<&'a [u8]>,
    pub cmdline: &'a str,
    pub protocol: BootProtocol,
    pub decompress: Decompress,
}

/// The usual machine.
pub const CASE: Case<'_> = Case {
    ram: RAM,
    initrd: None,
    cmdline: "",
    protocol: BootProtocol::Auto,
    decompress: Decompress::Auto,
};

impl Case<'_> {
    pub fn load(&self, kernel: &[u8]) -> Result<Loaded, Error> {
        let mem = memory::allocate(self.ram).unwrap();
        self.load_into(&mem, kernel)
    }

    pub fn load_into(&self, mem: &GuestMemoryMmap, kernel: &[u8]) -> Result<Loaded, Error> {
        let image =
            |bytes: &[u8], name| Image::from_bytes(bytes.to_vec(), Path::new(name)).unwrap();
        let kernel = image(kernel, "K");
        let initrd = self.initrd.map(|bytes| image(bytes, "I"));
        let request = BootRequest {
            kernel: &kernel,
            initrd: initrd.as_ref(),
            cmdline: self.cmdline,
            protocol: self.protocol,
            decompress: self.decompress,
            rsdp: None,
            reserved: &[],
        };
        boot::load(mem, &request)
    }

    /// Like [`Case::load`], without an initrd.
    pub fn load_image(&self, kernel: &Image) -> Result<Loaded, Error> {
        let request = BootRequest {
            kernel,
            initrd: None,
            cmdline: self.cmdline,
            protocol: self.protocol,
            decompress: self.decompress,
            rsdp: None,
            reserved: &[],
        };
        boot::load(&memory::allocate(self.ram).unwrap(), &request)
    }

    pub fn error(&self, kernel: &[u8]) -> String {
        match self.load(kernel) {
            Ok(loaded) => format!("no error: {loaded}"),
            Err(e) => e.to_string(),
        }
    }
}

/// A segment of code.
pub fn code() -> Ph {
    Ph::load(AT, &[0x90; 64])
}
