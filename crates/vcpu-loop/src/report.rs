// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failure reports: data that prints as a few lines of text.

use std::fmt;

use crate::error::StartError;
use crate::exit::FatalExit;
use crate::history::ExitHistory;
use crate::id::{BoxError, VcpuId};

/// Maximum instruction bytes in a report. The longest x86 instruction has 15 bytes.
pub const INSTRUCTION_BYTES: usize = 16;

/// A segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes as in bits 8–23 of a descriptor's second word: type, S, DPL, P, AVL, L, D/B, G
    /// (Intel SDM, volume 3, section 3.4.5), shifted down by 8.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The registers that explain a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// CS, DS, ES, FS, GS, SS, TR, LDTR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2, the address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl Registers {
    /// Names in the order of [`Registers::gpr`].
    pub const GPR_NAMES: [&'static str; 16] = [
        "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP", "R8", "R9", "R10", "R11", "R12",
        "R13", "R14", "R15",
    ];
    /// Names in the order of [`Registers::segments`].
    pub const SEGMENT_NAMES: [&'static str; 8] = ["CS", "DS", "ES", "FS", "GS", "SS", "TR", "LDTR"];

    /// Whether they are at the reset vector (Intel SDM volume 3, section "First Instruction Executed"). After a triple
    /// fault, this means that kvm-amd has reset the vCPU, because the VMCB is undefined after a shutdown intercept (AMD
    /// APM volume 2, section "Shutdown Intercept").
    fn are_reset(&self) -> bool {
        self.rip == 0xfff0 && self.segments[0].base == 0xffff_0000
    }
}

/// The guest's instruction bytes at its instruction pointer, or why they are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionBytes {
    /// The first `len` of `bytes`, found at guest-physical address `gpa`.
    Read {
        /// Guest-physical address of the first byte.
        gpa: u64,
        /// The bytes.
        bytes: [u8; INSTRUCTION_BYTES],
        /// How many are valid.
        len: usize,
    },
    /// The guest's page tables don't map the address.
    NotMapped {
        /// Linear address.
        linear: u64,
    },
    /// The address translates to memory that isn't guest RAM.
    NotRam {
        /// Guest-physical address.
        gpa: u64,
    },
    /// The vCPU has no reader for guest memory.
    Unavailable,
}

impl fmt::Display for InstructionBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstructionBytes::Read { gpa, bytes, len } => {
                write!(f, "bytes at RIP:")?;
                let bytes = &bytes[..(*len).min(INSTRUCTION_BYTES)];
                bytes.iter().try_for_each(|b| write!(f, " {b:02x}"))?;
                write!(f, " (guest-physical {gpa:#x})")
            }
            InstructionBytes::NotMapped { linear } => {
                write!(f, "bytes at RIP: linear address {linear:#x} is not mapped")
            }
            InstructionBytes::NotRam { gpa } => {
                write!(f, "bytes at RIP: guest-physical {gpa:#x} is not RAM")
            }
            InstructionBytes::Unavailable => write!(f, "bytes at RIP: no reader for guest memory"),
        }
    }
}

/// Registers and instruction bytes of a vCPU that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuDump {
    /// Registers.
    pub registers: Registers,
    /// The bytes at the instruction pointer.
    pub instruction: InstructionBytes,
}

impl fmt::Display for CpuDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.registers;
        writeln!(f, "  RIP {:016x}  RFLAGS {:016x}", r.rip, r.rflags)?;
        for (names, values) in Registers::GPR_NAMES.chunks(4).zip(r.gpr.chunks(4)) {
            for (name, value) in names.iter().zip(values) {
                write!(f, "  {name:<3} {value:016x}")?;
            }
            writeln!(f)?;
        }
        for (name, s) in Registers::SEGMENT_NAMES.iter().zip(&r.segments) {
            writeln!(
                f,
                "  {name:<4} {:04x}  base {:016x}  limit {:08x}  attributes {:04x}",
                s.selector, s.base, s.limit, s.attributes
            )?;
        }
        for (name, t) in [("GDT", r.gdt), ("IDT", r.idt)] {
            writeln!(
                f,
                "  {name}        base {:016x}  limit {:08x}",
                t.base, t.limit
            )?;
        }
        writeln!(
            f,
            "  CR0 {:08x}  CR2 {:016x}  CR3 {:016x}  CR4 {:08x}  EFER {:08x}",
            r.cr0, r.cr2, r.cr3, r.cr4, r.efer
        )?;
        write!(f, "  {}", self.instruction)
    }
}

