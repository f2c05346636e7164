// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The description of a machine. Both the command line and a JSON file produce it.

mod balloon;
mod choices;
mod device;
mod disk;
mod draft;
mod error;
mod features;
pub mod file;
mod hypercall;
mod iothread;
mod kvm;
mod net;
mod port;
mod rng;
mod serial;
mod share;
mod shared;
mod shared_memory;
mod slots;
mod validate;
mod vhost_user;
mod vsock;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use self::balloon::{BalloonError, BalloonSpec};
use self::choices::choices;
pub use self::disk::{Cache, DiskSpec, Engine, Format};
pub(crate) use self::draft::check_word;
pub use self::draft::{Draft, KEYS};
pub use self::error::{CmdlineError, Error, MemoryError};
pub use self::features::CpuFeature;
pub use self::hypercall::{HypercallAbi, HypercallRoute, MsrPolicy};
pub use self::iothread::IoThreadName;
pub(crate) use self::kvm::read_bitmap;
pub use self::kvm::{MsrChange, check_msrs};
pub use self::net::{Forward, Limit, Limits, LinkSpec, Mac, NetError, NetSpec};
pub use self::port::{PortError, PortSpec, PortTarget};
pub use self::rng::RngSpec;
pub use self::serial::SerialSpec;
pub use self::share::{Sandbox, ShareSpec};
pub use self::shared_memory::{SharedMemorySpec, SharedSizeError, check_shared_size};
pub use self::slots::{DeviceAt, HotplugSlots, MaySlot};
pub use self::validate::{check_cmdline, check_memory};
pub use self::vhost_user::{VhostUserDevice, VhostUserError, VhostUserSpec};
pub use self::vsock::{VsockError, VsockSpec};
pub use self::words::WordError;
pub(crate) use self::words::parse_size;
use crate::layout;
use crate::mmds::MmdsSpec;
use crate::start_time::Moment;

