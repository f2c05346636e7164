// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one description of a machine. The command line and a JSON file both produce it.

pub mod file;
mod hypercall;
mod partial;
mod words;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use hypercall_patch::PioPort;
use serde::{Deserialize, Serialize};

pub use self::hypercall::{HypercallAbi, HypercallRoute, MsrPolicy};
pub use self::partial::PartialSpec;
pub use self::words::{ByteSize, Count, OptionalPort, Switch, TimeLimit, WordError};
use crate::layout;

/// What to boot and on what machine.
///
/// As JSON it is an object with the names of the command line's flags; only `kernel` must be
/// there, and what is read is valid.
///
/// # Example
/// ```
/// use mini_vmm::config::VmSpec;
///
/// let spec: VmSpec = serde_json::from_str(r#"{"kernel": "vmlinux", "memory": "1G"}"#)?;
/// assert_eq!((spec.cpus, spec.memory), (1, 1 << 30));
/// assert_eq!(spec.cmdline, "console=ttyS0 panic=-1 cryptomgr.notests");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PartialSpec", into = "PartialSpec")]
pub struct VmSpec {
    /// The kernel image: ELF or bzImage, told apart by content.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    pub cmdline: String,
    /// Which entry point of the kernel to use.
    pub boot_protocol: BootProtocol,
    /// Who decompresses a bzImage.
    pub decompress: Decompress,
    /// vCPUs, 1 to 64.
    pub cpus: u8,
    /// CPU features to add or take away, in order, such as `-avx2`.
    pub cpu_features: Vec<CpuFeature>,
    /// Whether the guest can run guests of its own: it sees VMX or SVM.
    pub nested: bool,
    /// RAM in bytes; a multiple of the page size.
    pub memory: u64,
    /// Where COM1 goes.
    pub serial: SerialSpec,
    /// What a guest reset does.
    pub on_reboot: OnReboot,
    /// What a guest panic report does.
    pub on_panic: OnPanic,
    /// How long the machine may run.
    pub timeout: Option<Duration>,
    /// The debug-exit port, if there is one.
    pub debug_exit: Option<u16>,
    /// Whether the PC's PIT and PIC are there and announced, on a platform with ACPI's fixed hardware.
    pub legacy_timer: bool,
    /// Whether the PC's real-time clock is there and announced.
    pub rtc: bool,
    /// How hypercalls of a guest that registers for them reach their handler.
    pub hypercall: HypercallRoute,
    /// In which registers hypercalls that reach the VMM have their number and arguments.
    pub hypercall_abi: HypercallAbi,
    /// Whether MSR 0x87655678, by which a guest registers for hypercalls, is there.
    pub para: bool,
    /// Which MSRs the guest may use.
    pub msr_policy: MsrPolicy,
    /// Whether everything that opens a file, a socket or a VM is done before the guest runs: see
    /// [`LATE_ACTS`](crate::late::LATE_ACTS).
    pub sealed: bool,
}

/// Which entry point of the kernel to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BootProtocol {
    /// PVH where an ELF file has the note, else the 64-bit Linux entry.
    #[default]
    Auto,
    /// The 64-bit Linux entry.
    Linux,
    /// The PVH entry.
    Pvh,
}

/// Who decompresses a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Decompress {
    /// The guest where its decompressor is quick (LZ4, LZO), else the host where it can.
    #[default]
    Auto,
    /// The host, or a bzImage that it can't decompress is refused.
    Host,
    /// The guest's own decompressor (which also randomizes the kernel's address).
    Guest,
}

/// A CPU feature to show or hide, by its name in Linux's /proc/cpuinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuFeature {
    /// The name, such as `avx2`.
    pub name: String,
    /// Whether the guest sees it.
    pub enable: bool,
}

/// Where COM1 goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SerialSpec {
    /// Nowhere: there is no COM1.
    Off,
    /// The VMM's standard input and output.
    #[default]
    Stdio,
    /// Output to this file, no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// A listening Unix socket at this path; one client at a time.
    Socket(PathBuf),
}

/// What a guest reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnReboot {
    /// The process ends with exit code 32.
    #[default]
    Exit,
    /// The machine starts again from nothing, in this process.
    Reset,
}

/// What a guest panic report (pvpanic) does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnPanic {
    /// The process ends with exit code 34.
    #[default]
    Exit,
    /// The report is logged and the guest goes on (to its crash kernel or reboot).
    Continue,
}

