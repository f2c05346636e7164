// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Errors in a machine description: one sentence each, with the next step.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use hypercall_patch::PioPort;

use super::draft::KEYS;
use super::kvm::MAX_MSRS;
use super::validate::MAX_SOCKET_PATH;
use super::words::{ByteSize, WordError};
use super::{
    BalloonError, HotplugSlots, HypercallAbi, HypercallRoute, Mac, NetError, PortError,
    SharedSizeError, VhostUserError, VmSpec, VsockError,
};
use crate::layout;
use crate::text::{nearest, shown};

/// Why a description is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such key or flag.
    #[error("unknown key \"{}\"; {}", shown(key), known_keys(key))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A flag's word is not valid for it.
    #[error("--{key} {word:?} is {why}")]
    Word {
        /// The flag's name.
        key: String,
        /// The word.
        word: OsString,
        /// What the word is not.
        why: WordError,
    },
    /// No kernel was given.
    #[error("no kernel is named; give one with --kernel, or as \"kernel\" in the config file")]
    NoKernel,
    /// The number of vCPUs is 0.
    #[error("a machine with 0 vCPUs can't run; give it 1 to {}", layout::MAX_CPUS)]
    NoCpus,
    /// There are more vCPUs than a machine may have.
    #[error(
        "{cpus} vCPUs are too many; give the machine 1 to {}",
        layout::MAX_CPUS
    )]
    TooManyCpus {
        /// How many were requested.
        cpus: u64,
    },
    /// An MSR can't be changed.
    #[error("MSR {index:#x} can't be changed, because {why}; leave it out")]
    FixedMsr {
        /// Its index.
        index: u32,
        /// Why not.
        why: &'static str,
    },
    /// An MSR is changed twice.
    #[error("MSR {index:#x} is changed twice; leave out one change")]
    SameMsr {
        /// Its index.
        index: u32,
    },
    /// More MSRs are changed than KVM takes at once.
    #[error("{count} changes of MSRs are too many; make at most {MAX_MSRS}")]
    TooManyMsrs {
        /// How many there are.
        count: usize,
    },
    /// The amount of RAM is not possible.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The command line is not possible.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A port of the debug-exit device belongs to another device.
    #[error(
        "a debug-exit device at {port:#x} takes the ports {port:#x} to {:#x}, where {owner} is; \
         choose another port, such as {:#x}",
        port.saturating_add(layout::DEBUG_EXIT_SIZE - 1), layout::DEBUG_EXIT
    )]
    TakenPort {
        /// The first of the device's ports.
        port: u16,
        /// The owner of that port.
        owner: &'static str,
    },
    /// The debug-exit device would extend beyond the last port.
    #[error(
        "a debug-exit device at {port:#x} would go beyond the last port, 0xffff; \
         choose another port, such as {:#x}",
        layout::DEBUG_EXIT
    )]
    LastPorts {
        /// The first of the device's ports.
        port: u16,
    },
    /// The debug-exit device has the hypercall port.
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
    /// The route needs the MSR that `--para off` removes.
    #[error(
        "--hypercall {route} asks for hypercalls that --para off takes away; leave out one of them"
    )]
    RouteWithoutMsr {
        /// The route.
        route: HypercallRoute,
    },
    /// `--hypercall-abi` needs the hypercalls that `--para off` removes.
    #[error(
        "--hypercall-abi {} is about hypercalls, which --para off takes away; leave out one of them",
        abi.convention().name()
    )]
    AbiWithoutMsr {
        /// The registers.
        abi: HypercallAbi,
    },
    /// KVM doesn't use these registers on the route vendor.
    #[error(
        "--hypercall vendor has KVM itself answer, which finds no call in the registers of \
         --hypercall-abi {}; use --hypercall pio or forward",
        abi.convention().name()
    )]
    AbiOfVendor {
        /// The registers.
        abi: HypercallAbi,
    },
    /// No call for a snapshot could reach a machine that writes it.
    #[error(
        "--snapshot-dir is for guests that ask for snapshots by a hypercall, and needs --para on, --sealed off, and \
         --hypercall pio, forward or auto"
    )]
    SnapshotDir,
    /// A CPU feature's name is not valid.
    #[error("{name:?} is not the name of a CPU feature; /proc/cpuinfo shows the names")]
    FeatureName {
        /// The name.
        name: String,
    },
    /// The timeout is 0.
    #[error("a timeout of 0 ends the run before it starts; give a time such as 90 or 5m, or off")]
    ZeroTimeout,
    /// The timeout is too long.
    #[error(
        "the timeout is longer than {} days; give a shorter one, or off",
        VmSpec::MAX_TIMEOUT.as_secs() / 86_400
    )]
    LongTimeout,
    /// There are more disks than a machine may have.
    #[error(
        "{disks} disks are too many; give the machine at most {}",
        VmSpec::MAX_DISKS
    )]
    TooManyDisks {
        /// How many were requested.
        disks: usize,
    },
    /// There are more networks than a machine may have.
    #[error(
        "{nets} networks are too many; give the machine at most {}",
        VmSpec::MAX_NETS
    )]
    TooManyNets {
        /// How many were requested.
        nets: usize,
    },
    /// A network is not possible.
    #[error("no network: {0}")]
    Net(#[from] NetError),
    /// A console port is not possible.
    #[error("no console port: {0}")]
    Port(#[from] PortError),
    /// A socket device is not possible.
    #[error("no vsock: {0}")]
    Vsock(#[from] VsockError),
    /// A device of another process is not possible.
    #[error("no vhost-user device: {0}")]
    VhostUser(#[from] VhostUserError),
    /// There are too many shared directories and devices of other processes.
    #[error(
        "{count} shared directories and vhost-user devices are too many; give the machine at most {}",
        VmSpec::MAX_VHOST_USER
    )]
    TooManyVhostUser {
        /// How many there are.
        count: usize,
    },
    /// Two file systems have one tag.
    #[error("two shared directories have the tag {tag:?}; give one of them another `tag=`")]
    SameTag {
        /// The tag.
        tag: String,
    },
    /// Shared memory is not possible.
    #[error("no shared memory: {0}")]
    SharedMemory(#[from] SharedSizeError),
    /// A balloon is not possible.
    #[error("no balloon: {0}")]
    Balloon(#[from] BalloonError),
    /// There is no such network for the metadata service.
    #[error(
        "the metadata service can't be on network {number}: the machine has {nets}, counted from 0"
    )]
    MmdsNet {
        /// The network's number.
        number: usize,
        /// How many networks there are.
        nets: usize,
    },
    /// The metadata service can't have this address.
    #[error(
        "{address} is no address for the metadata service; give it one from 169.254.1.0 to 169.254.254.255"
    )]
    MmdsAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// Two networks have one address.
    #[error("two networks have the MAC address {mac}; give one of them another")]
    SameMac {
        /// The address.
        mac: Mac,
    },
    /// There are more slots for hotplug than a machine may have.
    #[error(
        "{slots} slots are too many; give the machine at most {}",
        HotplugSlots::MAX
    )]
    ManySlots {
        /// How many were requested.
        slots: u8,
    },
    /// Only PCI has slots.
    #[error("only devices on PCI come and go; leave out --hotplug, or say --virtio pci")]
    SlotsNeedPci,
    /// A device has a slot that the machine does not have.
    #[error("slot {slot} is not one of the machine's; {}", which_slots(*slots))]
    NoSlot {
        /// The slot.
        slot: u8,
        /// How many there are.
        slots: u8,
    },
    /// Two devices have one slot.
    #[error("two devices have the slot {slot}; give one of them another")]
    SameSlot {
        /// The slot.
        slot: u8,
    },
    /// Two networks have one link.
    #[error("two networks have {link}; give each one its own")]
    SameLink {
        /// The link, as it was written.
        link: String,
    },
    /// A path is empty.
    #[error("the path of the {what} is empty; name a file")]
    EmptyPath {
        /// The file's role.
        what: &'static str,
    },
    /// A path contains a NUL.
    #[error("the path of the {what}, {path:?}, has a NUL in it; no file is named so, take it out")]
    PathNul {
        /// The file's role.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A socket's path is too long for its address.
    #[error("the {what} path {path:?} is too long; shorten it to {MAX_SOCKET_PATH} bytes or fewer")]
    LongSocketPath {
        /// The socket's role.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
}

/// Why an amount of RAM is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Less RAM than a kernel needs, possibly since the unit was forgotten.
    #[error(
        "{} of memory is less than the {} that a machine needs; {}",
        amount(*memory), ByteSize(layout::MIN_RAM), more_memory(*memory)
    )]
    Little {
        /// The requested bytes.
        memory: u64,
    },
    /// More RAM than the machine's memory map allows.
    #[error(
        "{} of memory is more than a machine can have; give it at most {}",
        amount(*memory), ByteSize(layout::MAX_RAM)
    )]
    Much {
        /// The requested bytes.
        memory: u64,
    },
    /// Not a multiple of the page size.
    #[error(
        "{} of memory is not a multiple of the {} page; the nearest size is {}",
        amount(*memory), ByteSize(layout::PAGE_SIZE), ByteSize(*nearest)
    )]
    PartialPage {
        /// The requested bytes.
        memory: u64,
        /// The nearest possible size.
        nearest: u64,
    },
}

