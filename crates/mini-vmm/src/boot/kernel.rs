// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Decides how to load a kernel image, before guest memory is touched.

use std::time::{Duration, Instant};

use linux_loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::bzimage::{BzImage, is_bzimage};
use super::decompress::{Compression, NotDecompressed, Zeroed, decompress_guarded, zeroed};
use super::elf::{self, Elf, Segment};
use super::error::{FileError, Isa, KernelError};
use super::image::Source;
use super::looks::Looks;
use super::watch::{Guard, Work};
use super::{KERNEL, Protocol};
use crate::config::{BootProtocol, Decompress};
use crate::layout::{GIB, HIGH_RAM, MIB};

/// Enough bytes of a file to detect what it is.
const HEAD: usize = 1024;
/// The largest decompressed kernel. It has no debug symbols.
const MAX_DECOMPRESSED: u64 = GIB;
/// What a vmlinux file has beyond its size in memory: headers, padding, relocations.
const FILE_OVERHEAD: u64 = 32 * MIB;
/// The longest command line if the image doesn't state it: x86's `COMMAND_LINE_SIZE` less the NUL.
const DEFAULT_CMDLINE_MAX: u32 = 2047;
/// Offset of the magic of arm64's Image, and of riscv's second magic.
const OTHER_IMAGE_MAGIC: usize = 56;

/// A file that starts with zeros is scanned in pieces of `LOOK` bytes to its end, unless it is longer than `MAX_LOOK`.
const LOOK: usize = 256 << 10;
const MAX_LOOK: u64 = 64 * MIB;

/// The format of a kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ELF file.
    Elf,
    /// A bzImage with this boot protocol version, such as 0x020f.
    BzImage(u16),
}

/// Where a kernel is decompressed.
#[derive(Debug)]
pub enum Decompression {
    /// Nowhere: it was not compressed.
    NotCompressed,
    /// On the host.
    Host {
        /// The payload's format.
        format: Compression,
        /// Bytes that came out.
        size: u64,
        /// How long it took.
        took: Duration,
    },
    /// In the guest by its own decompressor, for this reason.
    Guest(NotDecompressed),
}

/// A kernel that fits, and how to load it.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) format: Format,
    pub(super) decompression: Decompression,
    pub(super) protocol: Protocol,
    pub(super) entry: u64,
    /// The setup header, if the image has one.
    pub(super) header: Option<setup_header>,
    /// The lowest address that it uses.
    pub(super) start: u64,
    /// The end of the memory that it uses before it reads the memory map.
    pub(super) end: u64,
    segments: Vec<Segment>,
    content: Content<'a>,
}

/// What the machine has, and what the user asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The end of low RAM.
    pub(super) ram_end: u64,
    pub(super) protocol: BootProtocol,
    pub(super) decompress: Decompress,
}

#[derive(Debug)]
enum Content<'a> {
    Image(Source<'a>),
    Decompressed(Zeroed),
}

impl<'a> Plan<'a> {
    /// Checks an image for a machine.
    pub(super) fn new(
        source: Source<'a>,
        wanted: Wanted,
        guard: &Guard<'_>,
    ) -> Result<Self, KernelError> {
        let head = source.read_up_to(0, HEAD).map_err(FileError::Read)?;
        if head.starts_with(elf::MAGIC) {
            let elf = Elf::parse(source)?;
            let content = Content::Image(source);
            let plan = Self::from_elf(elf, content, wanted.protocol)?;
            check_memory(plan.end, wanted.ram_end)?;
            Ok(plan)
        } else if is_bzimage(&head) {
            Self::from_bzimage(source, wanted, guard)
        } else {
            Err(refusal(source, &head, guard)?)
        }
    }

