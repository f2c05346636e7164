// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one description of a machine. The command line and a JSON file both produce it.

use std::path::PathBuf;
use std::time::Duration;

/// What to boot and on what machine.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Whether the PC's PIT and PIC are there and announced.
    pub legacy_timer: bool,
}

/// Which entry point of the kernel to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decompress {
    /// The host where it can, else the guest.
    #[default]
    Auto,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// The process ends with exit code 32.
    #[default]
    Exit,
    /// The machine starts again from nothing, in this process.
    Reset,
}

/// What a guest panic report (pvpanic) does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// The process ends with exit code 34.
    #[default]
    Exit,
    /// The report is logged and the guest goes on (to its crash kernel or reboot).
    Continue,
}
