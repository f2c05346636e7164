// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The load on virtio devices: the guest in `guest/bench`, which drives a device by PCI, the same for all VMMs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::image;
use super::subject::{Files, Kind, Setup, Subject};
use crate::packages::{self, Need};
use crate::process::{Watched, capture_ok, capture_watched, last_lines, read, write};
use crate::watch::Patience;
use crate::workspace::{Scratch, root};

/// What builds the guest.
const NEEDS: &[Need] = &[("gcc", "gcc")];
/// The guest must not need what emulators of instructions lack, such as SSE.
const FLAGS: &str = "-m64 -O2 -ffreestanding -fno-strict-aliasing -fno-pie -no-pie -mcmodel=small -mno-red-zone \
    -fno-stack-protector -fno-asynchronous-unwind-tables -mgeneral-regs-only -fcf-protection=none -nostdlib -static \
    -Wall -Wextra -Werror -Wl,--build-id=none -Wl,--oformat=binary";
/// The offset of the parameters in the image.
const PARAMETERS: usize = 16;
/// The size of the disk in bytes, as in the guest.
pub const DISK: u64 = 64 << 20;
/// Rounds of the guest's empty loop, in which the probe attaches to the process.
const DELAY: u32 = 400_000;
/// The tap, which the guest's packets expect.
const TAP: &str = "bench0";
/// Creates it, in a network namespace of its own.
const TAP_SCRIPT: &str = "
ip tuntap add dev bench0 mode tap vnet_hdr
echo 1 >/proc/sys/net/ipv6/conf/bench0/disable_ipv6
ip link set dev bench0 address 52:54:00:00:00:01
ip address add 192.0.2.1/24 dev bench0
ip link set dev bench0 up
ip neighbour add 192.0.2.2 lladdr 52:54:00:00:00:02 dev bench0
";
/// The file name of a vsock device's socket.
const SOCKET: &str = "v";
/// Runs a command while the probe is the other side of the guest's stream: its arguments are the probe, what it is, the
/// path of the device's socket, and the command.
const STREAM_SCRIPT: &str = "probe=$0 side=$1 socket=$2; shift 2
rm -f $socket ${socket}_52
$probe unix $side ${socket}_52 & other=$!
until [ -S ${socket}_52 ]; do kill -0 $other || exit; sleep 0.01; done
$probe \"$@\"; status=$?
kill $other 2>/dev/null
exit $status";
/// The image in the bed, and the commands that create it there: in a file system that io_uring can read without another
/// thread, which it can't in memory.
pub const BED_DISK: &str = "/tmp/disks/disk";
pub const BED_SCRIPT: &str = "{ dd if=/dev/zero of=/tmp/fs bs=1M count=80
mke2fs -F /tmp/fs
mkdir /tmp/disks
mount -t ext4 -o loop /tmp/fs /tmp/disks
dd if=/dev/zero of=/tmp/disks/disk bs=1M count=64
sync; } >/dev/null 2>&1
";
/// The limits of one run. Each step of an observed process takes tens of microseconds.
const PATIENCE: Patience = Patience::of_work(600);

/// What a guest does, by the guest's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    RandomRead = 0,
    Read = 1,
    Write = 2,
    Ping = 3,
    Send = 4,
    StreamOut = 5,
    StreamIn = 6,
}

impl Work {
    pub const fn is_disk(self) -> bool {
        matches!(self, Work::RandomRead | Work::Read | Work::Write)
    }

    pub const fn is_net(self) -> bool {
        matches!(self, Work::Ping | Work::Send)
    }

    /// What the probe is on the host, as the other side of a stream.
    const fn other_side(self) -> Option<&'static str> {
        match self {
            Work::StreamOut => Some("sink"),
            Work::StreamIn => Some("source"),
            _ => None,
        }
    }
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Measures: instructions and system calls per request, and time in the bed, where only disks are measured.
    pub ids: [&'static str; 3],
    pub work: Work,
    /// Requests at once.
    pub depth: u32,
    /// Bytes of a request.
    pub bytes: u32,
    /// Requests of a short and of a long run that is observed in single steps; what else the process does cancels out.
    pub stepped: [u32; 2],
    /// The same for other runs.
    pub counts: [u32; 2],
}

const RANDOM: [&str; 3] = [
    "disk-random-instructions",
    "disk-random-calls",
    "disk-random-time",
];

const PING: [&str; 3] = ["net-ping-instructions", "net-ping-calls", "net-ping-time"];