    fn from_elf(
        elf: Elf,
        content: Content<'a>,
        protocol: BootProtocol,
    ) -> Result<Self, KernelError> {
        let (protocol, entry) = match protocol {
            BootProtocol::Pvh => (Protocol::Pvh, elf.pvh()?),
            BootProtocol::Auto if elf.has_pvh() => (Protocol::Pvh, elf.pvh()?),
            BootProtocol::Auto | BootProtocol::Linux => (Protocol::Linux64, elf.linux64()?),
        };
        let (start, end) = match elf.segments[..] {
            [first, .., last] => (first.start, last.end()),
            [only] => (only.start, only.end()),
            [] => return Err(KernelError::NoSegments),
        };
        Ok(Plan {
            format: Format::Elf,
            decompression: Decompression::NotCompressed,
            protocol,
            entry,
            header: None,
            start,
            end,
            segments: elf.segments,
            content,
        })
    }

    fn from_bzimage(
        source: Source<'a>,
        wanted: Wanted,
        guard: &Guard<'_>,
    ) -> Result<Self, KernelError> {
        let Wanted {
            ram_end,
            protocol,
            decompress: who,
        } = wanted;
        let image = BzImage::parse(source)?;
        check_memory(image.runtime_end, ram_end)?;
        // The PVH entry is inside the compressed kernel.
        let may_stay = who == Decompress::Auto && protocol != BootProtocol::Pvh;
        let decompressed = match who {
            Decompress::Auto | Decompress::Host => {
                host_decompress(source, &image, ram_end, may_stay, guard)?
            }
            Decompress::Guest => Err(NotDecompressed::Asked),
        };
        match (decompressed, protocol) {
            (Ok((elf, bytes, decompression)), _) => {
                // Its own setup header tells the kernel more than PVH's start info does. So use it unless PVH was
                // requested.
                let protocol = match protocol {
                    BootProtocol::Auto => BootProtocol::Linux,
                    asked => asked,
                };
                let plan = Self::from_elf(elf, Content::Decompressed(bytes), protocol)?;
                Ok(Plan {
                    format: Format::BzImage(image.header.version),
                    decompression,
                    header: Some(image.header),
                    end: plan.end.max(image.runtime_end),
                    ..plan
                })
            }
            (Err(reason), BootProtocol::Pvh) => Err(KernelError::PvhCompressed(reason)),
            (Err(reason), _) if who == Decompress::Host => Err(KernelError::HostCompressed(reason)),
            (Err(reason), _) => Ok(Self::as_it_is(source, image, reason)),
        }
    }

    /// A bzImage that the guest decompresses.
    fn as_it_is(source: Source<'a>, image: BzImage, reason: NotDecompressed) -> Self {
        let len = image.code.end - image.code.start;
        Plan {
            format: Format::BzImage(image.header.version),
            decompression: Decompression::Guest(reason),
            protocol: Protocol::Linux64,
            entry: image.entry(),
            header: Some(image.header),
            start: HIGH_RAM,
            end: image.runtime_end,
            segments: vec![Segment {
                index: 0,
                offset: image.code.start,
                file_size: len,
                start: HIGH_RAM,
                virtual_start: HIGH_RAM,
                memory_size: len,
            }],
            content: Content::Image(source),
        }
    }

    /// The longest command line that it accepts, in bytes without the NUL.
    pub(super) fn cmdline_max(&self) -> u32 {
        self.header
            .map(|header| header.cmdline_size)
            .filter(|size| *size != 0)
            .unwrap_or(DEFAULT_CMDLINE_MAX)
    }

    /// The highest end address of its initrd.
    pub(super) fn initrd_limit(&self) -> u64 {
        self.header
            .map_or(u64::MAX, |header| u64::from(header.initrd_addr_max) + 1)
    }

    /// Writes it to guest memory, which must be zero there.
    pub(super) fn place<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        guard: &Guard<'_>,
    ) -> Result<(), GuestMemoryError> {
        let source = match &self.content {
            Content::Image(source) => *source,
            Content::Decompressed(bytes) => Source::Bytes(bytes),
        };
        let total = self.segments.iter().map(|s| s.file_size).sum();
        let mut before = 0;
        for segment in &self.segments {
            let ask = |done| guard.ask(Work::Place(KERNEL), before + done, Some(total));
            source.place(
                mem,
                segment.offset,
                GuestAddress(segment.start),
                segment.file_size as usize,
                &ask,
            )?;
            before += segment.file_size;
        }
        Ok(())
    }
}

type Decompressed = (Elf, Zeroed, Decompression);