/// What to boot and on what machine.
///
/// As JSON it is an object with the names of the command line's flags as keys. Only `kernel` is required. What is read
/// is valid.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmSpec {
    /// The kernel image: ELF or bzImage, told apart by content.
    #[serde(serialize_with = "words::write_kernel")]
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
    /// RAM in bytes; a multiple of the page size.
    #[serde(serialize_with = "words::write_size")]
    pub memory: u64,
    /// CPU features to add or remove, in order, such as `-avx2`.
    pub cpu_features: Vec<CpuFeature>,
    /// Changes of the MSRs that each vCPU starts with.
    pub msrs: Vec<MsrChange>,
    /// Capabilities that the host's KVM must have, by their numbers (KVM API, `KVM_CHECK_EXTENSION`).
    pub kvm_capabilities: Vec<u32>,
    /// Whether the guest can run nested guests: it sees VMX or SVM.
    #[serde(serialize_with = "words::write_switch")]
    pub nested: bool,
    /// Whether the machine has and announces a PC's PIT and PIC, on a platform with ACPI's fixed hardware.
    #[serde(serialize_with = "words::write_switch")]
    pub legacy_timer: bool,
    /// Whether the machine has and announces a PC's real-time clock.
    #[serde(serialize_with = "words::write_switch")]
    pub rtc: bool,
    /// Where COM1 goes.
    #[serde(serialize_with = "serial::write_serial")]
    pub serial: SerialSpec,
    /// The limit of the bytes that the guest writes to COM1. More are dropped.
    #[serde(serialize_with = "shared::write_limit")]
    pub serial_bandwidth: Option<Limit>,
    /// Where the virtio console goes, if there is one.
    #[serde(serialize_with = "serial::write_serial")]
    pub console: SerialSpec,
    /// Named ports, as a virtio device.
    pub console_port: Vec<PortSpec>,
    /// How the guest reaches virtio devices.
    pub virtio: VirtioSpec,
    /// Slots for disks and networks that come and go while the guest runs.
    pub hotplug: HotplugSlots,
    /// The virtio device that gives the guest random numbers, if there is one.
    #[serde(serialize_with = "rng::write_rng")]
    pub rng: Option<RngSpec>,
    /// The disks, as virtio devices, in the order in which the guest finds them.
    pub disk: Vec<DiskSpec>,
    /// A directory with the files of a cloud-init seed, which is the last disk.
    pub cloud_init: Option<PathBuf>,
    /// The networks, as virtio devices, in the order in which the guest finds them.
    pub net: Vec<NetSpec>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockSpec>,
    /// The shared directories, in the order in which the guest finds them.
    pub share: Vec<ShareSpec>,
    /// The devices that other processes serve, in the order in which the guest finds them.
    pub vhost_user: Vec<VhostUserSpec>,
    /// The file that the guest shares as memory, if there is one.
    pub shared_memory: Option<SharedMemorySpec>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonSpec>,
    /// The debug-exit port, if there is one.
    #[serde(serialize_with = "words::write_port")]
    pub debug_exit: Option<u16>,
    /// What a guest reset does.
    pub on_reboot: OnReboot,
    /// What a guest panic report does.
    pub on_panic: OnPanic,
    /// How long the machine may run.
    #[serde(serialize_with = "words::write_time")]
    pub timeout: Option<Duration>,
    /// The route of hypercalls, for a guest that registers for them.
    pub hypercall: HypercallRoute,
    /// The registers of number and arguments, for hypercalls that reach the VMM.
    pub hypercall_abi: HypercallAbi,
    /// Whether MSR 0x87655678 exists, with which a guest registers for hypercalls.
    #[serde(serialize_with = "words::write_switch")]
    pub para: bool,
    /// Which MSRs the guest may use.
    pub msr_policy: MsrPolicy,
    /// Whether everything that opens a file, a socket or a VM happens before the guest runs: see
    /// [`LATE_ACTS`](crate::late::LATE_ACTS).
    #[serde(serialize_with = "words::write_switch")]
    pub sealed: bool,
    /// The file or FIFO that gets lines of JSON with counters.
    pub metrics: Option<PathBuf>,
    /// The file or FIFO that gets events as lines of JSON. `fd:N` is an open descriptor.
    pub event_log: Option<PathBuf>,
    /// The directory for snapshots that the guest asks for, if it may.
    pub snapshot_dir: Option<PathBuf>,
    /// The metadata service, if the guest has one.
    #[serde(skip)]
    pub mmds: Option<MmdsSpec>,
    /// What the names of the vCPUs' threads begin with. A number follows.
    #[serde(skip)]
    pub vcpu_thread: &'static str,
    /// Whether each snapshot lets the host mark the pages that change from then on, so that the next Diff is small. A Diff
    /// always does.
    #[serde(skip)]
    pub track_dirty_pages: bool,
    /// When the start was ordered, if the guest has a boot timer, which reports the time since then.
    #[serde(skip)]
    pub boot_timer: Option<Moment>,
}

choices! {
    /// Which entry point of the kernel to use.
    pub enum BootProtocol {
        /// PVH where an ELF file has the note, else the 64-bit Linux entry.
        Auto = "auto",
        /// The 64-bit Linux entry.
        Linux = "linux",
        /// The PVH entry.
        Pvh = "pvh",
    }

    /// Who decompresses a bzImage.
    pub enum Decompress {
        /// The guest where its decompressor is quick (LZ4, LZO), else the host where it can.
        Auto = "auto",
        /// The host, or a bzImage that it can't decompress is refused.
        Host = "host",
        /// The guest's own decompressor (which also randomizes the kernel's address).
        Guest = "guest",
    }

    /// How the guest reaches virtio devices.
    pub enum VirtioSpec {
        /// By PCI, with an interrupt of its own for each queue.
        Pci = "pci",
        /// By memory-mapped registers; ACPI names the devices.
        Mmio = "mmio",
        /// By memory-mapped registers; only the kernel command line names the devices. For kernels without ACPI: Linux
        /// with ACPI can't use them.
        MmioCmdline = "mmio,cmdline",
        /// By memory-mapped registers; ACPI and the kernel command line both name the devices, for any kernel.
        MmioBoth = "mmio,both",
    }

    /// What a guest reset does.
    pub enum OnReboot {
        /// The process ends with exit code 32.
        Exit = "exit",
        /// The machine starts again from nothing, in this process.
        Reset = "reset",
    }

    /// What a guest panic report (pvpanic) does.
    pub enum OnPanic {
        /// The process ends with exit code 34.
        Exit = "exit",
        /// The report is logged and the guest goes on (to its crash kernel or reboot).
        Continue = "continue",
    }
}