/// All loads.
#[rustfmt::skip]
pub const LOADS: [Load; 9] = [
    Load { ids: RANDOM, work: Work::RandomRead, depth: 1, bytes: 4096, stepped: [8, 40], counts: [100, 6100] },
    Load { ids: RANDOM, work: Work::RandomRead, depth: 32, bytes: 4096, stepped: [64, 256], counts: [640, 25_600] },
    Load {
        ids: ["disk-read-instructions", "disk-read-calls", "disk-read-time"],
        work: Work::Read, depth: 1, bytes: 1 << 20, stepped: [8, 40], counts: [64, 576],
    },
    Load {
        ids: ["disk-write-instructions", "disk-write-calls", "disk-write-time"],
        work: Work::Write, depth: 1, bytes: 1 << 20, stepped: [8, 40], counts: [64, 576],
    },
    Load { ids: PING, work: Work::Ping, depth: 1, bytes: 56, stepped: [100, 300], counts: [100, 2100] },
    Load { ids: PING, work: Work::Ping, depth: 32, bytes: 56, stepped: [128, 512], counts: [640, 25_600] },
    Load {
        ids: ["net-send-instructions", "net-send-calls", "net-send-time"],
        work: Work::Send, depth: 8, bytes: 43 * 1448, stepped: [16, 144], counts: [64, 640],
    },
    Load {
        ids: ["vsock-out-instructions", "vsock-out-calls", "vsock-out-time"],
        work: Work::StreamOut, depth: 1, bytes: 64 << 10, stepped: [32, 160], counts: [64, 640],
    },
    Load {
        ids: ["vsock-in-instructions", "vsock-in-calls", "vsock-in-time"],
        work: Work::StreamIn, depth: 1, bytes: 64 << 10, stepped: [32, 160], counts: [64, 640],
    },
];

impl Load {
    /// The position on the measure's axis, if it has one.
    pub fn x(&self) -> Option<u32> {
        matches!(self.work, Work::RandomRead | Work::Ping).then_some(self.depth)
    }

    /// The command line that runs this load with so many requests to the image `disk`. The guest's files are created in
    /// `directory`.
    pub fn words(
        &self,
        subject: &Subject,
        count: u32,
        directory: &Path,
        disk: &str,
    ) -> Result<Vec<String>> {
        let tag = format!("{}-{:?}-{}-{count}", subject.name, self.work, self.depth);
        let tag = tag.replace(' ', "_");
        let kernel = directory.join(format!("{tag}.elf"));
        write(&kernel, self.image(subject, count)?)?;
        let socket = directory.join(SOCKET).to_string_lossy().into_owned();
        let files = Files {
            kernel: &kernel.to_string_lossy(),
            cmdline: (subject.kind != Kind::MiniVmm).then_some("console=ttyS0"),
            disks: if self.work.is_disk() { &[disk] } else { &[] },
            tap: self.work.is_net().then_some(TAP),
            vsock: self.work.other_side().map(|_| socket.as_str()),
            ..Files::default()
        };
        let setup = Setup::of(super::guest::Work::Nothing);
        subject.boot(&files, &setup, &directory.join(format!("{tag}.json")))
    }

    fn image(&self, subject: &Subject, count: u32) -> Result<Vec<u8>> {
        let Some(ecam) = ecam(subject.kind) else {
            bail!("{} has no PCI that the guest knows", subject.name);
        };
        let (port, value) = subject.end().write();
        let parameters = [
            ecam,
            self.work as u32,
            count,
            self.depth,
            self.bytes,
            port.into(),
            value.into(),
            DELAY,
        ];
        let mut code = code()?;
        let at = parameters.len() * 4;
        let space = code.get_mut(PARAMETERS..PARAMETERS + at);
        let space = space.context("guest/bench is too short for its parameters")?;
        let bytes = parameters.iter().flat_map(|word| word.to_le_bytes());
        space
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, byte)| *to = byte);
        Ok(image::of(&code))
    }
}

/// Where a VMM has its PCI configuration space.
fn ecam(kind: Kind) -> Option<u32> {
    match kind {
        Kind::MiniVmm => Some(0xe000_0000),
        Kind::Firecracker => Some(0xeec0_0000),
        Kind::CloudHypervisor => Some(0xe800_0000),
        Kind::Floor | Kind::Kvmtool | Kind::Qemu => None,
    }
}

/// Whether a subject can run these loads.
pub fn can(subject: &Subject) -> bool {
    ecam(subject.kind).is_some()
}

