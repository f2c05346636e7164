// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The Linux boots of the test beds: kernels, options and expected results. Each case is one run of mini-vmm.

use crate::bed::{Bed, Vendor};
use crate::kernels::Series;

use super::clients::{self, Client};
use super::{
    balloons, consoles, copies, disks, networks, para, plugged, shares, small, snapshots, sockets,
    words,
};

/// What is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Debian's bzImage of the preferred series.
    AnyDebian,
    /// Debian's bzImage of a series.
    Debian(Series),
    /// The ELF file in that bzImage.
    Vmlinux(Series),
    /// Debian 12 on the bed's disk `$disk`, with its own kernel and initrd. The guest's commands run after the login.
    AllOfDebian,
    /// The same with fio. The shell of its login goes on after the commands, so they end with a power-off.
    DebianWithFio,
    /// Debian 12 as a cloud image, likewise. Nobody may log in, so the guest has no commands.
    CloudDebian,
    /// The small kernel, which has all its drivers built in.
    Small,
    /// The example in `guest/bare`.
    Bare,
    /// A text file.
    NoKernel,
}

/// One run of mini-vmm.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The case's name.
    pub name: &'static str,
    /// What is booted.
    pub image: Image,
    /// vCPUs.
    pub cpus: u32,
    /// How many of them the kernel uses, if not all.
    pub online: Option<u32>,
    /// Further arguments of mini-vmm.
    pub arguments: &'static str,
    /// Further words for the kernel's command line; none to use mini-vmm's default.
    pub cmdline: Option<&'static str>,
    /// Whether it has a network of its own in the bed, and passt.
    pub isolated: bool,
    /// The guest's commands after READY; then it powers off.
    pub guest: &'static str,
    /// What the bed does before mini-vmm starts.
    pub before: &'static str,
    /// What the bed does after mini-vmm has ended; its output is in /tmp/out.
    pub after: &'static str,
    /// What the bed does meanwhile: `ready N` waits for the guest's N-th READY, `say TEXT` types a
    /// line, `$vmm` is mini-vmm's process.
    pub drive: &'static str,
    /// mini-vmm's exit code.
    pub exit: u8,
    /// Texts that the console's or mini-vmm's output must contain, in addition to the guest's release and CPUs.
    pub expect: &'static [&'static str],
    /// Like `expect`, for cases that share their `expect`.
    pub also_expect: &'static [&'static str],
    /// Whether the guest has the driver of `guest/linux`, in /para.
    pub para: bool,
    /// Whether the guest loads the drivers of virtio devices.
    pub virtio: bool,
    /// Whether mini-vmm runs in Firecracker's place: further fields of its config file.
    pub firecracker: Option<&'static str>,
    /// The client that drives mini-vmm, if one does.
    pub client: Option<Client>,
    /// The kind of console through which the guest gets bytes that it sends back; empty for no echo.
    pub echo: &'static str,
    /// Whether its bed's clocks count instructions, so that times in it are the same however busy the host is.
    pub counted: bool,
    /// Whether it runs only with `--long`.
    pub long: bool,
}

impl Case {
    /// How many bytes the guest sends back, if it does.
    pub fn echo_bytes(&self) -> Option<usize> {
        let bytes = if self.long { 1 << 20 } else { 64 << 10 };
        (!self.echo.is_empty()).then_some(bytes)
    }
}

/// The defaults of a case.
pub const LINUX: Case = Case {
    name: "",
    image: Image::AnyDebian,
    cpus: 1,
    online: None,
    arguments: "",
    cmdline: Some(""),
    isolated: false,
    guest: "",
    before: "",
    after: "",
    drive: "",
    exit: 0,
    expect: &[],
    also_expect: &[],
    para: false,
    virtio: false,
    firecracker: None,
    client: None,
    echo: "",
    counted: false,
    long: false,
};

/// A case with virtio devices: random numbers, and two disks.
const VIRTIO: Case = Case {
    virtio: true,
    arguments: "--rng on --disk path=/tmp/raw,serial=first --disk path=/tmp/base,overlay=/tmp",
    before: DISKS,
    guest: USE_ALL,
    after: CHECK_DISKS,
    expect: ALL_USED,
    ..LINUX
};

const VIRTIO_MMIO: Case = Case {
    arguments: "--virtio mmio --rng on --disk path=/tmp/raw,serial=first --disk path=/tmp/base,overlay=/tmp",
    ..VIRTIO
};

const BZIMAGE_6_1: Image = Image::Debian(Series::V6_1);
const BZIMAGE_6_12: Image = Image::Debian(Series::V6_12);
const VMLINUX_6_1: Image = Image::Vmlinux(Series::V6_1);
const VMLINUX_6_12: Image = Image::Vmlinux(Series::V6_12);

