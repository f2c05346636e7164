// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! bzImages that boot: who decompresses them, and what is in guest memory afterwards.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use images::booted::{Booted, kernel_elf, pvh_elf};
use images::{AT, Bz, Ph, RAM, elf, lz4_stored, patch, zstd_stored};
use mini_vmm::boot::{
    self, BootRequest, Compression, Decompression, Format, Image, NotDecompressed, Protocol,
};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::MIB;
use mini_vmm::memory;
use vm_memory::Bytes;

#[test]
fn bzimage_is_decompressed_by_the_host() {
    let bz = Bz {
        payload: zstd_stored(&[kernel_elf(), b"relocations".to_vec()].concat()),
        ..Default::default()
    };
    let vm = Booted::auto(bz.build());
    assert_eq!(vm.loaded.format, Format::BzImage(0x020f));
    assert!(
        matches!(
            vm.loaded.decompression,
            Decompression::Host {
                format: Compression::Zstd,
                ..
            }
        ),
        "{}",
        vm.loaded
    );
    assert_eq!(vm.loaded.entry.0, AT);
    assert_eq!(vm.bytes(AT, 18), b"text of the kernel");
    vm.check_zero_page();
    // The image's own setup header is kept.
    assert_eq!({ vm.zero_page().hdr.pref_address }, AT);
    // Its header asked for this memory, so the initrd must not be there.
    assert_eq!(vm.loaded.kernel_end.0, AT + 8 * MIB);
}

#[test]
fn a_guest_that_is_quick_decompresses_unless_the_host_is_needed() {
    let bz = Bz {
        payload: lz4_stored(&pvh_elf()),
        ..Default::default()
    };
    let who = |protocol, who| {
        let vm = Booted::new(bz.build(), protocol, who);
        vm.loaded.decompression
    };
    let quick = NotDecompressed::GuestIsQuick(Compression::Lz4);
    match who(BootProtocol::Auto, Decompress::Auto) {
        Decompression::Guest(reason) => assert_eq!(reason.to_string(), quick.to_string()),
        other => panic!("{other:?}"),
    }
    for (protocol, asked) in [
        (BootProtocol::Auto, Decompress::Host),
        (BootProtocol::Pvh, Decompress::Auto),
        (BootProtocol::Pvh, Decompress::Host),
    ] {
        let decompression = who(protocol, asked);
        assert!(matches!(decompression, Decompression::Host { .. }));
    }
}

#[test]
fn bzimage_says_what_it_is() {
    let bz = Bz::default().build();
    let at = |offset: u16| patch(bz.clone(), 0x20e, &offset.to_le_bytes());
    let version = |image: Vec<u8>| Booted::auto(image).loaded.version;
    assert_eq!(version(bz.clone()), None);
    let named = patch(at(0x100), 0x300, b"6.1 (someone)\0and more");
    assert_eq!(version(named), Some("6.1 (someone)".to_owned()));
    // Hostile: unterminated, not text, outside of the file.
    let endless = version(patch(at(0x100), 0x300, &[b'x'; 200]));
    assert_eq!(endless, Some("x".repeat(64)));
    assert_eq!(version(at(0xffff)), None);
    assert!(version(patch(at(0x100), 0x300, &[0xff, 0])).is_some());
}

#[test]
fn bzimage_boots_by_pvh_when_asked() {
    let bz = Bz {
        payload: zstd_stored(&pvh_elf()),
        ..Default::default()
    };
    let vm = Booted::new(bz.build(), BootProtocol::Pvh, Decompress::Auto);
    assert_eq!(vm.loaded.protocol, Protocol::Pvh);
    assert_eq!(vm.loaded.entry.0, AT + 0x20);
    assert_eq!(Booted::auto(bz.build()).loaded.protocol, Protocol::Linux64);
}

