// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that can be wrong with boot files: one sentence each, with the next step, and no panic.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use std::path::Path;

use mini_vmm::boot::{self, BootRequest, Error, FileError, Image, InitrdError, KernelError};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::MIB;
use mini_vmm::memory;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use images::{AT, Bz, CASE, Case, GIB, PT_INTERP, Ph, RAM, code, elf, lz4_stored, patch};

fn good() -> Vec<u8> {
    elf(AT, &[code()])
}

const REBUILD: &str = "; pass a vmlinux as the kernel build made it";
const WANTED: &str = "pass an x86-64 vmlinux (ELF) or bzImage, such as /boot/vmlinuz-*";

#[test]
fn files_that_are_no_kernels_are_named() {
    let mut tar = vec![b'a'; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let mut arm = vec![0; 1024];
    arm[..2].copy_from_slice(b"MZ");
    arm[56..60].copy_from_slice(b"ARM\x64");
    let cases: [(&[u8], String); 7] = [
        (
            b"#!/bin/sh\n",
            format!("kernel K is no Linux kernel but looks like a script; {WANTED}"),
        ),
        (
            b"hello, world\n",
            format!("kernel K is no Linux kernel but looks like text; {WANTED}"),
        ),
        (
            b"MZ\x90\0 and so on \0",
            format!(
                "kernel K is no Linux kernel but looks like a PE (Windows or EFI) program; {WANTED}"
            ),
        ),
        (
            b"\x1f\x8b\x08\0",
            "kernel K is no Linux kernel but looks like gzip-compressed data; \
             decompress it first if a vmlinux is inside, else pass a vmlinux or bzImage"
                .to_owned(),
        ),
        (
            &tar,
            format!("kernel K is no Linux kernel but looks like a tar archive; {WANTED}"),
        ),
        (
            &[0],
            format!("kernel K is no Linux kernel but looks like nothing but zeros; {WANTED}"),
        ),
        (
            &arm,
            "kernel K is built for aarch64; pass a kernel for x86-64".to_owned(),
        ),
    ];
    for (bytes, message) in cases {
        assert_eq!(CASE.error(bytes), message);
    }
}

#[test]
fn zeros_are_told_only_by_who_has_seen_nothing_else() {
    let zeros = format!("kernel K is no Linux kernel but looks like nothing but zeros; {WANTED}");
    let unknown =
        format!("kernel K is no Linux kernel but looks like data of an unknown kind; {WANTED}");
    for len in [1, 1024, 1025, 4 * MIB as usize] {
        assert_eq!(CASE.error(&vec![0; len]), zeros, "{len}");
    }
    for at in [1024, 5000, 4 * MIB as usize - 1] {
        let image = patch(vec![0; 4 * MIB as usize], at, b"x");
        assert_eq!(CASE.error(&image), unknown, "{at}");
    }
    // A sparse disk image of a terabyte is not read to its end.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let kernel = Image::open(file.path()).unwrap();
    let error = CASE.load_image(&kernel).unwrap_err().to_string();
    assert!(error.contains("data of an unknown kind"), "{error}");
}

#[test]
fn elf_headers_are_judged() {
    let object = "kernel K is an ELF object file (a kernel module?); pass an uncompressed vmlinux or a bzImage";
    let is_32_bit = "kernel K is a 32-bit ELF file, as hypervisors (Xen), firmware, boot loaders and i386 kernels are; \
                     pass a 64-bit Linux kernel (vmlinux or bzImage)";
    let interp = Ph {
        kind: PT_INTERP,
        ..code()
    };
    let cases: [(Vec<u8>, &str); 14] = [
        (
            patch(good(), 18, &[183, 0]),
            "kernel K is built for aarch64; pass a kernel for x86-64",
        ),
        // A 64-bit file with 32-bit code, like some firmware; a 32-bit file with 64-bit code; Xen.
        (patch(good(), 18, &[3, 0]), is_32_bit),
        (patch(good(), 4, &[1]), is_32_bit),
        (patch(patch(good(), 18, &[3, 0]), 4, &[1]), is_32_bit),
        (
            patch(good(), 18, &[1, 1]),
            "kernel K is built for ELF machine 257; pass a kernel for x86-64",
        ),
        (
            patch(good(), 5, &[2]),
            "kernel K is built for a big-endian machine; pass a kernel for x86-64",
        ),
        (
            patch(good(), 4, &[9]),
            "kernel K is damaged: its ELF header says EI_CLASS is 9; copy it again",
        ),
        (patch(good(), 16, &[1]), object),
        (
            patch(good(), 16, &[7]),
            "kernel K is damaged: its ELF header says e_type is 7; copy it again",
        ),
        (
            patch(good(), 54, &[55]),
            "kernel K is damaged: its ELF header says e_phentsize is 55; copy it again",
        ),
        (
            patch(good(), 56, &[0xff, 0xff]),
            "kernel K is damaged: its ELF header says e_phnum is 65535; copy it again",
        ),
        (
            elf(AT, &[]),
            "kernel K has no segment to load; pass an uncompressed vmlinux, not its debug symbols",
        ),
        (
            elf(AT, &[Ph::load(AT, b""), Ph::pvh(AT)]),
            "kernel K has no segment to load; pass an uncompressed vmlinux, not its debug symbols",
        ),
        (
            elf(AT, &[interp, code()]),
            "kernel K is an ELF user-space program; pass an uncompressed vmlinux or a bzImage",
        ),
    ];
    for (bytes, message) in cases {
        assert_eq!(CASE.error(&bytes), message);
    }
}

#[test]
fn segments_are_judged() {
    let segment = |phys, file_size, memory_size| Ph {
        file_size,
        memory_size,
        ..Ph::load(phys, &[0x90; 64])
    };
    let cases: [(Vec<Ph>, String); 9] = [
        (
            vec![code(), segment(AT + 64, 64, 63)],
            format!("segment 1 has 64 bytes in the file but only 63 in memory{REBUILD}"),
        ),
        (
            vec![segment(u64::MAX - 63, 64, 65)],
            format!(
                "segment 0 of 65 bytes at 0xffffffffffffffc0 wraps around the address space{REBUILD}"
            ),
        ),
        (
            vec![segment(0, 64, u64::MAX)],
            format!(
                "segment 0 at 0x0 lies below 1 MiB, where the machine keeps its boot data{REBUILD}"
            ),
        ),
        (
            vec![code(), segment(MIB - 1, 1, 1)],
            format!(
                "segment 1 at 0xfffff lies below 1 MiB, where the machine keeps its boot data{REBUILD}"
            ),
        ),
        (
            vec![segment(3 * GIB - 1, 1, 2)],
            format!(
                "segment 0 at 0xbfffffff ends at 0xc0000001, beyond the 3 GiB in which kernels are loaded{REBUILD}"
            ),
        ),
        (
            vec![segment(8 * GIB, 1, 2)],
            format!(
                "segment 0 at 0x200000000 ends at 0x200000002, beyond the 3 GiB in which kernels are loaded{REBUILD}"
            ),
        ),
        (
            vec![code(), segment(AT + 63, 1, 1)],
            format!("segment 1 at 0x100003f overlaps segment 0{REBUILD}"),
        ),
        (
            vec![code(), segment(AT - 1, 1, 2)],
            format!("segment 0 at 0x1000000 overlaps segment 1{REBUILD}"),
        ),
        (
            vec![code(), code()],
            format!("segment 1 at 0x1000000 overlaps segment 0{REBUILD}"),
        ),
    ];
    for (phs, message) in cases {
        assert_eq!(
            CASE.error(&elf(AT, &phs)),
            format!("kernel K can't be loaded: {message}")
        );
    }
}

#[test]
fn entry_points_are_judged() {
    let bss = Ph {
        memory_size: 0x1000,
        ..code()
    };
    for entry in [0, AT - 1, AT + 64, u64::MAX] {
        assert_eq!(
            CASE.error(&elf(entry, std::slice::from_ref(&bss))),
            format!(
                "kernel K can't be entered: entry point {entry:#x} lies in nothing that it loads from the file{REBUILD}"
            )
        );
        assert_eq!(
            CASE.error(&elf(AT, &[bss.clone(), Ph::pvh(entry)])),
            format!(
                "kernel K can't be entered: PVH entry point {entry:#x} lies in nothing that it loads from the file; \
                 pass --boot-protocol linux"
            )
        );
    }
    let pvh = Case {
        protocol: BootProtocol::Pvh,
        ..CASE
    };
    assert_eq!(
        pvh.error(&good()),
        "kernel K has no PVH entry; pass --boot-protocol linux, or build it with CONFIG_PVH=y"
    );
}

#[test]
fn every_truncation_is_seen() {
    let bz = Bz::default().build();
    let whole = elf(AT, &[code(), Ph::pvh(AT)]);
    assert!(CASE.load(&whole).is_ok() && CASE.load(&bz).is_ok());
    for len in 4..whole.len() {
        let message = CASE.error(&whole[..len]);
        assert!(
            message.starts_with("kernel K is truncated: its "),
            "{len}: {message}"
        );
    }
    // Up to the magic it is a PE program. The last paragraph of the code may be incomplete.
    for len in 0x206..bz.len() - 15 {
        let message = CASE.error(&bz[..len]);
        assert!(
            message.starts_with("kernel K is truncated: its "),
            "{len}: {message}"
        );
    }
    assert_eq!(
        CASE.error(&whole[..63]),
        "kernel K is truncated: its ELF header reaches to byte 64, but the file ends at 63; copy it again"
    );
}

#[test]
fn bzimages_are_judged() {
    let build = |change: fn(&mut Bz)| {
        let mut bz = Bz::default();
        change(&mut bz);
        CASE.error(&bz.build())
    };
    let old = "but 2.12 or later is needed; pass a kernel of Linux 3.8 or later";
    assert_eq!(
        build(|bz| bz.version = 0x020b),
        format!("kernel K speaks boot protocol 2.11, {old}")
    );
    assert_eq!(
        build(|bz| bz.version = 0),
        format!("kernel K speaks boot protocol 0.00, {old}")
    );
    assert_eq!(
        build(|bz| bz.xloadflags = 2),
        "kernel K is a 32-bit kernel (it has no 64-bit entry point); pass a kernel for x86-64"
    );
    let damaged =
        |what| format!("kernel K is damaged: its setup header says {what}; copy it again");
    assert_eq!(build(|bz| bz.loadflags = 0), damaged("loadflags is 0x0"));
    assert_eq!(
        build(|bz| bz.alignment = 3),
        damaged("kernel_alignment is 0x3")
    );
    assert_eq!(
        build(|bz| bz.pref_address = u64::MAX),
        damaged("pref_address is 0xffffffffffffffff")
    );
    assert_eq!(
        build(|bz| bz.pref_address = 3 * GIB),
        damaged("pref_address is 0xc0000000")
    );
    let no_code = patch(Bz::default().build(), 0x1f4, &[0; 4]);
    assert_eq!(CASE.error(&no_code), damaged("syssize is 0x0"));
}

#[test]
fn pvh_of_a_bzimage_needs_the_host() {
    let bz = Bz {
        payload: lz4_stored(&good()),
        ..Default::default()
    };
    let pvh = Case {
        protocol: BootProtocol::Pvh,
        ..CASE
    };
    let out_of_reach = |why| {
        format!(
            "kernel K is a bzImage, whose PVH entry is out of reach: {why}; pass --boot-protocol linux or a vmlinux"
        )
    };
    assert!(
        pvh.error(&bz.build())
            .starts_with("kernel K has no PVH entry; ")
    );
    assert_eq!(
        pvh.error(&Bz::default().build()),
        out_of_reach("its setup header names no payload")
    );
    let guest = Case {
        decompress: Decompress::Guest,
        ..pvh
    };
    assert_eq!(
        guest.error(&bz.build()),
        out_of_reach("--decompress guest was asked for")
    );
    let host = Case {
        decompress: Decompress::Host,
        ..CASE
    };
    assert_eq!(
        host.error(&Bz::default().build()),
        "kernel K can't be decompressed by the host: its setup header names no payload; say --decompress auto"
    );
}

#[test]
fn too_little_memory_says_how_much_would_do() {
    let bss = Ph {
        memory_size: 50 * MIB + 1,
        ..code()
    };
    let elf = elf(AT, &[bss]);
    let bz = Bz {
        init_size: 50 << 20 | 1,
        ..Default::default()
    };
    for kernel in [elf, bz.build()] {
        assert_eq!(
            CASE.error(&kernel),
            "kernel K needs 67 MiB of memory, but the machine has 64 MiB; pass --memory 67M or more"
        );
        let more = Case {
            ram: 67 * MIB,
            ..CASE
        };
        assert!(more.load(&kernel).is_ok());
    }
}

#[test]
fn initrds_are_judged() {
    let large = vec![1; 49 * MIB as usize];
    let with = Case {
        initrd: Some(&large),
        ..CASE
    };
    let message = "initrd I of 51380224 bytes does not fit above the kernel, which ends at 0x1000040; \
                   pass --memory 66M or more";
    assert_eq!(with.error(&good()), message);
    assert!(matches!(
        with.load(&good()),
        Err(Error::Initrd {
            reason: InitrdError::NeedsMemory { needed, .. },
            ..
        }) if Case { ram: needed, ..with }.load(&good()).is_ok()
    ));
    let limited = Bz {
        initrd_addr_max: (60 << 20) - 1,
        ..Default::default()
    };
    assert_eq!(
        with.error(&limited.build()),
        "initrd I of 51380224 bytes does not fit between the kernel's end at 0x1800000 and 0x3c00000, \
         which no amount of memory changes; make it smaller"
    );
}

#[test]
fn command_lines_are_judged() {
    let line = |len| "x".repeat(len);
    let with = |cmdline: &str, kernel: &[u8]| Case { cmdline, ..CASE }.error(kernel);
    assert!(with(&line(2047), &good()).starts_with("no error"));
    assert_eq!(
        with(&line(2048), &good()),
        "the kernel command line has 2048 bytes, but this kernel takes 2047; shorten --cmdline"
    );
    let own = |cmdline_size| {
        Bz {
            cmdline_size,
            ..Default::default()
        }
        .build()
    };
    assert!(with(&line(100), &own(100)).starts_with("no error"));
    assert_eq!(
        with(&line(101), &own(100)),
        "the kernel command line has 101 bytes, but this kernel takes 100; shorten --cmdline"
    );
    assert!(with(&line(65535), &own(u32::MAX)).starts_with("no error"));
    assert_eq!(
        with(&line(65536), &own(u32::MAX)),
        "the kernel command line has 65536 bytes; shorten it to 65535 or fewer"
    );
    assert_eq!(
        with("quiet\0splash", &good()),
        "the kernel command line has a NUL at byte 5, where a kernel would stop reading; take it out"
    );
}

#[test]
fn paths_that_lead_to_no_content_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| Image::open(path).unwrap_err().to_string();
    assert_eq!(
        error(&dir.path().join("missing")),
        "can't be opened (No such file or directory (os error 2)); check the path and its permissions"
    );
    assert_eq!(
        error(dir.path()),
        "is a directory, not a regular file; pass the file itself"
    );
    assert_eq!(
        error(Path::new("/dev/zero")),
        "is a character device, not a regular file; pass the file itself"
    );
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert_eq!(error(&empty), "is empty; copy it again");
    assert_eq!(
        boot::open_kernel(&empty).unwrap_err().to_string(),
        format!("kernel {} is empty; copy it again", empty.display())
    );
    assert_eq!(
        boot::open_initrd(dir.path()).unwrap_err().to_string(),
        format!(
            "initrd {} is a directory, not a regular file; pass the file itself",
            dir.path().display()
        )
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &good()).unwrap();
    let kernel = Image::open(file.path()).unwrap();
    file.as_file().set_len(130).unwrap();
    let request = BootRequest {
        kernel: &kernel,
        initrd: None,
        cmdline: "",
        protocol: BootProtocol::Auto,
        decompress: Decompress::Auto,
        rsdp: None,
        reserved: &[],
    };
    let mem = memory::allocate(RAM).unwrap();
    let error = boot::load(&mem, &request).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Kernel {
                reason: KernelError::File(FileError::Read(_)),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn memory_without_room_for_boot_data_is_an_error() {
    let regions = [(GuestAddress(0), 4096), (GuestAddress(MIB), 1 << 20)];
    let mem = GuestMemoryMmap::from_ranges(&regions).unwrap();
    assert!(CASE.load_into(&mem, &good()).is_err());
}
