// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a kernel image to a guest that is ready to run.
//!
//! All input is checked before guest memory is written to. Whatever an image contains, the worst result is an error.

mod bzimage;
mod clock;
mod decompress;
mod elf;
mod error;
mod image;
mod initrd;
mod kernel;
mod linux;
mod looks;
mod notes;
mod pipe;
mod pvh;
pub mod regs;
mod watch;

use std::fmt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

pub use self::clock::{Clockless, clockless};
pub use self::decompress::{Compression, NotDecompressed, Zeroed, decompress};
pub use self::error::{Error, FileError, InitrdError, Isa, KernelError, SegmentError};
pub use self::image::{FileKind, Image};
pub use self::kernel::{Decompression, Format};
use self::kernel::{Plan, Wanted};
pub use self::looks::Looks;
use self::watch::Guard;
pub use self::watch::{Step, Unwatched, Watch, Work};
use crate::config::{self, BootProtocol, Decompress};
use crate::layout::CMDLINE;
use crate::memory::low_ram_end;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel.
    pub kernel: &'a Image,
    /// The initial RAM disk.
    pub initrd: Option<&'a Image>,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// Which entry point to use.
    pub protocol: BootProtocol,
    /// Who decompresses a bzImage.
    pub decompress: Decompress,
    /// Where the ACPI tables start, if there are any.
    pub rsdp: Option<GuestAddress>,
    /// Addresses in the hole that the operating system leaves alone, as (start, bytes) in ascending order.
    pub reserved: &'a [(u64, u64)],
}

/// Opens the kernel at `path`. Doesn't block if it is a FIFO or a device.
///
/// # Errors
/// [`Error::Kernel`] when it can't be opened, is neither a regular file nor a pipe, or is empty.
pub fn open_kernel(path: &Path) -> Result<Image, Error> {
    Image::open(path).map_err(|reason| Error::Kernel {
        path: path.to_owned(),
        reason: reason.into(),
    })
}

/// Opens the initrd at `path`. Doesn't block if it is a FIFO or a device.
///
/// # Errors
/// [`Error::Initrd`] when it can't be opened, is neither a regular file nor a pipe, or is empty.
pub fn open_initrd(path: &Path) -> Result<Image, Error> {
    Image::open(path).map_err(|reason| Error::Initrd {
        path: path.to_owned(),
        reason: reason.into(),
    })
}

/// Reads `kernel` and `initrd` now if they are pipes, at most `max` bytes each, and keeps the bytes.
///
/// # Errors
/// [`Error`] when one can't be read, is empty or is longer, and [`Error::Stopped`] when `watch` stopped it.
pub fn receive(
    kernel: &Image,
    initrd: Option<&Image>,
    max: u64,
    watch: &dyn Watch,
) -> Result<(), Error> {
    let guard = Guard::new(watch);
    unless_stopped(&guard, receive_images(kernel, initrd, max, &guard))
}

fn receive_images(
    kernel: &Image,
    initrd: Option<&Image>,
    max: u64,
    guard: &Guard<'_>,
) -> Result<(), Error> {
    kernel
        .receive(max, guard, KERNEL)
        .map_err(|reason| kernel_error(kernel, reason.into()))?;
    let Some(initrd) = initrd else {
        return Ok(());
    };
    initrd
        .receive(max, guard, INITRD)
        .map_err(|reason| initrd_error(initrd, reason.into()))
}

fn kernel_error(image: &Image, reason: KernelError) -> Error {
    Error::Kernel {
        path: image.path().to_owned(),
        reason,
    }
}

fn initrd_error(image: &Image, reason: InitrdError) -> Error {
    Error::Initrd {
        path: image.path().to_owned(),
        reason,
    }
}

/// After the watcher stopped the loading, any error is a consequence of that.
fn unless_stopped<T>(guard: &Guard<'_>, result: Result<T, Error>) -> Result<T, Error> {
    match guard.is_stopped() {
        true => Err(Error::Stopped),
        false => result,
    }
}

/// The names of the images in progress messages.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// The entry point that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit entry of the Linux boot protocol: 64-bit mode, RSI points to the zero page.
    Linux64,
    /// The PVH entry: 32-bit protected mode without paging, EBX points to the start info.
    Pvh,
}

/// A guest that is ready to start. Its [`Display`](fmt::Display) is a line for the log.
#[derive(Debug)]
pub struct Loaded {
    /// The entry point that is used.
    pub protocol: Protocol,
    /// Where it is.
    pub entry: GuestAddress,
    /// The image's format.
    pub format: Format,
    /// The version string of a bzImage, such as "6.1.0-56-cloud-amd64 (…)", at most its first 64 bytes.
    pub version: Option<String>,
    /// Where it is decompressed, and why.
    pub decompression: Decompression,
    /// The lowest address that the kernel uses.
    pub kernel_start: GuestAddress,
    /// The end of the memory that the kernel uses before it reads the memory map.
    pub kernel_end: GuestAddress,
    /// Where the initrd lies, and its size in bytes.
    pub initrd: Option<(GuestAddress, u64)>,
}

/// What both boot protocols pass to the kernel.
struct BootData<'a> {
    cmdline: &'a str,
    initrd: Option<(GuestAddress, u64)>,
    rsdp: Option<GuestAddress>,
    reserved: &'a [(u64, u64)],
}

