// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The boot processor's registers at the kernel's entry point. The other processors keep their reset state.
//!
//! FPU and MXCSR are not set: KVM creates a vCPU with their architectural defaults.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::{Loaded, Protocol};
use crate::layout::{
    BOOT_GDT, BOOT_IDT, BOOT_PAGE_TABLES, BOOT_STACK, GIB, MIB, PAGE_SIZE, PVH_START_INFO,
    ZERO_PAGE,
};

// Intel SDM volume 3, section 2.5 (control registers) and 2.2.1 (EFER).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set. Interrupts are off.
const RFLAGS: u64 = 1 << 1;

// Page table entries (SDM volume 3, section 4.5).
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// The selectors that Linux's boot protocol requires: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// The limit of the unused IDT: one gate.
const IDT_LIMIT: u16 = 0xf;

/// Segment types (SDM volume 3, section 3.4.5.1 and 3.5), accessed or busy.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;

/// A flat 4 GiB segment.
const fn flat(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The task register must be valid. It is unused before the kernel loads its own.
const TASK: kvm_segment = kvm_segment {
    base: 0,
    limit: 0x67,
    selector: 0,
    type_: TYPE_TSS,
    present: 1,
    dpl: 0,
    db: 0,
    s: 0,
    l: 0,
    g: 0,
    avl: 0,
    unusable: 0,
    padding: 0,
};

/// The GDT entry of a flat segment (SDM volume 3, section 3.4.5).
const fn descriptor(segment: kvm_segment) -> u64 {
    let limit = (segment.limit >> 12) as u64;
    let access = segment.type_ as u64
        | (segment.s as u64) << 4
        | (segment.dpl as u64) << 5
        | (segment.present as u64) << 7;
    let flags = (segment.l as u64) << 1 | (segment.db as u64) << 2 | (segment.g as u64) << 3;
    (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
}

/// The code segment at the entry point of `protocol`.
const fn code_segment(protocol: Protocol) -> kvm_segment {
    match protocol {
        Protocol::Linux64 => flat(CODE_SELECTOR, TYPE_CODE, 1),
        Protocol::Pvh => flat(CODE_SELECTOR, TYPE_CODE, 0),
    }
}

/// Writes what the registers point to: the GDT, the IDT, and page tables if the protocol starts with paging.
pub(crate) fn write_tables<M: GuestMemoryBackend>(
    mem: &M,
    protocol: Protocol,
) -> Result<(), GuestMemoryError> {
    let gdt = [
        0,
        0,
        descriptor(code_segment(protocol)),
        descriptor(flat(DATA_SELECTOR, TYPE_DATA, 0)),
    ];
    for (address, entry) in (BOOT_GDT..).step_by(8).zip(gdt) {
        mem.write_obj(entry, GuestAddress(address))?;
    }
    mem.write_obj(0u128, GuestAddress(BOOT_IDT))?;
    match protocol {
        Protocol::Linux64 => write_page_tables(mem),
        Protocol::Pvh => Ok(()),
    }
}

/// Maps the first 4 GiB one to one, in pages of 2 MiB.
fn write_page_tables<M: GuestMemoryBackend>(mem: &M) -> Result<(), GuestMemoryError> {
    let pdpt = BOOT_PAGE_TABLES + PAGE_SIZE;
    let directories = pdpt + PAGE_SIZE;
    mem.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(BOOT_PAGE_TABLES))?;
    for i in 0..4 {
        let directory = directories + i * PAGE_SIZE;
        mem.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + i * 8))?;
        let mut table = [0u8; PAGE_SIZE as usize];
        for (j, entry) in (0..ENTRIES).zip(table.chunks_exact_mut(8)) {
            let page = i * GIB + j * 2 * MIB;
            entry.copy_from_slice(&(page | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
        }
        mem.write_slice(&table, GuestAddress(directory))?;
    }
    Ok(())
}

/// The general registers at the kernel's entry point.
///
/// # Example
/// ```
/// # use mini_vmm::boot::{Protocol, regs};
/// let regs = regs::general(Protocol::Linux64, vm_memory::GuestAddress(0x100_0000));
/// assert_eq!(regs.rip, 0x100_0000);
/// ```
pub fn general(protocol: Protocol, entry: GuestAddress) -> kvm_regs {
    let regs = kvm_regs {
        rip: entry.0,
        rflags: RFLAGS,
        rsp: BOOT_STACK,
        ..Default::default()
    };
    match protocol {
        Protocol::Linux64 => kvm_regs {
            rsi: ZERO_PAGE,
            ..regs
        },
        Protocol::Pvh => kvm_regs {
            rbx: PVH_START_INFO,
            ..regs
        },
    }
}

/// Edits a fresh vCPU's special registers for the kernel's entry point: 64-bit mode with the first 4 GiB mapped for
/// Linux, 32-bit protected mode without paging for PVH.
pub fn special(protocol: Protocol, sregs: &mut kvm_sregs) {
    let data = flat(DATA_SELECTOR, TYPE_DATA, 0);
    sregs.cs = code_segment(protocol);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.tr = TASK;
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    sregs.gdt = table(BOOT_GDT, 4 * 8 - 1);
    sregs.idt = table(BOOT_IDT, IDT_LIMIT);
    sregs.cr0 = CR0_PE | CR0_ET;
    (sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0, 0);
    if protocol == Protocol::Linux64 {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = BOOT_PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

impl Loaded {
    /// The boot processor's general registers at the start.
    pub fn regs(&self) -> kvm_regs {
        general(self.protocol, self.entry)
    }

    /// Edits a fresh vCPU's special registers for the boot processor's start.
    pub fn edit_sregs(&self, sregs: &mut kvm_sregs) {
        special(self.protocol, sregs);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn descriptors_are_linux_boot_descriptors() {
        assert_eq!(
            descriptor(code_segment(Protocol::Linux64)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(code_segment(Protocol::Pvh)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(flat(DATA_SELECTOR, TYPE_DATA, 0)),
            0x00cf_9300_0000_ffff
        );
    }

    #[test]
    fn page_tables_map_4_gib_onto_themselves() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
        write_tables(&mem, Protocol::Linux64).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            let entry = mem
                .read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8))
                .unwrap();
            assert_eq!(entry & 1, 1, "not present");
            entry
        };
        for address in [
            0,
            0x7000,
            2 * MIB,
            16 * MIB + 5,
            3 * GIB + 12345,
            4 * GIB - 1,
        ] {
            let pdpt = entry(BOOT_PAGE_TABLES, address >> 39);
            let directory = entry(pdpt, (address >> 30) & 511);
            let page = entry(directory, (address >> 21) & 511);
            assert_ne!(page & LARGE_PAGE, 0);
            assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
    }

    #[test]
    fn linux_starts_in_64_bit_mode_and_pvh_in_32_bit_mode() {
        let mut sregs = kvm_sregs::default();
        special(Protocol::Linux64, &mut sregs);
        assert_eq!(
            (sregs.cr0, sregs.cr4, sregs.efer),
            (0x8000_0011, 0x20, 0x500)
        );
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!((sregs.ds.selector, sregs.ss.selector), (0x18, 0x18));
        assert_eq!(general(Protocol::Linux64, GuestAddress(1)).rsi, ZERO_PAGE);

        special(Protocol::Pvh, &mut sregs);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x11, 0, 0, 0)
        );
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.tr.limit), (0, 1, 0x67));
        let regs = general(Protocol::Pvh, GuestAddress(1));
        assert_eq!((regs.rbx, regs.rflags), (PVH_START_INFO, 2));
    }
}
