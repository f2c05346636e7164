// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The flags that describe a machine: their help, and the words given for them.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgMatches, Args, Command, Error, ValueHint};

use crate::config::{
    self, BootProtocol, Decompress, HypercallAbi, HypercallRoute, KEYS, MsrPolicy, OnPanic,
    OnReboot, VirtioSpec, WordError,
};

/// The flags as the help shows them. Each has the name of one of [`KEYS`], which [`given`] uses to find its words.
#[derive(Args, Debug)]
pub(super) struct MachineFlags {
    /// Kernel image: ELF vmlinux or bzImage, told apart by content
    ///
    /// A file or a pipe, as --initrd: --kernel <(zcat vmlinux.gz)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present_any = ["config", "api_sock", "restore"], help_heading = "Boot")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Boot")]
    initrd: Option<PathBuf>,

    /// Command line [default: console=ttyS0 panic=-1 cryptomgr.notests]
    ///
    /// With --serial off the default names no COM1, and with --console it names hvc0. cryptomgr.notests skips the kernel's tests of its cryptography,
    /// which can take half of its boot time. In FIPS mode they run anyway.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(value_parser = Word("cmdline", &[]), help_heading = "Boot")]
    cmdline: Option<OsString>,

    /// Entry point [default: auto]
    #[arg(long, value_name = "WHICH", value_parser = Word("boot-protocol", BootProtocol::WORDS), help_heading = "Boot")]
    #[arg(hide_short_help = true)]
    boot_protocol: Option<OsString>,

    /// Who decompresses a bzImage [default: auto]
    #[arg(long, value_name = "WHO", help_heading = "Boot", value_parser = Word("decompress", Decompress::WORDS))]
    #[arg(hide_short_help = true)]
    decompress: Option<OsString>,

    /// Number of vCPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = Word("cpus", &[]))]
    #[arg(help_heading = "Machine")]
    cpus: Option<OsString>,

    /// RAM: a number and K, M, G or T [default: 512M]
    ///
    /// At least 32M, at most 1T, a multiple of the 4K page. Units are binary; a number without a
    /// unit counts bytes.
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    #[arg(value_parser = Word("memory", &[]), help_heading = "Machine")]
    memory: Option<OsString>,

    /// CPU features to show or hide, such as +x,-y
    ///
    /// Names are those of Linux's /proc/cpuinfo. The list applies in order, so the last entry for a feature counts. A
    /// feature that the host lacks can't be shown.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(allow_hyphen_values = true, value_parser = Word("cpu-features", &[]))]
    #[arg(help_heading = "Machine")]
    cpu_features: Option<Vec<OsString>>,

    /// Bits of MSRs that vCPUs start with, such as 0x10a=0b1x0
    ///
    /// A list. x is a bit that stays, as are those on the left. KVM must list the MSR.
    #[arg(long, value_name = "LIST", value_parser = Word("msrs", &[]), help_heading = "Machine")]
    #[arg(hide_short_help = true)]
    msrs: Option<OsString>,

    /// Capabilities that the host's KVM must have, by their numbers
    #[arg(long, value_name = "LIST", value_parser = Word("kvm-capabilities", &[]), help_heading = "Machine")]
    #[arg(hide_short_help = true)]
    kvm_capabilities: Option<OsString>,

    /// Show the guest vmx or svm, for guests of its own [default: off]
    ///
    /// The host's KVM must offer it. It lets a hostile guest reach a large part of KVM.
    #[arg(long, value_name = "on|off", value_parser = Word("nested", &[]), help_heading = "Machine")]
    #[arg(hide_short_help = true)]
    nested: Option<OsString>,