/// The guest's code.
fn code() -> Result<Vec<u8>> {
    packages::require(NEEDS)?;
    let source = root().join("guest/bench");
    // Two may build it at the same time.
    let scratch = Scratch::new()?;
    let image = scratch.path("virtio.bin");
    let mut gcc = Command::new("gcc");
    gcc.args(FLAGS.split_whitespace());
    gcc.arg(format!("-Wl,-T,{}", source.join("virtio.ld").display()));
    gcc.arg("-o").arg(&image).arg(source.join("virtio.c"));
    capture_ok(&mut gcc).context("guest/bench does not build")?;
    read(&image)
}

/// The disk's file, without holes.
fn disk(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("disk");
    if !path.is_file() {
        write(&path, vec![0x5a; DISK as usize])?;
    }
    Ok(path)
}

impl Host<'_> {
    /// Instructions in user space and system calls per request to a disk.
    pub fn disk(&mut self) {
        self.loads(Work::is_disk);
    }

    /// The same per packet of a network.
    pub fn net(&mut self) {
        self.loads(Work::is_net);
    }

    /// The same per 64 KiB of a stream by vsock.
    pub fn vsock(&mut self) {
        self.loads(|work| work.other_side().is_some());
    }

    fn loads(&mut self, wanted: impl Fn(Work) -> bool) {
        for load in LOADS.into_iter().filter(|load| wanted(load.work)) {
            let what = format!("{:?}, {} at once", load.work, load.depth);
            self.turns(&what, 1..=1, load.x(), can, |host, subject| {
                let per_request = |what, counts| host.per_request(subject, &load, what, counts);
                let instructions = per_request("instructions", load.stepped)?;
                let calls = per_request("calls", load.counts)?;
                Ok(vec![(load.ids[0], instructions), (load.ids[1], calls)])
            });
        }
    }

    fn per_request(
        &self,
        subject: &Subject,
        load: &Load,
        what: &str,
        [few, many]: [u32; 2],
    ) -> Result<f64> {
        let [short, long] = [few, many].map(|count| self.observe(subject, load, what, count));
        Ok((long? - short?) / f64::from(many - few))
    }

    /// What the probe counts in a run.
    fn observe(&self, subject: &Subject, load: &Load, what: &str, count: u32) -> Result<f64> {
        let mut command = if let Some(side) = load.work.other_side() {
            let mut command = Command::new("sh");
            command.args(["-c", STREAM_SCRIPT]);
            command.arg(self.probe).arg(side);
            command.arg(self.directory.join(SOCKET));
            command
        } else if load.work.is_disk() {
            Command::new(self.probe)
        } else {
            let mut command = Command::new("unshare");
            let script = format!("set -e{TAP_SCRIPT}exec \"$0\" \"$@\"");
            command.args(["--map-root-user", "--net", "sh", "-c", &script]);
            command.arg(self.probe);
            command
        };
        command.arg(what);
        let disk = disk(&self.directory)?.to_string_lossy().into_owned();
        command.args(load.words(subject, count, &self.directory, &disk)?);
        let Watched { end, text } = capture_watched(&command, PATIENCE)?;
        let counted = text.lines().next().and_then(|line| line.parse().ok());
        match counted {
            Some(count) if end.is_ok_and(|status| status.success()) => Ok(count),
            _ => bail!("{}", last_lines(&text, 5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const CLOUD: Subject = Subject {
        name: String::new(),
        kind: Kind::CloudHypervisor,
        program: PathBuf::new(),
    };

    #[test]
    fn the_guest_gets_its_parameters() {
        let image = LOADS[1].image(&CLOUD, 77).unwrap();
        let at = image
            .windows(4)
            .position(|w| w == 0xe800_0000u32.to_le_bytes());
        let words = image[at.unwrap()..].chunks(4).take(8);
        let words: Vec<u32> = words
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0xe800_0000, 0, 77, 32, 4096, 0x600, 0x34, DELAY]);
    }

    #[test]
    fn the_guest_names_loads_and_disk_as_here() {
        let source = root().join("guest/bench/virtio.c");
        let source = String::from_utf8(read(&source).unwrap()).unwrap();
        assert!(source.contains(
            "enum work { READ_RANDOM, READ, WRITE, PING, SEND, STREAM_OUT, STREAM_IN };"
        ));
        assert!(source.contains(&format!("#define DISK {DISK:#x}u")));
    }

    #[test]
    fn a_load_names_its_disk() {
        let scratch = Scratch::new().unwrap();
        let words = LOADS[0].words(&CLOUD, 1, &scratch.path(""), "/d").unwrap();
        assert!(
            words.join(" ").contains("--disk path=/d,image_type=raw"),
            "{words:?}"
        );
    }
}
