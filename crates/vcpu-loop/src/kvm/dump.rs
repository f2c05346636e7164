// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Registers and instruction bytes for a failure report.

use kvm_bindings::{kvm_dtable, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::report::{
    CpuDump, DescriptorTable, INSTRUCTION_BYTES, InstructionBytes, Registers, Segment,
};

const PAGE: u64 = 4096;

/// EFER.LMA: 64-bit or compatibility mode.
const EFER_LMA: u64 = 1 << 10;

/// Reads the guest's RAM by guest-physical address. Implemented for closures.
pub trait ReadGuest: Send {
    /// Reads up to `buf.len()` bytes at `gpa`, and returns how many were read. It stops where RAM ends.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> usize;
}

impl<F: Fn(u64, &mut [u8]) -> usize + Send> ReadGuest for F {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> usize {
        self(gpa, buf)
    }
}

fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attributes: u16::from(s.type_ & 0xf)
            | bit(s.s, 4)
            | u16::from(s.dpl & 3) << 5
            | bit(s.present, 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15),
    }
}

fn table(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

/// `None` if KVM doesn't return the registers.
pub(super) fn dump(fd: &VcpuFd, memory: Option<&dyn ReadGuest>) -> Option<CpuDump> {
    let r = fd.get_regs().ok()?;
    let s = fd.get_sregs().ok()?;
    let registers = Registers {
        gpr: [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        segments: [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].map(segment),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.efer,
    };
    // In 64-bit mode the base of CS counts as 0 (Intel SDM, volume 3, section 3.4.4).
    let long = s.efer & EFER_LMA != 0 && s.cs.l != 0;
    let linear = if long {
        r.rip
    } else {
        s.cs.base.wrapping_add(r.rip) & 0xffff_ffff
    };
    let instruction = memory.map_or(InstructionBytes::Unavailable, |memory| {
        bytes_at(fd, memory, linear)
    });
    Some(CpuDump {
        registers,
        instruction,
    })
}

/// Reads across a page boundary only if the second page is also mapped.
fn bytes_at(fd: &VcpuFd, memory: &dyn ReadGuest, linear: u64) -> InstructionBytes {
    let translate = |linear| {
        fd.translate_gva(linear)
            .ok()
            .filter(|t| t.valid != 0)
            .map(|t| t.physical_address)
    };
    let Some(gpa) = translate(linear) else {
        return InstructionBytes::NotMapped { linear };
    };
    let mut bytes = [0u8; INSTRUCTION_BYTES];
    let in_page = (PAGE - linear % PAGE).min(INSTRUCTION_BYTES as u64) as usize;
    let (first, second) = bytes.split_at_mut(in_page);
    let mut len = memory.read(gpa, first).min(in_page);
    if len == 0 {
        return InstructionBytes::NotRam { gpa };
    }
    if len == in_page
        && !second.is_empty()
        && let Some(gpa) = translate(linear.wrapping_add(in_page as u64))
    {
        len += memory.read(gpa, second).min(second.len());
    }
    InstructionBytes::Read { gpa, bytes, len }
}