    /// Give the machine a PIT and a PIC, and announce them [default: off]
    ///
    /// Linux needs them with acpi=off, nolapic, no-kvmclock or nopv, and so does memtest86+.
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(value_parser = Word("legacy-timer", &[]), default_missing_value = "on", help_heading = "Machine")]
    #[arg(hide_short_help = true)]
    legacy_timer: Option<OsString>,

    /// Give the machine a real-time clock with an alarm [default: off]
    #[arg(long, value_name = "on|off", help_heading = "Devices", value_parser = Word("rtc", &[]))]
    #[arg(hide_short_help = true)]
    rtc: Option<OsString>,

    /// COM1: off, stdio, pty, file=PATH or socket=PATH [default: stdio]
    ///
    /// stdio: Ctrl-A x ends the VMM. pty: the name of a new pseudo-terminal is printed.
    /// file: output only, the file is created or emptied. socket: listens there, one client at a
    /// time.
    #[arg(long, value_name = "WHERE", value_parser = Word("serial", &[]), help_heading = "Devices")]
    serial: Option<OsString>,

    /// The most bytes per second of the guest's output on COM1; more are dropped [default: off]
    #[arg(long, value_name = "SIZE", value_parser = Word("serial-bandwidth", &[]), help_heading = "Devices")]
    #[arg(hide_short_help = true)]
    serial_bandwidth: Option<OsString>,

    /// A virtio console, hvc0, with the words of --serial [default: off]
    ///
    /// It follows the size of a terminal, and the default command line names it. If both are stdio, the virtio
    /// console has the input, and COM1 the messages before that.
    #[arg(long, value_name = "WHERE", value_parser = Word("console", &[]), help_heading = "Devices")]
    console: Option<OsString>,

    /// Add a named port: name=NAME,to=file:PATH|unix:PATH|pty|stdio|fd:N
    ///
    /// The guest has it as /dev/virtio-ports/NAME. file: the guest's data goes to the file, which is created or emptied. unix:
    /// listens there, one client at a time. pty: the name of a new pseudo-terminal is printed. stdio: the standard streams.
    /// fd:N: an open descriptor, in the directions that it has; 0 is for input only, 1 and 2 for output only.
    #[arg(long, value_name = "WORDS", value_parser = Word("console-port", &[]), help_heading = "Devices")]
    #[arg(hide_short_help = true)]
    console_port: Option<Vec<OsString>>,

    /// How the guest reaches virtio devices [default: pci]
    #[arg(long, value_name = "HOW", value_parser = Word("virtio", VirtioSpec::WORDS), help_heading = "Devices")]
    virtio: Option<OsString>,

    /// Keep N slots for disks and networks that come and go [default: 0]
    ///
    /// At most 16, on PCI. `mini-vmm ctl SOCKET add` and `remove` then change the machine while its guest runs. Slots are
    /// the last device numbers of the bus. A disk or network with slot=31 can also be removed.
    #[arg(long, value_name = "N", value_parser = Word("hotplug", &[]), help_heading = "Devices")]
    #[arg(hide_short_help = true)]
    hotplug: Option<OsString>,

    /// Give the guest random numbers by a virtio device [default: off]
    ///
    /// on, off, or limits: bandwidth=SIZE and iops=N, both per second.
    #[arg(long, value_name = "WORDS", help_heading = "Devices", value_parser = Word("rng", &[]))]
    rng: Option<OsString>,

    /// Add a disk: path=FILE,format=qcow2,readonly,...
    ///
    /// Keys: path=FILE, a file or block device; format=raw|qcow2 [default: raw]; readonly; serial=TEXT; direct;
    /// queues=N; cache=writeback|writethrough|unsafe [default: writeback];
    /// engine=auto|sync|async [default: auto]; bandwidth=SIZE and iops=N, both per second;
    /// overlay=DIR|tmp, which keeps what the guest writes until the machine ends and leaves the image alone;
    /// iothread=NAME, a thread that disks of that name share; slot=N, one of --hotplug. A comma in a path is doubled. The guest finds the disks
    /// in the order of the flags, after those of the config file.
    #[arg(long, value_name = "WORDS", value_parser = Word("disk", &[]), help_heading = "Devices")]
    disk: Option<Vec<OsString>>,

    /// Configure a cloud image: a directory with user-data
    ///
    /// The files user-data, meta-data, network-config and vendor-data of the directory become a disk named CIDATA, where
    /// cloud-init finds them (data source NoCloud). Only user-data must exist.
    #[arg(long, value_name = "DIR", help_heading = "Devices")]
    cloud_init: Option<PathBuf>,

    /// Add a network: tap=NAME, fd=N or user, and more
    ///
    /// tap=NAME: an existing tap of the host's. fd=N: a tap that is open under that number. user: the host's network
    /// without root, by the program passt. Keys: forward=HOST:GUEST, a TCP port, with user, also several times;
    /// mac=ADDRESS; mtu=N; queues=N, with tap; bandwidth=SIZE and iops=N, both per second and direction, and with rx- or
    /// tx- before them of one direction; iothread=NAME; slot=N, one of --hotplug. The guest finds the networks in the order of the flags, after those of the config file.
    #[arg(long, value_name = "WORDS", value_parser = Word("net", &[]), help_heading = "Devices")]
    net: Option<Vec<OsString>>,

    /// Add sockets between host and guest: cid=N,socket=PATH
    ///
    /// cid=N: the guest's CID, 3 or more. socket=PATH: a Unix socket, which is made. A process of the host connects there,
    /// says "CONNECT <port>" and a newline, and reads "OK <port>". A process of the guest that connects to port N of CID 2
    /// reaches the Unix socket PATH_N. iothread=NAME: a thread that devices of that name share.
    #[arg(long, value_name = "WORDS", value_parser = Word("vsock", &[]), help_heading = "Devices")]
    vsock: Option<OsString>,

    /// Share a directory with the guest: path=DIR,tag=NAME,readonly
    ///
    /// The guest mounts it by `mount -t virtiofs NAME /mnt`. Keys: path=DIR; tag=NAME [default: share0, share1, ...];
    /// readonly; sandbox=auto|namespace|chroot|none [default: auto], what keeps virtiofsd to the directory;
    /// iothread=NAME. It needs the program virtiofsd, which is started for each. A comma in a path is doubled.
    #[arg(long, value_name = "WORDS", value_parser = Word("share", &[]), help_heading = "Devices")]
    share: Option<Vec<OsString>>,

    /// Add a device that another process serves: socket=PATH,device=TYPE
    ///
    /// socket=PATH: where that process listens, for the vhost-user protocol. It can read and write all of guest memory.
    /// device=fs|blk|net, or a device ID of the virtio specification. Keys: tag=NAME, with fs; queues=N; config=BYTES, the
    /// length of the configuration, with an ID; iothread=NAME.
    #[arg(long, value_name = "WORDS", value_parser = Word("vhost-user", &[]), help_heading = "Devices")]
    #[arg(hide_short_help = true)]
    vhost_user: Option<Vec<OsString>>,

    /// Share a file as memory that is in no snapshot: path=FILE
    ///
    /// The guest finds it as the reserved range of its memory map above 4 GiB, and has it as it is, from the file's first
    /// byte on. size=SIZE: only so much of it [default: all]. A comma in a path is doubled.
    #[arg(long, value_name = "WORDS", value_parser = Word("shared-memory", &[]), help_heading = "Devices")]
    #[arg(hide_short_help = true)]
    shared_memory: Option<OsString>,

    /// Take memory back from the guest: size=SIZE and options
    ///
    /// size=SIZE: what the guest gives back at first; mini-vmm ctl changes it. deflate-on-oom: the guest takes memory back
    /// before it ends processes. reporting: it gives back free memory by itself. hinting: it does so when it is asked to.
    /// stats=SECONDS: it tells about its memory that often. iothread=NAME: a thread that devices of that name share.
    #[arg(long, value_name = "WORDS", value_parser = Word("balloon", &[]), help_heading = "Devices")]
    balloon: Option<OsString>,

    /// Let the guest end the VMM through a port [default port: 0xf4]
    ///
    /// A byte written to the port ends the VMM with exit code (value << 1) | 1, as QEMU's
    /// isa-debug-exit does.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true)]
    #[arg(value_parser = Word("debug-exit", &[]), default_missing_value = "0xf4", help_heading = "Devices")]
    debug_exit: Option<OsString>,

    /// What a guest reset does [default: exit]
    #[arg(long, value_name = "ACTION", value_parser = Word("on-reboot", OnReboot::WORDS), help_heading = "Policy")]
    on_reboot: Option<OsString>,

    /// What a panic does [default: exit]
    #[arg(long, value_name = "ACTION", value_parser = Word("on-panic", OnPanic::WORDS), help_heading = "Policy")]
    on_panic: Option<OsString>,

    /// End the run after this time: 90, 5m, 1h or off [default: off]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[arg(value_parser = Word("timeout", &[]), help_heading = "Policy")]
    timeout: Option<OsString>,

    /// How a guest's hypercalls reach their handler [default: auto]
    ///
    /// A guest registers for hypercalls through MSR 0x87655678, and the VMM writes the call instructions into its
    /// memory. Use pio if several hosts run the guests: the choice of auto depends on the host, and VMM_HC_EXIT and
    /// similar calls exist only with pio and forward. PORT is 0 to 0xff. The default is 0xf5, or 0xf9 if the debug-exit
    /// device has that port.
    #[arg(long, value_name = "ROUTE", value_parser = Word("hypercall", HypercallRoute::WORDS))]
    #[arg(help_heading = "Hypercalls")]
    hypercall: Option<OsString>,

    /// Registers of hypercalls that reach the VMM [default: kvm]
    ///
    /// On the route vendor KVM itself answers, and knows only its own registers. With other registers, auto means pio.
    #[arg(long, value_name = "ABI")]
    #[arg(value_parser = Word("hypercall-abi", HypercallAbi::WORDS), help_heading = "Hypercalls")]
    #[arg(hide_short_help = true)]
    hypercall_abi: Option<OsString>,

    /// Whether a guest can register for hypercalls [default: on]
    ///
    /// Off: MSR 0x87655678 is #GP, as on a machine without it.
    #[arg(long, value_name = "on|off", value_parser = Word("para", &[]), help_heading = "Hypercalls")]
    para: Option<OsString>,

    /// Let the guest ask for snapshots of itself, in this directory
    ///
    /// By the hypercall VMM_HC_SNAPSHOT, so auto means pio. Their names are numbers from 1 on, at most 100. The guest gets
    /// at most one per second.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Hypercalls")]
    snapshot_dir: Option<PathBuf>,

    /// Which MSRs the guest may use [default: allow]
    #[arg(long, value_name = "POLICY", value_parser = Word("msr-policy", MsrPolicy::WORDS), help_heading = "Policy")]
    msr_policy: Option<OsString>,

    /// Open no file, socket or VM once the guest runs [default: off]
    ///
    /// The machine then tests at the start what it otherwise tests when a guest needs it. That makes the start slower.
    /// Each reset with --on-reboot reset still creates a VM.
    #[arg(long, value_name = "on|off", value_parser = Word("sealed", &[]), help_heading = "Policy")]
    sealed: Option<OsString>,

    /// Write counters as JSON to a file or FIFO, each minute and at the end
    ///
    /// The names are Firecracker's where it has them. A FIFO may have no reader.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "Output")]
    metrics: Option<PathBuf>,

    /// Write events as JSON to a file or FIFO, or to a descriptor: fd:N
    ///
    /// Events are the start, pauses, resets, panics of the guest, problems of devices, and the end with its outcome.
    #[arg(long, value_name = "PATH|fd:N", value_hint = ValueHint::FilePath, help_heading = "Output")]
    event_log: Option<PathBuf>,
}

