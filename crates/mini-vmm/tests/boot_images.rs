// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels that boot: the contents of guest memory afterwards, for each format and protocol.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use images::booted::{Booted, image, kernel_elf, pvh_elf};
use images::{AT, Bz, PT_INTERP, PT_NOTE, Ph, RAM, elf, note, padded_note, patch, zstd_stored};
use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use mini_vmm::boot::{self, BootRequest, Format, Image, Protocol};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::{ACPI_TABLES, CMDLINE, PVH_START_INFO, ZERO_PAGE};
use mini_vmm::memory;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn elf_boots_by_its_64_bit_entry() {
    let vm = Booted::auto(kernel_elf());
    assert_eq!(vm.loaded.protocol, Protocol::Linux64);
    assert_eq!(vm.loaded.entry.0, AT);
    assert_eq!(vm.loaded.format, Format::Elf);
    assert_eq!(vm.loaded.kernel_start.0, AT);
    assert_eq!(vm.loaded.kernel_end.0, AT + 0x3006);
    assert_eq!(vm.bytes(AT, 20), b"text of the kernel\0\0");
    assert_eq!(vm.bytes(AT + 0x3000, 6), b"percpu");
    vm.check_zero_page();
}

#[test]
fn any_single_segment_at_16_mib_boots() {
    let code = [0xf4; 100];
    for (entry, virt) in [(AT + 3, AT), (0xffff_8000_0000_0003, 0xffff_8000_0000_0000)] {
        let segment = Ph {
            virt,
            ..Ph::load(AT, &code)
        };
        let vm = Booted::auto(elf(entry, &[segment]));
        assert_eq!(vm.loaded.entry.0, AT + 3);
        assert_eq!(vm.loaded.regs().rip, AT + 3);
        assert_eq!(vm.loaded.regs().rsi, ZERO_PAGE);
        assert_eq!(vm.bytes(AT, 100), code);
    }
}

#[test]
fn elf_with_the_note_boots_by_pvh() {
    let vm = Booted::auto(pvh_elf());
    vm.check_common();
    assert_eq!(vm.loaded.protocol, Protocol::Pvh);
    assert_eq!(vm.loaded.entry.0, AT + 0x20);
    assert_eq!(vm.loaded.regs().rbx, PVH_START_INFO);
    let info: hvm_start_info = vm.mem.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
    assert_eq!((info.magic, info.version), (0x336e_c578, 1));
    assert_eq!(
        (info.cmdline_paddr, info.rsdp_paddr),
        (CMDLINE, ACPI_TABLES)
    );
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = vm.mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (RAM - 8192, 6000));
    let map = memory::memory_map(&vm.mem, &[]);
    assert_eq!(info.memmap_entries as usize, map.len());
    for (i, entry) in (0..).zip(map) {
        let told: hvm_memmap_table_entry = vm
            .mem
            .read_obj(GuestAddress(info.memmap_paddr + i * 24))
            .unwrap();
        assert_eq!(
            (told.addr, told.size, told.type_),
            (entry.start, entry.size, entry.kind as u32)
        );
    }
}

