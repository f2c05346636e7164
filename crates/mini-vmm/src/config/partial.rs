// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A description that may leave things out: what a command line or a config file says.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueHint};
use serde::{Deserialize, Serialize};

use super::words::{self, ByteSize, Count, OptionalPort, Switch, TimeLimit};
use super::{
    BootProtocol, CpuFeature, Decompress, Error, HypercallAbi, HypercallRoute, MsrPolicy, OnPanic,
    OnReboot, SerialSpec, VmSpec,
};

/// What was said about a machine. Each field is a flag of the command line and, under the same
/// name, a key of the config file; `None` was not said. Of a flag that is given twice the last one counts.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartialSpec {
    /// Kernel image: ELF vmlinux or bzImage, told apart by content
    ///
    /// A file or a pipe, as --initrd: --kernel <(zcat vmlinux.gz)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present = "config", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Boot")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line [default: console=ttyS0 panic=-1 cryptomgr.notests]
    ///
    /// With --serial off the default has no console to name. cryptomgr.notests leaves out the kernel's tests of its
    /// cryptography, which can take half of its boot time; in FIPS mode they run all the same.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Boot"
    )]
    pub cmdline: Option<String>,

    /// Entry point [default: auto]
    #[arg(long, value_name = "WHICH", help_heading = "Boot")]
    pub boot_protocol: Option<BootProtocol>,

    /// Who decompresses a bzImage [default: auto]
    #[arg(long, value_name = "WHO", help_heading = "Boot")]
    pub decompress: Option<Decompress>,

    /// Number of vCPUs, 1 to 64 [default: 1]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Machine"
    )]
    pub cpus: Option<Count>,

    /// RAM: a number and K, M, G or T [default: 512M]
    ///
    /// At least 32M, at most 1T, a multiple of the 4K page. Units are binary; a number without a
    /// unit counts bytes.
    #[arg(
        long,
        value_name = "SIZE",
        allow_negative_numbers = true,
        help_heading = "Machine"
    )]
    pub memory: Option<ByteSize>,

    /// CPU features to show or hide, such as +x,-y
    ///
    /// Names are those of Linux's /proc/cpuinfo. The list applies in order, so the last word on a
    /// feature counts; a feature that the host lacks can't be shown.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    #[arg(help_heading = "Machine")]
    #[serde(deserialize_with = "words::json::features")]
    pub cpu_features: Option<Vec<CpuFeature>>,

    /// Show the guest vmx or svm, for guests of its own [default: off]
    ///
    /// The host's KVM must offer it. It is a large part of KVM that a hostile guest can then reach.
    #[arg(long, value_name = "on|off", help_heading = "Machine")]
    pub nested: Option<Switch>,

    /// Give the machine a PIT and a PIC, and announce them [default: off]
    ///
    /// Linux needs them with acpi=off, nolapic, no-kvmclock or nopv, and so does memtest86+.
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on")]
    #[arg(help_heading = "Machine")]
    pub legacy_timer: Option<Switch>,

    /// Give the machine a real-time clock with an alarm [default: off]
    #[arg(long, value_name = "on|off", help_heading = "Devices")]
    pub rtc: Option<Switch>,

    /// COM1: off, stdio, pty, file=PATH or socket=PATH [default: stdio]
    ///
    /// stdio: Ctrl-A x ends the VMM. pty: the name of a new pseudo-terminal is printed.
    /// file: output only, the file is created or emptied. socket: listens there, one client at a
    /// time.
    #[arg(long, value_name = "WHERE", help_heading = "Devices")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|word| SerialSpec::from_word(&word)))]
    pub serial: Option<SerialSpec>,

    /// Let the guest end the VMM through a port [default port: 0xf4]
    ///
    /// A byte written to the port ends the VMM with exit code (value << 1) | 1, as QEMU's
    /// isa-debug-exit does.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "0xf4", help_heading = "Devices")]
    pub debug_exit: Option<OptionalPort>,

    /// What a guest reset does [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "Policy")]
    pub on_reboot: Option<OnReboot>,

    /// What a guest's panic report does [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "Policy")]
    pub on_panic: Option<OnPanic>,

    /// End the run after this time: 90, 5m, 1h or off [default: off]
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        help_heading = "Policy"
    )]
    pub timeout: Option<TimeLimit>,

    /// How a guest's hypercalls reach their handler [default: auto]
    ///
    /// A guest registers for hypercalls by MSR 0x87655678, and the VMM writes the instructions into
    /// its memory that make them. Say pio where more than one host runs the guests: what auto takes
    /// depends on the host, and VMM_HC_EXIT and its like exist with pio and forward only. PORT is 0
    /// to 0xff; without one it is 0xf5, or 0xf9 where the debug-exit device has that.
    #[arg(long, value_name = "ROUTE", value_parser = words::RouteParser)]
    #[arg(help_heading = "Hypercalls")]
    pub hypercall: Option<HypercallRoute>,

    /// Registers of hypercalls that reach the VMM [default: kvm]
    ///
    /// On the route vendor KVM itself answers, and knows its own registers only. With others, auto is pio.
    #[arg(long, value_name = "ABI", help_heading = "Hypercalls")]
    pub hypercall_abi: Option<HypercallAbi>,

    /// Whether a guest can register for hypercalls [default: on]
    ///
    /// Off: MSR 0x87655678 is #GP, as on a machine that never heard of it.
    #[arg(long, value_name = "on|off", help_heading = "Hypercalls")]
    pub para: Option<Switch>,

    /// Which MSRs the guest may use [default: allow]
    #[arg(long, value_name = "POLICY", help_heading = "Policy")]
    pub msr_policy: Option<MsrPolicy>,

    /// Open no file, socket or VM once the guest runs [default: off]
    ///
    /// What is otherwise found out when a guest needs it is then found out at the start, which takes longer.
    #[arg(long, value_name = "on|off", help_heading = "Policy")]
    pub sealed: Option<Switch>,
}

