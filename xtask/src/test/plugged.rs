// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots whose guests get disks and networks while they run, and give them up again.

use super::cases::{Case, Image, LINUX};
use crate::kernels::Series;

/// Reads each new disk, writes to it, and waits until it is gone, as often as `rounds` says. Then a network comes.
macro_rules! guest {
    ($rounds:literal) => {
        concat!(
            "echo FIRST $(cat /sys/block/vda/size); read go
for round in $(seq ",
            $rounds,
            "); do
    until [ -b /dev/vdb ]; do usleep 20000; done
    echo SUM $(sha256sum </dev/vdb); echo from the guest $round | dd of=/dev/vdb bs=512 seek=1 conv=sync,fsync 2>/dev/null
    echo HAS $round.
    while [ -e /sys/block/vdb ]; do usleep 20000; done
    echo GONE $round.
done
until [ -e /sys/class/net/eth0 ]; do usleep 20000; done
ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
ping -c 2 -W 60 10.0.0.1 && echo NET ANSWERS; read go
while [ -e /sys/class/net/eth0 ]; do usleep 20000; done; echo NET GONE
dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null && echo FIRST STAYS"
        )
    };
}

/// Adds and removes them. A guest may be slower than the time that a removal has.
macro_rules! drive {
    ($rounds:literal) => {
        concat!(
            "ctl() { mini-vmm ctl /tmp/api \"$@\"; }
until grep -q '^FIRST' /tmp/out || ! kill -0 $vmm; do usleep 50000; done; say go
for round in $(seq ",
            $rounds,
            "); do
    head -c 1048576 </dev/urandom >/tmp/new; sum=$(sha256sum </tmp/new | cut -c 1-64)
    ctl add new --disk path=/tmp/new
    until grep -q \"^HAS $round\\.\" /tmp/out || ! kill -0 $vmm; do usleep 50000; done
    grep -q \"^SUM $sum\" /tmp/out && echo SAME $round
    until grep -q \"^GONE $round\\.\" /tmp/out && ! ctl config | grep -q /tmp/new || ! kill -0 $vmm; do
        ctl remove new; usleep 200000
    done
    [ \"$(dd if=/tmp/new bs=512 skip=1 count=1 2>/dev/null | head -n 1)\" = \"from the guest $round\" ] && echo KEPT $round
    ls -l /proc/$vmm/fd | grep -q /tmp/new || echo CLOSED $round
done
bench-probe api /tmp/api PUT /network-interfaces/net '{\"host_dev_name\": \"tap0\"}'
until grep -q '^NET ANSWERS' /tmp/out || ! kill -0 $vmm; do usleep 50000; done; say go
until grep -q '^NET GONE' /tmp/out || ! kill -0 $vmm; do ctl remove net; usleep 200000; done"
        )
    };
}

const PLUGGED: Case = Case {
    virtio: true,
    arguments: "--hotplug 4 --disk path=/tmp/first --api-sock /tmp/api",
    before: "truncate -s 8M /tmp/first
tunctl -t tap0 >/dev/null; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up",
    guest: guest!("3"),
    drive: drive!("3"),
    after: "tunctl -d tap0 >/dev/null; rm /tmp/first /tmp/new",
    expect: &[
        "FIRST 16384",
        "SAME 1",
        "KEPT 1",
        "SAME 3",
        "KEPT 3",
        "CLOSED 3",
        "NET ANSWERS",
        "NET GONE",
        "FIRST STAYS",
    ],
    ..LINUX
};

pub const CASES: &[Case] = &[
    Case {
        name: "6.12-devices-come-and-go",
        image: Image::Debian(Series::V6_12),
        ..PLUGGED
    },
    Case {
        name: "6.1-devices-come-and-go",
        image: Image::Debian(Series::V6_1),
        ..PLUGGED
    },
    Case {
        name: "devices-come-and-go-20-times",
        guest: guest!("20"),
        drive: drive!("20"),
        expect: &[
            "SAME 20",
            "KEPT 20",
            "NET ANSWERS",
            "NET GONE",
            "FIRST STAYS",
        ],
        long: true,
        ..PLUGGED
    },
];