/// The cases of the AMD bed.
#[rustfmt::skip]
const AMD: &[Case] = &[
    // Kernels, images, CPUs; each ends by ACPI power-off.
    Case { name: "6.1-bzimage-1cpu", image: BZIMAGE_6_1, ..LINUX },
    Case { name: "6.1-bzimage-2cpu", image: BZIMAGE_6_1, cpus: 2, ..LINUX },
    Case { name: "6.1-vmlinux-1cpu", image: VMLINUX_6_1, ..LINUX },
    Case { name: "6.1-vmlinux-2cpu", image: VMLINUX_6_1, cpus: 2, ..LINUX },
    Case { name: "6.12-bzimage-1cpu", image: BZIMAGE_6_12, ..LINUX },
    Case { name: "6.12-bzimage-2cpu", image: BZIMAGE_6_12, cpus: 2, ..LINUX },
    Case { name: "6.12-vmlinux-2cpu", image: VMLINUX_6_12, cpus: 2, ..LINUX },
    Case { name: "6.1-pvh", image: VMLINUX_6_1, cpus: 2, arguments: "--boot-protocol pvh", ..LINUX },
    // The opposite of the default.
    Case { name: "6.1-host-decompresses", image: BZIMAGE_6_1, arguments: "--decompress host", ..LINUX },
    Case { name: "6.12-guest-decompresses", image: BZIMAGE_6_12, arguments: "--decompress guest", ..LINUX },
    Case { name: "default-command-line", cmdline: None,
        guest: "dmesg | grep -q 'alg: self-tests disabled' && echo UNTESTED", expect: &["UNTESTED"], ..LINUX },
    Case { name: "legacy-timer", arguments: "--legacy-timer", ..LINUX },
    Case { name: "real-time-clock", arguments: "--rtc on", guest: RTC_ALARM, expect: &["ALARM 1"], ..LINUX },
    Case { name: "6.1-virtio-pci", image: BZIMAGE_6_1, ..VIRTIO },
    Case { name: "6.12-virtio-pci", image: BZIMAGE_6_12, ..VIRTIO },
    Case { name: "6.1-virtio-mmio", image: BZIMAGE_6_1, ..VIRTIO_MMIO },
    Case { name: "6.12-virtio-mmio", image: BZIMAGE_6_12, ..VIRTIO_MMIO },
    Case { name: "hidden-feature", arguments: "--cpu-features -avx2",
        guest: "grep -qw avx2 /proc/cpuinfo || echo AVX2-IS-HIDDEN", expect: &["AVX2-IS-HIDDEN"], ..LINUX },
    Case { name: "unknown-msrs-denied", cpus: 2, arguments: "--msr-policy deny-unknown", ..LINUX },
    // The exit contract.
    Case { name: "reboot-exits-32", guest: "reboot -f", exit: 32, ..LINUX },
    Case { name: "reboot-resets", cpus: 2, arguments: "--on-reboot reset",
        guest: "read what; [ $what = poweroff ] || reboot -f",
        drive: "ready 1; say reboot; ready 2; say poweroff", ..LINUX },
    Case { name: "panic-exits-34", guest: "echo c >/proc/sysrq-trigger", exit: 34,
        expect: &["sysrq triggered crash"], ..LINUX },
    Case { name: "panic-continues", arguments: "--on-panic continue", cmdline: Some("panic=1"),
        guest: "echo c >/proc/sysrq-trigger", exit: 32, ..LINUX },
    Case { name: "triple-fault-exits-33", cmdline: Some("reboot=t"), guest: "reboot -f", exit: 33,
        expect: &["RIP"], ..LINUX },
    Case { name: "debug-exit-3-exits-7", arguments: "--debug-exit", guest: "/bin/debug-exit",
        exit: 7, ..LINUX },
    Case { name: "timeout-exits-36", arguments: "--timeout 15", guest: "sleep 1000", exit: TIMEOUT, ..LINUX },
    Case { name: "sigterm-powers-off", guest: POWER_BUTTON, drive: "ready 2; kill -TERM $vmm",
        expect: &["BUTTON"], ..LINUX },
    // Bulk input and output at the same time, for each kind of console and each kernel.
    Case { name: "serial-pipe", image: BZIMAGE_6_1, echo: "pipe", ..LINUX },
    Case { name: "serial-pty", image: BZIMAGE_6_12, echo: "pty", ..LINUX },
    Case { name: "serial-socket", image: BZIMAGE_6_1, echo: "socket", ..LINUX },
    Case { name: "serial-terminal", image: BZIMAGE_6_12, echo: "terminal", ..LINUX },
    Case { name: "serial-6.1-pipe-long", image: BZIMAGE_6_1, echo: "pipe", long: true, ..LINUX },
    Case { name: "serial-6.1-pty-long", image: BZIMAGE_6_1, echo: "pty", long: true, ..LINUX },
    Case { name: "serial-6.1-socket-long", image: BZIMAGE_6_1, echo: "socket", long: true, ..LINUX },
    Case { name: "serial-6.1-terminal-long", image: BZIMAGE_6_1, echo: "terminal", long: true, ..LINUX },
    Case { name: "serial-6.12-pipe-long", image: BZIMAGE_6_12, echo: "pipe", long: true, ..LINUX },
    Case { name: "serial-6.12-pty-long", image: BZIMAGE_6_12, echo: "pty", long: true, ..LINUX },
    Case { name: "serial-6.12-socket-long", image: BZIMAGE_6_12, echo: "socket", long: true, ..LINUX },
    Case { name: "serial-6.12-terminal-long", image: BZIMAGE_6_12, echo: "terminal", long: true, ..LINUX },
    // Start-up and usage errors.
    Case { name: "no-kernel-exits-1", image: Image::NoKernel, exit: 1, expect: &["kernel"], ..LINUX },
    Case { name: "unknown-flag-exits-2", image: Image::NoKernel, arguments: "--no-such-flag",
        exit: 2, expect: &["--no-such-flag"], ..LINUX },
];