#[test]
fn bzimage_is_left_to_the_guest_where_the_host_can_not() {
    let mut damaged = zstd_stored(&kernel_elf());
    // A block of the reserved type.
    damaged[9] |= 6;
    let cases: [(Vec<u8>, Decompress, &str); 6] = [
        (
            zstd_stored(&kernel_elf()),
            Decompress::Guest,
            "--decompress guest was asked for",
        ),
        (
            vec![],
            Decompress::Auto,
            "its setup header names no payload",
        ),
        (
            b"secret sauce".to_vec(),
            Decompress::Auto,
            "its payload is in a compression format that is not known here",
        ),
        (
            zstd_stored(b"no ELF"),
            Decompress::Auto,
            "its payload is no usable vmlinux",
        ),
        (
            zstd_stored(&elf(AT, &[Ph::load(2 * RAM, b"far")])),
            Decompress::Auto,
            "its payload is no usable vmlinux",
        ),
        (
            damaged,
            Decompress::Auto,
            "its zstd payload can't be decompressed",
        ),
    ];
    for (payload, who, why) in cases {
        let bz = Bz {
            payload,
            ..Default::default()
        };
        let bytes = bz.build();
        let vm = Booted::new(bytes.clone(), BootProtocol::Auto, who);
        match &vm.loaded.decompression {
            Decompression::Guest(reason) => {
                assert!(reason.to_string().starts_with(why), "{reason}")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(vm.loaded.entry.0, MIB + 0x200);
        assert_eq!(vm.bytes(MIB, bytes.len() - 1024), bytes[1024..]);
        vm.check_zero_page();
    }
}

#[test]
fn a_signature_behind_the_image_is_not_loaded() {
    let mut bytes = Bz::default().build();
    let len = bytes.len();
    bytes.extend([0xee; 4096]);
    let vm = Booted::auto(bytes);
    assert_eq!(vm.bytes(MIB + len as u64 - 1024, 16), [0; 16]);
}

/// Stock kernels, named by the directory `MINI_VMM_TEST_KERNELS`: every file `vmlinuz*` in it.
#[test]
fn stock_kernels_are_decompressed() {
    let name = "stock_kernels_are_decompressed";
    let Some(dir) = std::env::var_os("MINI_VMM_TEST_KERNELS") else {
        eprintln!("SKIP: {name}: MINI_VMM_TEST_KERNELS names no directory");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let is_kernel = path.file_name().unwrap().as_encoded_bytes();
        if !is_kernel.starts_with(b"vmlinuz") {
            continue;
        }
        seen += 1;
        let kernel = Image::open(&path).unwrap();
        for who in [Decompress::Auto, Decompress::Host, Decompress::Guest] {
            for protocol in [BootProtocol::Auto, BootProtocol::Pvh] {
                let mem = memory::allocate(128 * MIB).unwrap();
                let request = BootRequest {
                    kernel: &kernel,
                    initrd: None,
                    cmdline: "console=ttyS0",
                    protocol,
                    decompress: who,
                    rsdp: None,
                    reserved: &[],
                };
                let result = boot::load(&mem, &request);
                match (who, protocol) {
                    (Decompress::Guest, BootProtocol::Pvh) => assert!(result.is_err()),
                    (Decompress::Guest, _) => {
                        let loaded = result.unwrap();
                        assert!(matches!(
                            loaded.decompression,
                            Decompression::Guest(NotDecompressed::Asked)
                        ));
                    }
                    _ => {
                        let loaded = result.unwrap();
                        eprintln!("{}: {loaded}", path.display());
                        match loaded.decompression {
                            Decompression::Host { .. } => {}
                            Decompression::Guest(NotDecompressed::GuestIsQuick(_)) => {
                                assert_eq!((who, protocol), (Decompress::Auto, BootProtocol::Auto));
                            }
                            other => panic!("{other:?}"),
                        }
                        let code: u64 = mem.read_obj(loaded.entry).unwrap();
                        assert_ne!(code, 0);
                    }
                }
            }
        }
    }
    assert!(seen > 0, "no vmlinuz* in {}", dir.display());
}

#[test]
fn a_setup_header_of_a_later_version_is_cut_to_what_is_known() {
    let bytes = patch(Bz::default().build(), 0x201, &[0xff]);
    let vm = Booted::auto(bytes);
    vm.check_zero_page();
}
