// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Errors about a kernel, an initrd or a command line: one sentence each, with the next step.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use super::decompress::NotDecompressed;
use super::image::FileKind;
use super::looks::Looks;
use crate::config::CmdlineError;
use crate::layout::MIB;
use crate::memory::Size;

/// Why a machine can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel image can't be used.
    #[error("kernel {} {reason}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: KernelError,
    },
    /// The initrd can't be used.
    #[error("initrd {} {reason}", path.display())]
    Initrd {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: InitrdError,
    },
    /// The command line is longer than this kernel accepts.
    #[error(
        "the kernel command line has {len} bytes, but this kernel takes {max}; shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest that is accepted.
        max: usize,
    },
    /// No kernel accepts this command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Boot data can't be written to guest memory.
    #[error(
        "boot data can't be written to guest memory ({0}); give the machine 32 MiB of memory or more"
    )]
    Memory(#[from] GuestMemoryError),
    /// The watcher stopped the loading.
    #[error("loading was stopped before it was done; start again")]
    Stopped,
}

/// What is wrong with a file, whatever its role.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be opened.
    #[error("can't be opened ({0}); check the path and its permissions")]
    Open(io::Error),
    /// It is neither a regular file nor a pipe.
    #[error("is {0}, not a regular file; pass the file itself")]
    Kind(FileKind),
    /// It is a pipe that ended without data.
    #[error("is a pipe that brings nothing; check what writes to it")]
    EmptyPipe,
    /// It is a pipe with more data than the machine could use.
    #[error("is a pipe that brings more than the {} of memory that the machine has; pass a regular file, or more --memory", Size(*max))]
    LongPipe {
        /// The most bytes that are accepted.
        max: u64,
    },
    /// It has no content.
    #[error("is empty; copy it again")]
    Empty,
    /// It can't be read.
    #[error("can't be read ({0}); copy it again or check the disk")]
    Read(io::Error),
}

/// What is wrong with a kernel image. The messages continue the phrase "kernel PATH".
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// It ends before a part that its headers describe.
    #[error(
        "is truncated: its {part} reaches to byte {end}, but the file ends at {len}; copy it again"
    )]
    Truncated {
        /// What is missing.
        part: &'static str,
        /// Where that part ends.
        end: u64,
        /// Where the file ends.
        len: u64,
    },
    /// It is something else.
    #[error("is no Linux kernel but looks like {looks}; {}", looks.advice())]
    NotAKernel {
        /// What it looks like.
        looks: Looks,
    },
    /// It was built for another instruction set.
    #[error("is built for {0}; pass a kernel for x86-64")]
    Architecture(Isa),
    /// It is an ELF file of 32 bits or of 32-bit x86 code, neither of which can be booted.
    #[error(
        "is a 32-bit ELF file, as hypervisors (Xen), firmware, boot loaders and i386 kernels are; pass a 64-bit Linux kernel (vmlinux or bzImage)"
    )]
    Elf32,
    /// It is an ELF file, but of a type that can't be loaded.
    #[error("is an ELF {0}; pass an uncompressed vmlinux or a bzImage")]
    ElfType(&'static str),
    /// An ELF header field has a value that no valid file has.
    #[error("is damaged: its ELF header says {field} is {value}; copy it again")]
    ElfHeader {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// There is nothing to load in the ELF file.
    #[error("has no segment to load; pass an uncompressed vmlinux, not its debug symbols")]
    NoSegments,
    /// One segment of the ELF file can't be loaded.
    #[error(
        "can't be loaded: segment {index} {problem}; pass a vmlinux as the kernel build made it"
    )]
    Segment {
        /// Its index in the program header table.
        index: usize,
        /// What is wrong with it.
        problem: SegmentError,
    },
    /// The 64-bit entry point is not in a segment loaded from the file.
    #[error(
        "can't be entered: entry point {0:#x} lies in nothing that it loads from the file; pass a vmlinux as the kernel build made it"
    )]
    Entry(u64),
    /// The PVH entry point is not in a segment loaded from the file.
    #[error(
        "can't be entered: PVH entry point {0:#x} lies in nothing that it loads from the file; pass --boot-protocol linux"
    )]
    PvhEntry(u64),
    /// PVH was requested, but the kernel has no such entry.
    #[error("has no PVH entry; pass --boot-protocol linux, or build it with CONFIG_PVH=y")]
    NoPvh,
    /// PVH was requested, but the kernel inside the bzImage can't be decompressed.
    #[error(
        "is a bzImage, whose PVH entry is out of reach: {0}; pass --boot-protocol linux or a vmlinux"
    )]
    PvhCompressed(NotDecompressed),
    /// The host was asked to decompress it, and failed.
    #[error("can't be decompressed by the host: {0}; say --decompress auto")]
    HostCompressed(NotDecompressed),
    /// The bzImage's boot protocol is too old.
    #[error("speaks boot protocol {}.{:02}, but 2.12 or later is needed; pass a kernel of Linux 3.8 or later", .0 >> 8, .0 & 0xff)]
    ProtocolTooOld(u16),
    /// The bzImage has no 64-bit entry point.
    #[error("is a 32-bit kernel (it has no 64-bit entry point); pass a kernel for x86-64")]
    Only32Bit,
    /// A bzImage header field has a value that no valid file has.
    #[error("is damaged: its setup header says {field} is {value:#x}; copy it again")]
    SetupHeader {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// It needs more RAM than the machine has.
    #[error("needs {} of memory, but the machine has {}; pass --memory {}M or more", Size(*needed), Size(*have), needed / MIB)]
    NeedsMemory {
        /// Bytes of RAM that would suffice, in whole mebibytes.
        needed: u64,
        /// Bytes of RAM below the hole.
        have: u64,
    },
}

/// What is wrong with one segment of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// It has more bytes in the file than in memory.
    #[error("has {file} bytes in the file but only {memory} in memory")]
    FileSize {
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// It wraps around the end of the address space.
    #[error("of {size} bytes at {start:#x} wraps around the address space")]
    Wraps {
        /// Its physical address.
        start: u64,
        /// Bytes in memory.
        size: u64,
    },
    /// It lies in the range of the machine's boot data.
    #[error("at {start:#x} lies below 1 MiB, where the machine keeps its boot data")]
    LowMemory {
        /// Its physical address.
        start: u64,
    },
    /// It ends beyond the RAM in which kernels are loaded.
    #[error("at {start:#x} ends at {end:#x}, beyond the 3 GiB in which kernels are loaded")]
    OutOfReach {
        /// Its physical address.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// It overlaps another one.
    #[error("at {start:#x} overlaps segment {other}")]
    Overlaps {
        /// Its physical address.
        start: u64,
        /// The other one's index.
        other: usize,
    },
}

/// The instruction set that an ELF file or kernel image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Isa {
    /// An instruction set by name.
    #[error("{0}")]
    Named(&'static str),
    /// An ELF machine number without a name here.
    #[error("ELF machine {0}")]
    Elf(u16),
}

/// What is wrong with an initrd. The messages continue the phrase "initrd PATH".
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// It doesn't fit, but it would with more RAM.
    #[error("of {size} bytes does not fit above the kernel, which ends at {kernel_end:#x}; pass --memory {}M or more", needed / MIB)]
    NeedsMemory {
        /// Its size in bytes.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Bytes of RAM that would suffice, in whole mebibytes.
        needed: u64,
    },
    /// It doesn't fit, whatever the RAM.
    #[error(
        "of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}, which no amount of memory changes; make it smaller"
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// The highest end address of an initrd.
        limit: u64,
    },
}