/// Loads a kernel and its boot data into `mem`, which must read as zeros: fresh from
/// [`allocate`](crate::memory::allocate).
///
/// # Errors
/// [`Error`] names what can't be used, why, and what to do. `mem` is unchanged unless reading a file failed midway.
///
/// # Example
/// ```no_run
/// use mini_vmm::boot::{self, BootRequest};
/// use mini_vmm::{config, memory};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mem = memory::allocate(512 << 20)?;
/// let kernel = boot::open_kernel("/boot/vmlinuz".as_ref())?;
/// let loaded = boot::load(
///     &mem,
///     &BootRequest {
///         kernel: &kernel,
///         initrd: None,
///         cmdline: "console=ttyS0",
///         protocol: config::BootProtocol::Auto,
///         decompress: config::Decompress::Auto,
///         rsdp: None,
///         reserved: &[],
///     },
/// )?;
/// println!("{loaded}");
/// # Ok(())
/// # }
/// ```
pub fn load<M: GuestMemoryBackend>(mem: &M, request: &BootRequest<'_>) -> Result<Loaded, Error> {
    load_watched(mem, request, &Unwatched)
}

/// Like [`load`], while `watch` sees the progress and may stop it.
///
/// # Errors
/// As for [`load`], and [`Error::Stopped`] when `watch` stopped it.
pub fn load_watched<M: GuestMemoryBackend>(
    mem: &M,
    request: &BootRequest<'_>,
    watch: &dyn Watch,
) -> Result<Loaded, Error> {
    let guard = Guard::new(watch);
    unless_stopped(&guard, load_guarded(mem, request, &guard))
}

fn load_guarded<M: GuestMemoryBackend>(
    mem: &M,
    request: &BootRequest<'_>,
    guard: &Guard<'_>,
) -> Result<Loaded, Error> {
    let kernel_error = |reason| kernel_error(request.kernel, reason);
    let ram_end = low_ram_end(mem);
    receive_images(request.kernel, request.initrd, ram_end, guard)?;
    let wanted = Wanted {
        ram_end,
        protocol: request.protocol,
        decompress: request.decompress,
    };
    let plan = Plan::new(request.kernel.source(), wanted, guard).map_err(kernel_error)?;
    check_cmdline(request.cmdline, plan.cmdline_max())?;
    let initrd = match request.initrd {
        Some(image) => {
            let size = image.source().len();
            let start = initrd::place(size, plan.end, ram_end, plan.initrd_limit())
                .map_err(|reason| initrd_error(image, reason))?;
            Some((image, GuestAddress(start), size))
        }
        None => None,
    };

    plan.place(mem, guard)
        .map_err(|e| reading(e, |e| kernel_error(FileError::Read(e).into())))?;
    if let Some((image, start, size)) = initrd {
        let ask = |done| guard.ask(Work::Place(INITRD), done, Some(size));
        let source = image.source();
        source
            .place(mem, 0, start, size as usize, &ask)
            .map_err(|e| reading(e, |e| initrd_error(image, FileError::Read(e).into())))?;
    }
    let data = BootData {
        cmdline: request.cmdline,
        initrd: initrd.map(|(_, start, size)| (start, size)),
        rsdp: request.rsdp,
        reserved: request.reserved,
    };
    write_boot_data(mem, &plan, &data)?;
    Ok(Loaded {
        protocol: plan.protocol,
        entry: GuestAddress(plan.entry),
        format: plan.format,
        version: plan
            .header
            .and_then(|header| bzimage::version(request.kernel.source(), &header)),
        kernel_start: GuestAddress(plan.start),
        kernel_end: GuestAddress(plan.end),
        initrd: data.initrd,
        decompression: plan.decompression,
    })
}

/// Distinguishes a file that can't be read from guest memory that can't be written.
fn reading(e: GuestMemoryError, file: impl Fn(std::io::Error) -> Error) -> Error {
    match e {
        GuestMemoryError::IOError(e) => file(e),
        other => Error::Memory(other),
    }
}

fn check_cmdline(cmdline: &str, kernel_max: u32) -> Result<(), Error> {
    config::check_cmdline(cmdline)?;
    let (len, max) = (cmdline.len(), kernel_max as usize);
    match len > max {
        true => Err(Error::CmdlineTooLong { len, max }),
        false => Ok(()),
    }
}

fn write_boot_data<M: GuestMemoryBackend>(
    mem: &M,
    plan: &Plan<'_>,
    data: &BootData<'_>,
) -> Result<(), GuestMemoryError> {
    let mut cmdline = data.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    mem.write_slice(&cmdline, GuestAddress(CMDLINE))?;
    match plan.protocol {
        Protocol::Linux64 => {
            let header = plan.header.unwrap_or_else(linux::elf_header);
            linux::write_zero_page(mem, header, data)?;
        }
        Protocol::Pvh => pvh::write_start_info(mem, data)?,
    }
    regs::write_tables(mem, plan.protocol)
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.format {
            Format::Elf => f.write_str("kernel: ELF")?,
            Format::BzImage(v) => write!(f, "kernel: bzImage {}.{:02}", v >> 8, v & 0xff)?,
        }
        match &self.decompression {
            Decompression::NotCompressed => {}
            Decompression::Host { format, size, took } => write!(
                f,
                ", {format}, {size} bytes decompressed by the host in {} ms",
                took.as_millis()
            )?,
            Decompression::Guest(why) => write!(f, ", decompressed by the guest as {why}")?,
        }
        write!(
            f,
            "; {:#x}..{:#x}, {} entry {:#x}",
            self.kernel_start.0, self.kernel_end.0, self.protocol, self.entry.0
        )?;
        if let Some((start, size)) = self.initrd {
            write!(f, "; initrd {:#x}..{:#x}", start.0, start.0 + size)?;
        }
        Ok(())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Linux64 => "64-bit Linux",
            Protocol::Pvh => "PVH",
        })
    }
}
