// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a description: one sentence each, with the next step.

use std::ffi::OsString;
use std::path::PathBuf;

use hypercall_patch::PioPort;

use super::draft::KEYS;
use super::validate::MAX_SOCKET_PATH;
use super::words::{ByteSize, WordError};
use super::{HypercallAbi, HypercallRoute, VmSpec};
use crate::layout;
use crate::text::{nearest, shown};

/// Why a description is not one of a machine that can be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such key, and no such flag.
    #[error("unknown key \"{}\"; {}", shown(key), known_keys(key))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A flag's word is none for it.
    #[error("--{key} {word:?} is {why}")]
    Word {
        /// The flag's name.
        key: String,
        /// The word.
        word: OsString,
        /// What it is not.
        why: WordError,
    },
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
    /// No machine has so much or so little RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No kernel has such a command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
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

/// Why a machine can't have an amount of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// There is less RAM than a kernel needs, or the unit was forgotten.
    #[error(
        "{} of memory is less than the {} that a machine needs; {}",
        amount(*memory), ByteSize(layout::MIN_RAM), more_memory(*memory)
    )]
    Little {
        /// How many bytes were asked for.
        memory: u64,
    },
    /// There is more RAM than the machine's memory map has room for.
    #[error(
        "{} of memory is more than a machine can have; give it at most {}",
        amount(*memory), ByteSize(layout::MAX_RAM)
    )]
    Much {
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
}

/// Why a kernel can't have a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// The command line would end early.
    #[error(
        "the kernel command line has a NUL at byte {at}, where a kernel would stop reading; take it out"
    )]
    Nul {
        /// Where the NUL is, counted from 0.
        at: usize,
    },
    /// The command line does not fit its place in guest memory.
    #[error(
        "the kernel command line has {len} bytes; shorten it to {} or fewer",
        layout::CMDLINE_SIZE - 1
    )]
    Long {
        /// Its length in bytes.
        len: usize,
    },
}

/// The next step after a key that is none: the one that was meant, or all that there are.
fn known_keys(key: &str) -> String {
    match nearest(key, KEYS.iter().copied())[..] {
        [] => format!("the keys are {}", KEYS.join(", ")),
        [near, ..] => format!("did you mean {near:?}?"),
    }
}

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