/// Why a description is not one of a machine that can be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no kernel.
    #[error("no kernel is named; give one with --kernel, or as \"kernel\" in the config file")]
    NoKernel,
    /// There is no vCPU.
    #[error("a machine with 0 vCPUs can't run; give it 1 to {}", layout::MAX_CPUS)]
    NoCpus,
    /// There are more vCPUs than the machine has room for.
    #[error(
        "{cpus} vCPUs are too many; give the machine 1 to {}",
        layout::MAX_CPUS
    )]
    TooManyCpus {
        /// How many were asked for.
        cpus: u64,
    },
    /// There is less RAM than a kernel needs, or the unit was forgotten.
    #[error(
        "{} of memory is less than the {} that a machine needs; {}",
        amount(*memory), ByteSize(layout::MIN_RAM), more_memory(*memory)
    )]
    LittleMemory {
        /// How many bytes were asked for.
        memory: u64,
    },
    /// There is more RAM than the machine's memory map has room for.
    #[error(
        "{} of memory is more than a machine can have; give it at most {}",
        amount(*memory), ByteSize(layout::MAX_RAM)
    )]
    MuchMemory {
        /// How many bytes were asked for.
        memory: u64,
    },
    /// RAM ends within a page.
    #[error(
        "{} of memory is not a multiple of the {} page; the nearest size is {}",
        amount(*memory), ByteSize(layout::PAGE_SIZE), ByteSize(*nearest)
    )]
    PartialPage {
        /// How many bytes were asked for.
        memory: u64,
        /// The nearest size that is possible.
        nearest: u64,
    },
    /// The command line would end early.
    #[error(
        "the kernel command line has a NUL at byte {at}, where a kernel would stop reading; take it out"
    )]
    CmdlineNul {
        /// Where the NUL is, counted from 0.
        at: usize,
    },
    /// The command line does not fit its place in guest memory.
    #[error(
        "the kernel command line has {len} bytes; shorten it to {} or fewer",
        layout::CMDLINE_SIZE - 1
    )]
    LongCmdline {
        /// Its length in bytes.
        len: usize,
    },
    /// A port of the debug-exit device belongs to something else.
    #[error(
        "a debug-exit device at {port:#x} takes the ports {port:#x} to {:#x}, where {owner} is; \
         choose another port, such as {:#x}",
        port.saturating_add(layout::DEBUG_EXIT_SIZE - 1), layout::DEBUG_EXIT
    )]
    TakenPort {
        /// The first of the device's ports.
        port: u16,
        /// What one of them belongs to.
        owner: &'static str,
    },
    /// There are fewer ports than the debug-exit device has.
    #[error(
        "a debug-exit device at {port:#x} would go beyond the last port, 0xffff; \
         choose another port, such as {:#x}",
        layout::DEBUG_EXIT
    )]
    LastPorts {
        /// The first of the device's ports.
        port: u16,
    },
    /// The hypercall port is one of the debug-exit device's.
    #[error(
        "the hypercall port {port} is one of the debug-exit device's, {debug_exit:#x} to {:#x}; \
         choose another, or leave the choice to --hypercall pio",
        debug_exit + (layout::DEBUG_EXIT_SIZE - 1)
    )]
    HypercallPort {
        /// The hypercall port.
        port: PioPort,
        /// The first of the debug-exit device's ports.
        debug_exit: u16,
    },
    /// There is no use for a route without the MSR.
    #[error(
        "--hypercall {route} asks for hypercalls that --para off takes away; leave out one of them"
    )]
    RouteWithoutMsr {
        /// The route.
        route: HypercallRoute,
    },
    /// There are no hypercalls for the registers that were asked for.
    #[error(
        "--hypercall-abi {} is about hypercalls, which --para off takes away; leave out one of them",
        abi.convention().name()
    )]
    AbiWithoutMsr {
        /// The registers.
        abi: HypercallAbi,
    },
    /// Nobody would look at the registers that were asked for.
    #[error(
        "--hypercall vendor has KVM itself answer, which finds no call in the registers of \
         --hypercall-abi {}; use --hypercall pio or forward",
        abi.convention().name()
    )]
    AbiOfVendor {
        /// The registers.
        abi: HypercallAbi,
    },
    /// A feature's name can't be one.
    #[error("{name:?} is not the name of a CPU feature; /proc/cpuinfo shows the names")]
    FeatureName {
        /// The name.
        name: String,
    },
    /// The run would be over before it starts.
    #[error("a timeout of 0 ends the run before it starts; give a time such as 90 or 5m, or off")]
    ZeroTimeout,
    /// The timeout is further away than clocks can count.
    #[error(
        "the timeout is longer than {} days; give a shorter one, or off",
        VmSpec::MAX_TIMEOUT.as_secs() / 86_400
    )]
    LongTimeout,
    /// A path is empty.
    #[error("the path of the {what} is empty; name a file")]
    EmptyPath {
        /// What the path is of.
        what: &'static str,
    },
    /// A path has a NUL, which no file's name has.
    #[error("the path of the {what}, {path:?}, has a NUL in it; no file is named so, take it out")]
    PathNul {
        /// What the path is of.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A socket's path does not fit its address.
    #[error(
        "the serial socket's path {path:?} is too long; shorten it to {MAX_SOCKET_PATH} bytes or fewer"
    )]
    LongSocketPath {
        /// The path.
        path: PathBuf,
    },
}

/// The longest path of a Unix socket: `sun_path` less its NUL, see unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// `bytes` for a sentence: with a unit where that is exact.
fn amount(bytes: u64) -> String {
    let size = ByteSize(bytes).to_string();
    if size.ends_with(|c: char| c.is_ascii_digit()) {
        return format!("{size} {}", if bytes == 1 { "byte" } else { "bytes" });
    }
    size
}