/// Why a command line is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// It contains a NUL.
    #[error(
        "the kernel command line has a NUL at byte {at}, where a kernel would stop reading; take it out"
    )]
    Nul {
        /// The offset of the NUL.
        at: usize,
    },
    /// It doesn't fit its buffer in guest memory.
    #[error(
        "the kernel command line has {len} bytes; shorten it to {} or fewer",
        layout::CMDLINE_SIZE - 1
    )]
    Long {
        /// Its length in bytes.
        len: usize,
    },
}

/// The next step after an unknown key: the nearest one, or the list of all.
fn known_keys(key: &str) -> String {
    match nearest(key, KEYS.iter().copied())[..] {
        [] => format!("the keys are {}", KEYS.join(", ")),
        [near, ..] => format!("did you mean {near:?}?"),
    }
}

/// Formats `bytes`, with a unit if that is exact.
fn amount(bytes: u64) -> String {
    let size = ByteSize(bytes).to_string();
    if size.ends_with(|c: char| c.is_ascii_digit()) {
        return format!("{size} {}", if bytes == 1 { "byte" } else { "bytes" });
    }
    size
}

/// The next step after too small a size: the forgotten unit, or the minimum.
fn more_memory(bytes: u64) -> String {
    match bytes.checked_mul(layout::MIB) {
        Some(layout::MIN_RAM..=layout::MAX_RAM) => format!("did you mean {bytes}M?"),
        _ => "give it more".to_owned(),
    }
}

/// The next step for a wrong slot.
fn which_slots(slots: u8) -> String {
    match HotplugSlots(slots).numbers() {
        none if none.is_empty() => "give it some by --hotplug N".to_owned(),
        some => format!("choose one from {} to {}", some.start, some.end - 1),
    }
}
