// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! 64-bit ELF kernels. All headers are checked before anything is loaded.

use linux_loader::elf::{EI_CLASS, EI_DATA, Elf64_Ehdr, Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::error::{FileError, Isa, KernelError, SegmentError};
use super::image::Source;
use super::notes;
use crate::layout::{HIGH_RAM, HOLE_START, MIB};

/// The first bytes of an ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// No kernel has more program headers; the 16-bit count would allow 65,535.
const MAX_PROGRAM_HEADERS: u16 = 1024;
/// Bytes of a note segment that are searched. Kernels have less than one KiB of notes.
const MAX_NOTES: usize = MIB as usize;

/// A part of an image, and where it goes in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Its index in the program header table.
    pub(super) index: usize,
    /// Its offset in the image.
    pub(super) offset: u64,
    /// Its size in the image, in bytes.
    pub(super) file_size: u64,
    /// Its physical address.
    pub(super) start: u64,
    /// Its virtual address.
    pub(super) virtual_start: u64,
    /// Its size in memory, in bytes. What exceeds `file_size` is zero.
    pub(super) memory_size: u64,
}

impl Segment {
    /// Its end. [`segment`] has checked that it doesn't wrap.
    pub(super) fn end(&self) -> u64 {
        self.start + self.memory_size
    }
}

/// An ELF kernel whose segments don't overlap, are in reach, and lie within the file.
#[derive(Debug)]
pub(super) struct Elf {
    /// Sorted by address, at least one.
    pub(super) segments: Vec<Segment>,
    entry: u64,
    pvh_entry: Option<u64>,
}

impl Elf {
    pub(super) fn parse(source: Source<'_>) -> Result<Self, KernelError> {
        let header = header(source)?;
        let program_headers = program_headers(source, &header)?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        let mut is_program = false;
        for (index, ph) in program_headers.iter().enumerate() {
            match ph.p_type {
                PT_LOAD => segments.extend(segment(source, index, ph)?),
                PT_NOTE if pvh_entry.is_none() => pvh_entry = pvh_note(source, ph)?,
                PT_INTERP => is_program = true,
                _ => {}
            }
        }
        // FreeBSD's kernel also names an interpreter, which is not used.
        if is_program && pvh_entry.is_none() {
            return Err(KernelError::ElfType("user-space program"));
        }
        segments.sort_by_key(|segment| segment.start);
        for pair in segments.windows(2) {
            if pair[0].end() > pair[1].start {
                return Err(KernelError::Segment {
                    index: pair[1].index,
                    problem: SegmentError::Overlaps {
                        start: pair[1].start,
                        other: pair[0].index,
                    },
                });
            }
        }
        if segments.is_empty() {
            return Err(KernelError::NoSegments);
        }
        Ok(Elf {
            segments,
            entry: header.e_entry,
            pvh_entry,
        })
    }

    /// Whether it has the PVH note.
    pub(super) fn has_pvh(&self) -> bool {
        self.pvh_entry.is_some()
    }

    /// The physical address of the PVH entry point.
    pub(super) fn pvh(&self) -> Result<u64, KernelError> {
        let entry = self.pvh_entry.ok_or(KernelError::NoPvh)?;
        self.is_code(entry)
            .then_some(entry)
            .ok_or(KernelError::PvhEntry(entry))
    }

    /// The physical address of the 64-bit entry point. Linux states a physical address. For a kernel that states a
    /// virtual one, its segment translates it.
    pub(super) fn linux64(&self) -> Result<u64, KernelError> {
        if self.is_code(self.entry) {
            return Ok(self.entry);
        }
        self.segments
            .iter()
            .find_map(|segment| {
                let offset = self.entry.checked_sub(segment.virtual_start)?;
                (offset < segment.file_size).then(|| segment.start + offset)
            })
            .ok_or(KernelError::Entry(self.entry))
    }

    fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            address
                .checked_sub(segment.start)
                .is_some_and(|offset| offset < segment.file_size)
        })
    }
}