/// The machine flags that were given, and their words: one each, or all of a flag that adds a device. The words of a
/// list are joined by commas.
pub(super) fn given(matches: &ArgMatches) -> Vec<(&'static str, OsString)> {
    // clap's IDs are the field names.
    let name = |byte| if byte == b'-' { b'_' } else { byte };
    let mut given = Vec::new();
    for id in matches.ids() {
        let is_it = |key: &&&str| key.bytes().map(name).eq(id.as_str().bytes());
        let (Some(key), Some(words)) = (KEYS.iter().find(is_it), matches.get_raw(id.as_str()))
        else {
            continue;
        };
        if *key == "cpu-features" {
            let words: Vec<&OsStr> = words.collect();
            given.push((*key, words.join(OsStr::new(","))));
        } else {
            given.extend(words.map(|word| (*key, word.to_owned())));
        }
    }
    given
}

/// Parses the word of a key. The words of a choice, with their meanings, are listed for help and shells.
#[derive(Clone, Copy, Debug)]
struct Word(&'static str, &'static [(&'static str, &'static str)]);

impl TypedValueParser for Word {
    type Value = OsString;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        word: &OsStr,
    ) -> Result<OsString, Error> {
        let judged = match config::check_word(self.0, word) {
            // clap lists the choices itself.
            Err(WordError::Choice) => {
                let parser = PossibleValuesParser::new(self.1.iter().map(|(word, _)| *word));
                let word = word.to_string_lossy();
                let listed = parser.parse_ref(command, arg, OsStr::new(&*word));
                return listed.map(OsString::from);
            }
            judged => judged,
        };
        let parser = OsStringValueParser::new().try_map(move |word| judged.clone().map(|()| word));
        parser.parse_ref(command, arg, word)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        // Help texts have no period at the end.
        let help = |meaning: &'static str| meaning.trim().trim_end_matches('.');
        let known = self.1.iter();
        let values = known.map(move |(word, meaning)| PossibleValue::new(word).help(help(meaning)));
        (!self.1.is_empty()).then(|| Box::new(values) as Box<dyn Iterator<Item = PossibleValue>>)
    }
}