impl PartialSpec {
    /// What `self` says, and what `other` says where `self` is silent.
    pub fn or(self, other: PartialSpec) -> PartialSpec {
        PartialSpec {
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            cmdline: self.cmdline.or(other.cmdline),
            boot_protocol: self.boot_protocol.or(other.boot_protocol),
            decompress: self.decompress.or(other.decompress),
            cpus: self.cpus.or(other.cpus),
            memory: self.memory.or(other.memory),
            cpu_features: self.cpu_features.or(other.cpu_features),
            nested: self.nested.or(other.nested),
            legacy_timer: self.legacy_timer.or(other.legacy_timer),
            rtc: self.rtc.or(other.rtc),
            serial: self.serial.or(other.serial),
            debug_exit: self.debug_exit.or(other.debug_exit),
            on_reboot: self.on_reboot.or(other.on_reboot),
            on_panic: self.on_panic.or(other.on_panic),
            timeout: self.timeout.or(other.timeout),
            hypercall: self.hypercall.or(other.hypercall),
            hypercall_abi: self.hypercall_abi.or(other.hypercall_abi),
            para: self.para.or(other.para),
            msr_policy: self.msr_policy.or(other.msr_policy),
            sealed: self.sealed.or(other.sealed),
        }
    }
}

impl TryFrom<PartialSpec> for VmSpec {
    type Error = Error;

    /// Fills in the defaults and validates.
    fn try_from(partial: PartialSpec) -> Result<Self, Error> {
        let serial = partial.serial.unwrap_or_default();
        let default_cmdline = || VmSpec::default_cmdline(&serial).to_owned();
        let cpus = partial.cpus.map_or(1, |count| count.0);
        let spec = VmSpec {
            kernel: partial.kernel.ok_or(Error::NoKernel)?,
            initrd: partial.initrd,
            cmdline: partial.cmdline.unwrap_or_else(default_cmdline),
            boot_protocol: partial.boot_protocol.unwrap_or_default(),
            decompress: partial.decompress.unwrap_or_default(),
            cpus: u8::try_from(cpus).map_err(|_| Error::TooManyCpus { cpus })?,
            cpu_features: partial.cpu_features.unwrap_or_default(),
            nested: partial.nested.is_some_and(|switch| switch.0),
            memory: partial.memory.map_or(VmSpec::DEFAULT_MEMORY, |size| size.0),
            serial,
            on_reboot: partial.on_reboot.unwrap_or_default(),
            on_panic: partial.on_panic.unwrap_or_default(),
            timeout: partial.timeout.and_then(|limit| limit.0),
            debug_exit: partial.debug_exit.and_then(|port| port.0),
            legacy_timer: partial.legacy_timer.is_some_and(|switch| switch.0),
            rtc: partial.rtc.is_some_and(|switch| switch.0),
            hypercall: partial.hypercall.unwrap_or_default(),
            hypercall_abi: partial.hypercall_abi.unwrap_or_default(),
            para: partial.para.is_none_or(|switch| switch.0),
            msr_policy: partial.msr_policy.unwrap_or_default(),
            sealed: partial.sealed.is_some_and(|switch| switch.0),
        };
        spec.validate()?;
        Ok(spec)
    }
}

impl From<VmSpec> for PartialSpec {
    /// Says everything, also what is a default.
    fn from(spec: VmSpec) -> Self {
        PartialSpec {
            kernel: Some(spec.kernel),
            initrd: spec.initrd,
            cmdline: Some(spec.cmdline),
            boot_protocol: Some(spec.boot_protocol),
            decompress: Some(spec.decompress),
            cpus: Some(Count(spec.cpus.into())),
            memory: Some(ByteSize(spec.memory)),
            cpu_features: Some(spec.cpu_features),
            nested: Some(Switch(spec.nested)),
            legacy_timer: Some(Switch(spec.legacy_timer)),
            rtc: Some(Switch(spec.rtc)),
            serial: Some(spec.serial),
            debug_exit: Some(OptionalPort(spec.debug_exit)),
            on_reboot: Some(spec.on_reboot),
            on_panic: Some(spec.on_panic),
            timeout: Some(TimeLimit(spec.timeout)),
            hypercall: Some(spec.hypercall),
            hypercall_abi: Some(spec.hypercall_abi),
            para: Some(Switch(spec.para)),
            msr_policy: Some(spec.msr_policy),
            sealed: Some(Switch(spec.sealed)),
        }
    }
}