/// Decompresses the payload on the host, unless `may_stay` is set and the guest is quick. The outer error means that
/// the file can't be read.
fn host_decompress(
    source: Source<'_>,
    image: &BzImage,
    ram_end: u64,
    may_stay: bool,
    guard: &Guard<'_>,
) -> Result<Result<Decompressed, NotDecompressed>, KernelError> {
    let Some(payload) = image.payload.clone() else {
        return Ok(Err(NotDecompressed::NoPayload));
    };
    // The magic first: don't read the whole payload of a file that only claims to have one.
    let magic = source
        .read_up_to(payload.start, 16)
        .map_err(FileError::Read)?;
    match Compression::of(&magic) {
        None => return Ok(Err(NotDecompressed::Unknown)),
        Some(format) if may_stay && format.is_quick() => {
            return Ok(Err(NotDecompressed::GuestIsQuick(format)));
        }
        Some(_) => {}
    }
    let begin = Instant::now();
    let limit = (ram_end + FILE_OVERHEAD).min(MAX_DECOMPRESSED);
    let result = match source {
        Source::Bytes(bytes) => bytes
            .get(payload.start as usize..payload.end as usize)
            .ok_or(NotDecompressed::NoPayload)
            .and_then(|payload| decompress_guarded(payload, limit, guard)),
        Source::File(..) => {
            // The payload lies within the protected-mode code, which fits the guest's RAM.
            let len = payload.end - payload.start;
            let ask = |done| guard.ask(Work::Read(KERNEL), done, Some(len));
            match zeroed(len) {
                Ok(mut buf) => {
                    let read = source.read_asking(payload.start, &mut buf, &ask);
                    read.map_err(FileError::Read)?;
                    decompress_guarded(&buf, limit, guard)
                }
                Err(no_memory) => Err(no_memory),
            }
        }
    };
    Ok(result.and_then(|(format, bytes)| {
        let elf = Elf::parse(Source::Bytes(&bytes)).map_err(|_| NotDecompressed::NoVmlinux)?;
        let fits = elf.segments.iter().all(|s| s.end() <= ram_end);
        if !fits || elf.linux64().is_err() {
            return Err(NotDecompressed::NoVmlinux);
        }
        let decompression = Decompression::Host {
            format,
            size: bytes.len() as u64,
            took: begin.elapsed(),
        };
        Ok((elf, bytes, decompression))
    }))
}

/// Checks that a kernel that ends at `end` fits in RAM that ends at `ram_end`.
fn check_memory(end: u64, ram_end: u64) -> Result<(), KernelError> {
    if end > ram_end {
        return Err(KernelError::NeedsMemory {
            needed: end.next_multiple_of(MIB),
            have: ram_end,
        });
    }
    Ok(())
}

/// Why a file that starts with `head` is no kernel. The outer error means that it can't be read.
fn refusal(source: Source<'_>, head: &[u8], guard: &Guard<'_>) -> Result<KernelError, FileError> {
    let isa = match head.get(OTHER_IMAGE_MAGIC..OTHER_IMAGE_MAGIC + 4) {
        Some(b"ARM\x64") => Some("aarch64"),
        Some(b"RSC\x05") => Some("RISC-V"),
        _ => None,
    };
    if let Some(name) = isa {
        return Ok(KernelError::Architecture(Isa::Named(name)));
    }
    let looks = match Looks::of(head) {
        Looks::Zeros if !is_zero(source, guard)? => Looks::Unknown,
        looks => looks,
    };
    Ok(KernelError::NotAKernel { looks })
}

/// Whether a file has only zeros. Reads it to its end, but not past the first other byte.
fn is_zero(source: Source<'_>, guard: &Guard<'_>) -> Result<bool, FileError> {
    if source.len() > MAX_LOOK {
        return Ok(false);
    }
    let mut at = 0;
    while at < source.len() {
        let asked = guard.ask(Work::Read(KERNEL), at, Some(source.len()));
        asked.map_err(FileError::Read)?;
        let piece = source.read_up_to(at, LOOK).map_err(FileError::Read)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += LOOK as u64;
    }
    Ok(true)
}