/// The cases of the Intel bed.
#[rustfmt::skip]
const INTEL: &[Case] = &[
    Case { name: "bzimage-1cpu", cmdline: Some("cryptomgr.notests=1"), ..LINUX },
];

/// Sets the alarm of the real-time clock and waits for its interrupt. On a slow machine, the alarm's time may be over
/// before Linux sets it, and then there is no interrupt. So each retry sets the alarm further ahead.
const RTC_ALARM: &str = "cd /sys/class/rtc/rtc0
    interrupts() { awk '/rtc/ { print $2 }' /proc/interrupts; }
    ahead=2
    until [ \"$(interrupts)\" != 0 ]; do
        if [ -z \"$(cat wakealarm)\" ]; then
            echo $(($(cat since_epoch) + ahead)) >wakealarm
            ahead=$((ahead * 2))
        fi
        usleep 100000
    done
    echo ALARM $(interrupts)";

/// A new image, and one that is only read.
const DISKS: &str = "truncate -s 16M /tmp/raw
    dd if=/dev/urandom of=/tmp/base bs=1M count=8 2>/dev/null
    sum() { sha256sum <$1 | cut -c -64; }
    base=$(sum /tmp/base)";
/// Takes random numbers from the virtio device, and says whose they are. Writes and reads both disks, and discards a part
/// of the first one.
const USE_ALL: &str =
    "echo RNG $(cat /sys/class/misc/hw_random/rng_current) $(head -c 64 /dev/hwrng | wc -c)
    echo SERIAL $(cat /sys/block/vda/serial)
    echo SIZES $(cat /sys/block/vda/size /sys/block/vdb/size)
    echo SUM $(sha256sum </dev/vdb)
    head -c 2097152 /dev/urandom >/data
    for disk in /dev/vda /dev/vdb; do
        dd if=/data of=$disk bs=64k seek=3 conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        dd if=$disk bs=64k skip=3 count=32 2>/dev/null | cmp - /data && echo SAME $disk
    done
    blkdiscard -o 196608 -l 1048576 /dev/vda && echo DISCARDED
    echo SUM $(sha256sum </dev/vda)";
/// The guest has seen what is in the images.
const CHECK_DISKS: &str = "grep -q \"SUM $base\" /tmp/out && echo BASE READ
    [ $base = $(sum /tmp/base) ] && echo BASE KEPT
    grep -q \"SUM $(sum /tmp/raw)\" /tmp/out && echo RAW WRITTEN
    [ $(du -k /tmp/raw | cut -f1) -lt 2048 ] && echo BLOCKS FREED
    rm /tmp/raw /tmp/base";
const ALL_USED: &[&str] = &[
    "RNG virtio_rng.0 64",
    "SERIAL first",
    "SIZES 32768 16384",
    "SAME /dev/vda",
    "SAME /dev/vdb",
    "DISCARDED",
    "BASE READ",
    "BASE KEPT",
    "RAW WRITTEN",
    "BLOCKS FREED",
];

/// Waits for the power button's key event, as logind would. A press before the device is open is no event for it.
pub const POWER_BUTTON: &str = "exec 5</dev/input/event0; echo READY; dd bs=24 count=1 of=/dev/null <&5 2>/dev/null && echo BUTTON";

/// mini-vmm's exit code after its `--timeout`.
pub const TIMEOUT: u8 = 36;

/// The cases for `bed`, and those that its KVM can't run.
pub fn of(bed: &Bed) -> (Vec<&'static Case>, &'static [Case]) {
    let (more, impossible) = para::cases(bed);
    let usual: &[&[Case]] = match bed.vendor {
        Vendor::Amd => &[
            AMD,
            disks::CASES,
            words::CASES,
            small::CASES,
            clients::CASES,
            networks::CASES,
            snapshots::CASES,
            copies::CASES,
            shares::CASES,
            sockets::CASES,
            plugged::CASES,
            consoles::CASES,
            balloons::CASES,
        ],
        Vendor::Intel => &[INTEL],
    };
    let usual = usual.iter().copied().flatten();
    (usual.chain(more).collect(), impossible)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// All beds with different cases.
    pub fn all_beds() -> [Bed; 3] {
        let mut newer = Bed::new(Vendor::Amd);
        newer.series = Some(Series::V6_12);
        [Bed::new(Vendor::Amd), newer, Bed::new(Vendor::Intel)]
    }

    #[test]
    fn names_are_unique() {
        for bed in all_beds() {
            let mut names: Vec<_> = of(&bed).0.iter().map(|case| case.name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