impl VmSpec {
    /// The default amount of RAM in bytes.
    pub const DEFAULT_MEMORY: u64 = 512 * layout::MIB;

    /// The most disks.
    pub const MAX_DISKS: usize = 64;

    /// The most networks.
    pub const MAX_NETS: usize = 32;

    /// The most shared directories and devices of other processes, together.
    pub const MAX_VHOST_USER: usize = 16;

    /// The longest timeout: ten years, well within what a monotonic clock can count.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(3650 * 86_400);

    /// Whether other processes need guest memory, so that it must be a file.
    pub(crate) const fn shares_memory(&self) -> bool {
        !self.share.is_empty() || !self.vhost_user.is_empty()
    }

    /// The machine that boots `kernel`, with defaults for everything else.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        let serial = SerialSpec::default();
        VmSpec {
            kernel: kernel.into(),
            initrd: None,
            cmdline: VmSpec::default_cmdline(&serial, &SerialSpec::Off),
            boot_protocol: BootProtocol::default(),
            decompress: Decompress::default(),
            cpus: 1,
            cpu_features: Vec::new(),
            msrs: Vec::new(),
            kvm_capabilities: Vec::new(),
            nested: false,
            memory: VmSpec::DEFAULT_MEMORY,
            serial,
            serial_bandwidth: None,
            console: SerialSpec::Off,
            console_port: Vec::new(),
            on_reboot: OnReboot::default(),
            on_panic: OnPanic::default(),
            timeout: None,
            debug_exit: None,
            legacy_timer: false,
            rtc: false,
            virtio: VirtioSpec::default(),
            hotplug: HotplugSlots::default(),
            rng: None,
            disk: Vec::new(),
            cloud_init: None,
            net: Vec::new(),
            vsock: None,
            share: Vec::new(),
            vhost_user: Vec::new(),
            shared_memory: None,
            balloon: None,
            hypercall: HypercallRoute::default(),
            hypercall_abi: HypercallAbi::default(),
            para: true,
            msr_policy: MsrPolicy::default(),
            sealed: false,
            metrics: None,
            event_log: None,
            snapshot_dir: None,
            mmds: None,
            vcpu_thread: "vcpu",
            track_dirty_pages: false,
            boot_timer: None,
        }
    }

    /// The default kernel command line: the consoles that there are, the virtio console last, so that it is the guest's
    /// `/dev/console`. If both are the VMM's standard output, COM1 has only the messages before the guest has its virtio
    /// console. A panic is a reset, which ends the run. The kernel skips the tests of its cryptography, which can take half
    /// of its boot time; in FIPS mode it runs them anyway.
    pub fn default_cmdline(serial: &SerialSpec, console: &SerialSpec) -> String {
        let consoles = match (serial, console) {
            (SerialSpec::Off, SerialSpec::Off) => "",
            (_, SerialSpec::Off) => "console=ttyS0 ",
            (SerialSpec::Off, _) => "console=hvc0 ",
            (SerialSpec::Stdio, SerialSpec::Stdio) => "earlycon=uart8250,io,0x3f8 console=hvc0 ",
            _ => "console=ttyS0 console=hvc0 ",
        };
        format!("{consoles}panic=-1 cryptomgr.notests")
    }
}

#[cfg(test)]
pub(crate) mod tests;