#[test]
fn the_note_is_found_in_both_widths_and_not_needed() {
    let narrow = Ph {
        data: note(b"Xen\0", 18, &(AT as u32 + 4).to_le_bytes()),
        file_size: 20,
        ..Ph::pvh(0)
    };
    let code = Ph::load(AT, &[0x90; 64]);
    let vm = Booted::auto(elf(AT, &[narrow, code.clone()]));
    assert_eq!(vm.loaded.entry.0, AT + 4);
    let vm = Booted::new(pvh_elf(), BootProtocol::Linux, Decompress::Auto);
    assert_eq!(vm.loaded.protocol, Protocol::Linux64);
    // Other vendors' notes, truncated notes and huge sizes are skipped.
    let mut lie = note(b"Xen\0", 18, &[0; 8]);
    lie[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    for notes in [
        note(b"Xen\0", 2, &[0; 8]),
        note(b"Ken\0", 18, &[0; 8]),
        vec![4, 0],
        lie,
    ] {
        let ph = Ph {
            file_size: notes.len() as u64,
            data: notes,
            ..Ph::pvh(0)
        };
        let vm = Booted::auto(elf(AT, &[ph, code.clone()]));
        assert_eq!(vm.loaded.protocol, Protocol::Linux64);
    }
}

#[test]
fn the_note_is_found_however_notes_are_padded() {
    let entry = AT + 8;
    // Names and descriptors with padding, and an empty note.
    let notes = |align| {
        let mut notes = padded_note(align, b"GNU\0", 3, &[0xbb; 20]);
        notes.extend(padded_note(align, b"", 0, b""));
        notes.extend(padded_note(align, b"a long name\0", 18, b"odd"));
        notes.extend(padded_note(align, b"Xen\0", 18, b""));
        notes.extend(padded_note(align, b"Xen\0", 18, &entry.to_le_bytes()));
        notes
    };
    // Linkers give a merged segment of notes the alignment of its strictest note, though all are padded to 4 bytes.
    for (align, padding) in [(8, 8), (4, 4), (1, 4), (0, 4), (8, 4)] {
        let code = Ph::load(AT, &[0x90; 64]);
        let vm = Booted::auto(elf(AT, &[Ph::notes(align, &notes(padding)), code]));
        let context = format!("p_align {align}, padded to {padding}");
        assert_eq!(vm.loaded.protocol, Protocol::Pvh, "{context}");
        assert_eq!(vm.loaded.entry.0, entry, "{context}");
    }
}

#[test]
fn the_note_is_found_in_any_segment_of_notes() {
    let others = Ph::notes(8, &padded_note(8, b"GNU\0", 5, &[0; 16]));
    let nothing = Ph::notes(4, b"");
    let code = Ph::load(AT, &[0x90; 64]);
    let vm = Booted::auto(elf(AT, &[others, nothing, code, Ph::pvh(AT + 4)]));
    assert_eq!(vm.loaded.protocol, Protocol::Pvh);
    assert_eq!(vm.loaded.entry.0, AT + 4);
}

#[test]
fn what_is_not_read_from_the_file_may_lie_anywhere() {
    for beyond in [u64::MAX, 0x7fff_ffff, 1 << 40] {
        let bss = Ph {
            memory_size: 0x1000,
            offset: Some(beyond),
            ..Ph::load(AT + 0x10_0000, b"")
        };
        let unread = |kind| Ph {
            kind,
            offset: Some(beyond),
            ..Ph::load(0, b"")
        };
        let code = Ph::load(AT, &[0x90; 64]);
        let image = elf(AT, &[bss, code, unread(PT_NOTE), Ph::pvh(AT)]);
        // The section header table's offset is set, but there are no section headers.
        let image = patch(image, 40, &beyond.to_le_bytes());
        let vm = Booted::auto(image.clone());
        assert_eq!(vm.loaded.protocol, Protocol::Pvh);
        assert_eq!(vm.loaded.kernel_end.0, AT + 0x10_1000);
        let bz = Bz {
            payload: zstd_stored(&image),
            ..Default::default()
        };
        let vm = Booted::new(bz.build(), BootProtocol::Auto, Decompress::Host);
        assert_eq!(vm.loaded.entry.0, AT);
    }
}

#[test]
fn a_kernel_that_names_an_interpreter_boots_by_its_note() {
    // FreeBSD's; the name is never used.
    let interp = Ph {
        kind: PT_INTERP,
        ..Ph::load(0, b"/red/herring\0")
    };
    let code = Ph::load(AT, &[0x90; 64]);
    let vm = Booted::auto(elf(AT, &[interp, code, Ph::pvh(AT)]));
    assert_eq!(vm.loaded.protocol, Protocol::Pvh);
}

#[test]
fn the_log_line_says_what_happened() {
    let bz = Bz {
        payload: zstd_stored(&kernel_elf()),
        ..Default::default()
    };
    let line = Booted::new(bz.build(), BootProtocol::Auto, Decompress::Guest)
        .loaded
        .to_string();
    assert_eq!(
        line,
        "kernel: bzImage 2.15, decompressed by the guest as --decompress guest was asked for; 0x100000..0x1800000, \
         64-bit Linux entry 0x100200; initrd 0x3ffe000..0x3fff770"
    );
    assert_eq!(
        Booted::auto(pvh_elf()).loaded.to_string(),
        "kernel: ELF; 0x1000000..0x1000040, PVH entry 0x1000020; initrd 0x3ffe000..0x3fff770"
    );
}

#[test]
fn files_are_loaded_like_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [
        kernel_elf(),
        Bz {
            payload: zstd_stored(&kernel_elf()),
            ..Default::default()
        }
        .build(),
    ] {
        let path = dir.path().join("kernel with no telling name");
        std::fs::write(&path, &bytes).unwrap();
        let mem = memory::allocate(RAM).unwrap();
        let kernel = Image::open(&path).unwrap();
        let request = BootRequest {
            kernel: &kernel,
            initrd: Some(&kernel),
            cmdline: "",
            protocol: BootProtocol::Auto,
            decompress: Decompress::Auto,
            rsdp: None,
            reserved: &[],
        };
        let loaded = boot::load(&mem, &request).unwrap();
        let mut text = [0; 18];
        mem.read_slice(&mut text, GuestAddress(AT)).unwrap();
        assert_eq!(&text, b"text of the kernel");
        let (start, size) = loaded.initrd.unwrap();
        let mut initrd = vec![0; size as usize];
        mem.read_slice(&mut initrd, start).unwrap();
        assert_eq!(initrd, bytes);
    }
}

#[test]
fn high_memory_is_in_the_map_and_not_in_the_way() {
    let mem = memory::allocate(5 << 30).unwrap();
    let kernel = image(kernel_elf());
    let request = BootRequest {
        kernel: &kernel,
        initrd: Some(&kernel),
        cmdline: "",
        protocol: BootProtocol::Auto,
        decompress: Decompress::Auto,
        rsdp: None,
        reserved: &[],
    };
    let loaded = boot::load(&mem, &request).unwrap();
    let (start, size) = loaded.initrd.unwrap();
    assert!(start.0 + size <= 3 << 30 && start.0 + size > (3 << 30) - 4096);
    let params: boot_params = mem.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
    let table = params.e820_table;
    let last = table[usize::from(params.e820_entries) - 1];
    assert_eq!((last.addr, last.size, last.r#type), (4 << 30, 2 << 30, 1));
}
