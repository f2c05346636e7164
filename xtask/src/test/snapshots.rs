// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux under load, through chains of snapshots. Each is restored in a new process.
//!
//! The guest writes and reads a disk, sends and takes numbers by TCP, sleeps in many ways, and makes hypercalls. It says
//! what it has done, and BAD if something was lost. No step ends before all of that has gone on.

use super::cases::{Case, Image, LINUX};
use crate::debian;
use crate::kernels::Series;

/// A disk, and a tap that outlives its processes. One connection each way sends numbers in their order.
macro_rules! host {
    () => {
        "load='DISK TIMER SLEEP CALL TCP BACK' given='--disk path=/tmp/disk --net tap=tap0' snap=/tmp/snap
truncate -s 8M /tmp/disk
tunctl -t tap0 >/dev/null; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up
mkfifo /tmp/hold; exec 4<>/tmp/hold; : >/tmp/back
seq 1 99999999 | nc -l -p 5000 >/dev/null & sender=$!
nc -l -p 5001 <&4 | awk '$1 != NR { print \"BAD BACK\", NR, $1; exit } NR % 1000 == 0 { print \"BACK\", NR; fflush() }' >/tmp/back & taker=$!"
    };
}

/// The load, and what makes another one. It ends when a line comes from the console. A clock that goes back is BAD, and
/// so is a message about time.
macro_rules! load {
    ($other:literal) => {
        concat!(
            "mount -t tmpfs tmp /tmp; mkfifo /tmp/hold; exec 4<>/tmp/hold; insmod /para/para.ko; dmesg >/tmp/boot
sum() { dd if=/dev/vda bs=64k skip=$1 count=1 2>/dev/null | sha256sum; }
i=0; while i=$((i + 1)) && [ ! -e /tmp/ended ]; do
    at=$((i % 4)); echo 3 >/proc/sys/vm/drop_caches
    [ $i -le 4 ] || [ \"$(sum $at)\" = \"$(cat /tmp/sum-$at)\" ] || echo BAD DISK $i
    head -c 65536 /dev/urandom >/tmp/data; sha256sum </tmp/data >/tmp/sum-$at
    dd if=/tmp/data of=/dev/vda bs=64k seek=$at conv=fsync 2>/dev/null || echo BAD WRITE $i
    echo DISK $i
done & disk=$!
i=0 last=0; while i=$((i + 1)); do
    usleep 50000; read up idle </proc/uptime; now=${up%.*}${up#*.}
    [ $now -ge $last ] || echo BAD CLOCK $last $now
    last=$now; [ $((i % 4)) != 0 ] || echo TIMER $i $now
done &
bench-probe timers &
i=0; while i=$((i + 1)); do
    for what in nop ping; do
        read answer </sys/kernel/para/$what; [ \"$answer\" = 0 ] || echo BAD CALL $i $what \"$answer\"
    done
    [ $((i % 64)) != 0 ] || { echo CALL $i; usleep 100000; }
done &
",
            $other,
            "read end; : >/tmp/ended; wait $disk
dmesg | tail -n +$(($(wc -l </tmp/boot) + 1)) | grep -v drop_caches >/tmp/later; sed 's/^/LATER /' /tmp/later
grep -iE 'unstable|backward|skew|lockup|stall|blocked for|hung|BUG|WARN|Call Trace|error' /tmp/later | sed 's/^/BAD LOG /'
echo LOG $(wc -l </tmp/later)"
        )
    };
}

const LOAD: &str = load!(
    "ip link set lo up; ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
nc 10.0.0.1 5000 <&4 | awk '$1 != NR { print \"BAD TCP\", NR, $1; exit } NR % 1000 == 0 { print \"TCP\", NR; fflush() }' &
seq 1 99999999 | nc 10.0.0.1 5001 &
"
);

/// Waits until each part of `$load` has gone on; runs the next process, to which `$given` is given.
macro_rules! steps {
    () => {
        "count() { cat /tmp/out /tmp/back 2>/dev/null | grep -c \"^$1 \"; }
goes_on() {
    set -- $(for what in $load; do count $what; done)
    for what in $load; do
        until [ $(count $what) -gt $1 ]; do
            kill -0 $vmm && ! grep -qs BAD /tmp/out /tmp/back || return 1
            usleep 100000
        done
        shift
    done
}
go_on() {
    exec mini-vmm --restore $snap --resume $given --api-sock /tmp/api --serial stdio
}
save() { mini-vmm ctl /tmp/api snapshot $snap && mini-vmm ctl /tmp/api stop; }
"
    };
}

/// Where the disk `$kept` is, and what goes on.
macro_rules! keep {
    () => {
        "mkdir /kept; mount $kept /kept
load='DISK TIMER SLEEP CALL' given='--disk path=/kept/disk' snap=/kept/snap\n"
    };
}

/// A chain of `$steps`. Each begins when the whole load has gone on.
const CHAIN: &str = concat!(
    steps!(),
    "ready 1; made=0
while [ $made -lt ${steps:-5} ] && goes_on; do
    save || break
    wait $vmm; go_on </tmp/in >>/tmp/out 2>>/tmp/err & vmm=$!
    made=$((made + 1))
done
goes_on && [ $made = ${steps:-5} ] && echo ALL STEPS; say end"
);

const AFTER: &str = "kill $sender $taker; grep BAD /tmp/out /tmp/back || echo NOTHING LOST
tunctl -d tap0 >/dev/null; rm -r /tmp/disk /tmp/snap /tmp/back /tmp/hold";

macro_rules! devices {
    () => {
        "--disk path=/tmp/disk --net tap=tap0 --rng on --api-sock /tmp/api"
    };
}

const LOADED: Case = Case {
    virtio: true,
    para: true,
    arguments: concat!(devices!(), " --hypercall pio"),
    before: host!(),
    guest: LOAD,
    drive: CHAIN,
    after: AFTER,
    expect: &["ALL STEPS", "LOG ", "NOTHING LOST"],
    ..LINUX
};

/// The first part of a chain from bed to bed, without a network. The disk and the snapshot are on the disk `$kept`.
pub const MOVED: Case = Case {
    name: "6.1-snapshots-moved",
    image: KERNEL_6_1,
    virtio: true,
    para: true,
    arguments: "--disk path=/kept/disk --rng on --api-sock /tmp/api --hypercall pio",
    before: concat!(
        "mke2fs -F $kept >/dev/null; ",
        keep!(),
        "truncate -s 8M /kept/disk"
    ),
    guest: load!(""),
    drive: concat!(steps!(), "ready 1; goes_on && save || kill $vmm"),
    after: "umount /kept; ! grep BAD /tmp/out || code=99",
    ..LINUX
};

/// The start of its next parts, in other beds.
pub const MOVED_ON: &str = concat!(keep!(), steps!());

/// The same with ten times as many steps.
const LONG: Case = Case {
    before: concat!("steps=50; ", host!()),
    long: true,
    ..LOADED
};

/// All of Debian. fio writes and verifies a disk, and a file goes through the root file system.
const DEBIAN: Case = Case {
    name: "debian-snapshots",
    image: Image::DebianWithFio,
    cmdline: Some(debian::CMDLINE),
    arguments: "--disk path=$disk,overlay=/tmp --disk path=/tmp/disk --api-sock /tmp/api",
    before: "steps=3 load='FIO FILE' snap=/tmp/snap; truncate -s 16M /tmp/disk
given=\"--disk path=$disk,overlay=/tmp --disk path=/tmp/disk\"
given=\"$given --disk path=/guest/job-debian-snapshots,readonly,serial=xtask-job\"",
    guest: "systemctl is-system-running --wait >/dev/null; dmesg >/run/boot
i=0; while i=$((i + 1)) && [ ! -e /run/ended ]; do
    fio --name=load --filename=/dev/vdb --direct=1 --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --randrepeat=0 \
        --verify=crc32c --verify_fatal=1 --output=/run/fio && echo FIO $i || { echo BAD FIO $i; cat /run/fio; }
done &
i=0; while i=$((i + 1)) && [ ! -e /run/ended ]; do
    head -c 262144 /dev/urandom >/root/file; sum=$(sha256sum </root/file)
    sync /root/file; echo 3 >/proc/sys/vm/drop_caches
    [ \"$sum\" = \"$(sha256sum </root/file)\" ] && echo FILE $i || echo BAD FILE $i
done &
read end; : >/run/ended; wait
echo FAILED $(systemctl list-units --state=failed --no-legend | wc -l)
dmesg | tail -n +$(($(wc -l </run/boot) + 1)) | grep -v drop_caches >/run/later; sed 's/^/LATER /' /run/later
grep -iE 'unstable|backward|skew|lockup|stall|blocked for|hung|BUG|WARN|Call Trace|error' /run/later | sed 's/^/BAD LOG /'
echo LOG $(wc -l </run/later)
systemctl poweroff",
    drive: CHAIN,
    after: "grep BAD /tmp/out || echo NOTHING LOST; rm -r /tmp/disk /tmp/snap",
    expect: &["ALL STEPS", "LOG ", "NOTHING LOST", "FAILED 0"],
    long: true,
    ..LINUX
};

const KERNEL_6_1: Image = Image::Debian(Series::V6_1);
const KERNEL_6_12: Image = Image::Debian(Series::V6_12);

/// The case for a bed whose KVM forwards hypercalls.
pub const FORWARDED: Case = Case {
    name: "6.12-snapshots-1cpu-forward",
    image: KERNEL_6_12,
    arguments: concat!(devices!(), " --hypercall forward"),
    ..LOADED
};

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "6.1-snapshots-2cpu", image: KERNEL_6_1, cpus: 2, ..LOADED },
    Case { name: "6.1-snapshots-1cpu-50", image: KERNEL_6_1, ..LONG },
    Case { name: "6.1-snapshots-2cpu-50", image: KERNEL_6_1, cpus: 2, ..LONG },
    Case { name: "6.12-snapshots-1cpu-50", image: KERNEL_6_12, ..LONG },
    Case { name: "6.12-snapshots-2cpu-50", image: KERNEL_6_12, cpus: 2, ..LONG },
    DEBIAN,
];