/// What ended a vCPU.
#[derive(Debug)]
#[non_exhaustive]
pub enum FailureReason {
    /// A triple fault, or INIT on hosts that report it like this.
    TripleFault,
    /// KVM could not continue.
    Exit(FatalExit),
    /// Code on the vCPU's thread panicked: a device, a hook, or another part of the VMM.
    Panic {
        /// The panic's message, or a placeholder if it was not text.
        message: String,
    },
    /// The host failed a call for this vCPU.
    Host(BoxError),
    /// The start hook failed.
    Start(StartError),
    /// One instruction did not complete within the number of exits that any instruction needs.
    NeverSettled {
        /// How many exits were answered before giving up.
        exits: u32,
    },
    /// The thread ended without a report: a bug in this crate, or a panic within a panic.
    Lost,
}

/// Writes an error and its causes on one line.
fn with_causes(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    write!(f, "{error}")?;
    let mut source = error.source();
    while let Some(cause) = source {
        write!(f, ": {cause}")?;
        source = cause.source();
    }
    Ok(())
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureReason::TripleFault => write!(f, "triple fault"),
            FailureReason::Exit(exit) => exit.fmt(f),
            FailureReason::Panic { message } => write!(f, "its thread panicked: {message}"),
            FailureReason::Host(error) => {
                write!(f, "the host failed: ")?;
                with_causes(f, error.as_ref())
            }
            FailureReason::Start(error) => with_causes(f, error),
            FailureReason::NeverSettled { exits } => {
                write!(
                    f,
                    "one instruction was still incomplete after {exits} exits"
                )
            }
            FailureReason::Lost => write!(f, "its thread ended without a report"),
        }
    }
}

/// Added to a report whose registers are those of a reset.
const WAS_RESET: &str = "(these are the registers of a reset: KVM on AMD processors resets a vCPU before it \
                         reports a triple fault)";

/// What is known about a vCPU's end. `Display` writes the report: several lines, no final newline.
#[derive(Debug)]
pub struct FailureReport {
    /// Which vCPU.
    pub id: VcpuId,
    /// Why it ended.
    pub reason: FailureReason,
    /// Its registers, if they could be read.
    pub dump: Option<CpuDump>,
    /// Its last exits.
    pub exits: ExitHistory,
}

impl fmt::Display for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {} failed: {}", self.id, self.reason)?;
        match &self.dump {
            Some(dump) => {
                writeln!(f, "{dump}")?;
                if matches!(self.reason, FailureReason::TripleFault) && dump.registers.are_reset() {
                    writeln!(f, "  {WAS_RESET}")?;
                }
            }
            None => writeln!(f, "  registers could not be read")?,
        }
        write!(f, "  last exits, newest first:")?;
        if self.exits.is_empty() {
            write!(f, " none")?;
        }
        self.exits
            .newest_first()
            .try_for_each(|exit| write!(f, "\n    {exit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rip: u64, base: u64, reason: FailureReason) -> String {
        let mut registers = Registers {
            rip,
            ..Registers::default()
        };
        registers.segments[0].base = base;
        let report = FailureReport {
            id: VcpuId::from(0u32),
            reason,
            dump: Some(CpuDump {
                registers,
                instruction: InstructionBytes::Unavailable,
            }),
            exits: ExitHistory::default(),
        };
        report.to_string()
    }

    #[test]
    fn registers_of_a_reset_are_no_evidence_of_a_triple_fault() {
        let was_reset = report(0xfff0, 0xffff_0000, FailureReason::TripleFault);
        assert!(was_reset.contains(WAS_RESET), "{was_reset}");
        let real = report(0xfff0, 0, FailureReason::TripleFault);
        assert!(!real.contains(WAS_RESET), "{real}");
        let other = report(0xfff0, 0xffff_0000, FailureReason::Lost);
        assert!(!other.contains(WAS_RESET), "{other}");
    }
}