/// Reads and checks the ELF header.
fn header(source: Source<'_>) -> Result<Elf64_Ehdr, KernelError> {
    let mut header = Elf64_Ehdr::default();
    let size = size_of::<Elf64_Ehdr>();
    within(source, "ELF header", 0, size as u64)?;
    read(source, 0, header.as_mut_slice())?;
    let class = header.e_ident[EI_CLASS];
    if header.e_ident[EI_DATA] != ELFDATA2LSB {
        return Err(KernelError::Architecture(Isa::Named(
            "a big-endian machine",
        )));
    }
    match (header.e_machine, class) {
        (EM_X86_64, ELFCLASS64) => {}
        (EM_386, ELFCLASS32 | ELFCLASS64) | (EM_X86_64, ELFCLASS32) => {
            return Err(KernelError::Elf32);
        }
        (EM_386 | EM_X86_64, other) => {
            return Err(KernelError::ElfHeader {
                field: "EI_CLASS",
                value: other.into(),
            });
        }
        (other, _) => return Err(KernelError::Architecture(isa(other))),
    }
    match header.e_type {
        ET_EXEC | ET_DYN => Ok(header),
        1 => Err(KernelError::ElfType("object file (a kernel module?)")),
        4 => Err(KernelError::ElfType("core dump")),
        other => Err(KernelError::ElfHeader {
            field: "e_type",
            value: other.into(),
        }),
    }
}

fn isa(number: u16) -> Isa {
    Isa::Named(match number {
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "64-bit PowerPC",
        22 => "S/390",
        40 => "32-bit ARM",
        43 => "SPARC",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return Isa::Elf(other),
    })
}

fn program_headers(
    source: Source<'_>,
    header: &Elf64_Ehdr,
) -> Result<Vec<Elf64_Phdr>, KernelError> {
    let size = size_of::<Elf64_Phdr>();
    if header.e_phnum == 0 {
        return Err(KernelError::NoSegments);
    }
    if usize::from(header.e_phentsize) != size {
        return Err(KernelError::ElfHeader {
            field: "e_phentsize",
            value: header.e_phentsize.into(),
        });
    }
    if header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(KernelError::ElfHeader {
            field: "e_phnum",
            value: header.e_phnum.into(),
        });
    }
    let count = usize::from(header.e_phnum);
    let mut table = vec![0; count * size];
    within(
        source,
        "program header table",
        header.e_phoff,
        table.len() as u64,
    )?;
    read(source, header.e_phoff, &mut table)?;
    Ok(table
        .chunks_exact(size)
        .map(|bytes| {
            let mut ph = Elf64_Phdr::default();
            ph.as_mut_slice().copy_from_slice(bytes);
            ph
        })
        .collect())
}

/// Checks one loadable segment. An empty one gives `None`.
fn segment(
    source: Source<'_>,
    index: usize,
    ph: &Elf64_Phdr,
) -> Result<Option<Segment>, KernelError> {
    let start = ph.p_paddr;
    let bad = |problem| Err(KernelError::Segment { index, problem });
    if ph.p_filesz > ph.p_memsz {
        return bad(SegmentError::FileSize {
            file: ph.p_filesz,
            memory: ph.p_memsz,
        });
    }
    if ph.p_memsz == 0 {
        return Ok(None);
    }
    let Some(end) = start.checked_add(ph.p_memsz) else {
        return bad(SegmentError::Wraps {
            start,
            size: ph.p_memsz,
        });
    };
    if start < HIGH_RAM {
        return bad(SegmentError::LowMemory { start });
    }
    if end > HOLE_START {
        return bad(SegmentError::OutOfReach { start, end });
    }
    within(source, "segment", ph.p_offset, ph.p_filesz)?;
    Ok(Some(Segment {
        index,
        offset: ph.p_offset,
        file_size: ph.p_filesz,
        start,
        virtual_start: ph.p_vaddr,
        memory_size: ph.p_memsz,
    }))
}

/// The PVH entry point in a note segment, if it is there.
fn pvh_note(source: Source<'_>, ph: &Elf64_Phdr) -> Result<Option<u64>, KernelError> {
    within(source, "note segment", ph.p_offset, ph.p_filesz)?;
    let len = usize::try_from(ph.p_filesz).map_or(MAX_NOTES, |len| len.min(MAX_NOTES));
    let notes = source
        .read_up_to(ph.p_offset, len)
        .map_err(FileError::Read)?;
    Ok(notes::pvh_entry(&notes, ph.p_align))
}

/// Checks that `len` bytes at `offset` lie within the file. Zero bytes always do.
pub(super) fn within(
    source: Source<'_>,
    part: &'static str,
    offset: u64,
    len: u64,
) -> Result<(), KernelError> {
    let end = offset.saturating_add(len);
    if len > 0 && end > source.len() {
        return Err(KernelError::Truncated {
            part,
            end,
            len: source.len(),
        });
    }
    Ok(())
}

/// Fills `buf` from `offset` on.
pub(super) fn read(source: Source<'_>, offset: u64, buf: &mut [u8]) -> Result<(), KernelError> {
    Ok(source.read_at(offset, buf).map_err(FileError::Read)?)
}