/// The next step after too small a size: the unit that was forgotten, or the least there must be.
fn more_memory(bytes: u64) -> String {
    match bytes.checked_mul(layout::MIB) {
        Some(layout::MIN_RAM..=layout::MAX_RAM) => format!("did you mean {bytes}M?"),
        _ => "give it more".to_owned(),
    }
}

impl VmSpec {
    /// RAM in bytes when nothing else is said.
    pub const DEFAULT_MEMORY: u64 = 512 * layout::MIB;

    /// The longest timeout: ten years, well within what a monotonic clock can count.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(3650 * 86_400);

    /// The machine that boots `kernel` when nothing else is said.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        let serial = SerialSpec::default();
        VmSpec {
            kernel: kernel.into(),
            initrd: None,
            cmdline: VmSpec::default_cmdline(&serial).to_owned(),
            boot_protocol: BootProtocol::default(),
            decompress: Decompress::default(),
            cpus: 1,
            cpu_features: Vec::new(),
            nested: false,
            memory: VmSpec::DEFAULT_MEMORY,
            serial,
            on_reboot: OnReboot::default(),
            on_panic: OnPanic::default(),
            timeout: None,
            debug_exit: None,
            legacy_timer: false,
            rtc: false,
            hypercall: HypercallRoute::default(),
            hypercall_abi: HypercallAbi::default(),
            para: true,
            msr_policy: MsrPolicy::default(),
            sealed: false,
        }
    }

    /// The kernel command line when none is said: the console is COM1 if there is one, a panic is a reset, so that
    /// the run ends, and the kernel does not test its cryptography, which can take half of its boot time
    /// (in FIPS mode it does all the same).
    pub fn default_cmdline(serial: &SerialSpec) -> &'static str {
        match serial {
            SerialSpec::Off => "panic=-1 cryptomgr.notests",
            _ => "console=ttyS0 panic=-1 cryptomgr.notests",
        }
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first thing that no machine can have.
    pub fn validate(&self) -> Result<(), Error> {
        match self.cpus {
            0 => return Err(Error::NoCpus),
            cpus if cpus > layout::MAX_CPUS => {
                return Err(Error::TooManyCpus { cpus: cpus.into() });
            }
            _ => {}
        }
        validate_memory(self.memory)?;
        validate_cmdline(&self.cmdline)?;
        let mut names = self.cpu_features.iter().map(|feature| &feature.name);
        if let Some(name) = names.find(|name| !CpuFeature::is_name(name)) {
            return Err(Error::FeatureName { name: name.clone() });
        }
        validate_timeout(self.timeout)?;
        validate_debug_exit(self.debug_exit)?;
        hypercall::validate(self)?;
        validate_path("kernel", &self.kernel)?;
        if let Some(initrd) = &self.initrd {
            validate_path("initrd", initrd)?;
        }
        validate_serial(&self.serial)
    }
}

fn validate_memory(memory: u64) -> Result<(), Error> {
    if memory < layout::MIN_RAM {
        return Err(Error::LittleMemory { memory });
    }
    if memory > layout::MAX_RAM {
        return Err(Error::MuchMemory { memory });
    }
    if !memory.is_multiple_of(layout::PAGE_SIZE) {
        let nearest = (memory + layout::PAGE_SIZE / 2) / layout::PAGE_SIZE * layout::PAGE_SIZE;
        return Err(Error::PartialPage { memory, nearest });
    }
    Ok(())
}

fn validate_cmdline(cmdline: &str) -> Result<(), Error> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(Error::CmdlineNul { at });
    }
    if cmdline.len() as u64 >= layout::CMDLINE_SIZE {
        return Err(Error::LongCmdline { len: cmdline.len() });
    }
    Ok(())
}

fn validate_debug_exit(port: Option<u16>) -> Result<(), Error> {
    let Some(port) = port else {
        return Ok(());
    };
    if port > u16::MAX - (layout::DEBUG_EXIT_SIZE - 1) {
        return Err(Error::LastPorts { port });
    }
    match layout::port_owner(port) {
        Some(owner) => Err(Error::TakenPort { port, owner }),
        None => Ok(()),
    }
}

fn validate_timeout(timeout: Option<Duration>) -> Result<(), Error> {
    match timeout {
        Some(Duration::ZERO) => Err(Error::ZeroTimeout),
        Some(time) if time > VmSpec::MAX_TIMEOUT => Err(Error::LongTimeout),
        _ => Ok(()),
    }
}

fn validate_path(what: &'static str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::EmptyPath { what });
    }
    if bytes.contains(&0) {
        let path = path.to_owned();
        return Err(Error::PathNul { what, path });
    }
    Ok(())
}

fn validate_serial(serial: &SerialSpec) -> Result<(), Error> {
    match serial {
        SerialSpec::Off | SerialSpec::Stdio | SerialSpec::Pty => Ok(()),
        SerialSpec::File(path) => validate_path("serial file", path),
        SerialSpec::Socket(path) => {
            validate_path("serial socket", path)?;
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                return Err(Error::LongSocketPath { path: path.clone() });
            }
            Ok(())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
