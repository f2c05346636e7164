// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The boots whose subject is what becomes of disks: all of Debian, a killed VMM, many disks, a full host, a seed.
//! Debian also has a network.

use super::cases::{Case, Image, LINUX};
use crate::debian;

const DISK: Case = Case {
    virtio: true,
    ..LINUX
};

/// All of Debian, with what it writes in memory.
const DEBIAN: Case = Case {
    image: Image::AllOfDebian,
    cmdline: Some(debian::CMDLINE),
    ..LINUX
};

/// A tap with the bed at its other end, which gives out one address.
macro_rules! dhcp_server {
    () => {
        "tunctl -t tap0 >/dev/null; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up
    cat >/tmp/udhcpd.conf <<'END'
interface tap0
start 10.0.0.7
end 10.0.0.7
max_leases 1
lease_file /tmp/leases
pidfile /tmp/udhcpd.pid
opt subnet 255.255.255.0
opt router 10.0.0.1
opt dns 10.0.0.1
END
    : >/tmp/leases; udhcpd -f /tmp/udhcpd.conf & server=$!"
    };
}

pub const CASES: &[Case] = &[
    Case {
        name: "debian-powers-off",
        arguments: "--disk path=$disk,overlay=/tmp",
        guest: CHECK,
        expect: CHECKED,
        ..DEBIAN
    },
    Case {
        name: "debian-obeys-the-power-button",
        cpus: 2,
        arguments: "--disk path=$disk,overlay=/tmp --net tap=tap0 --api-sock /tmp/api",
        before: dhcp_server!(),
        guest: HAS_NETWORK,
        drive: "until grep -q '^WAITS' /tmp/out || ! kill -0 $vmm; do usleep 50000; done
            bench-probe api /tmp/api PUT /actions '{\"action_type\": \"SendCtrlAltDel\"}' && echo PRESSED",
        after: "kill $server; tunctl -d tap0 >/dev/null",
        expect: &["ADDRESS 10.0.0.7", "DNS 10.0.0.1", "PING ANSWERED", "PRESSED"],
        ..DEBIAN
    },
    Case {
        name: "disk-outlives-kill-9",
        arguments: "--disk path=/tmp/disk",
        before: "truncate -s 64M /tmp/disk",
        guest: FILL_OR_CHECK,
        drive: "while kill -0 $vmm && [ \"$(grep -c '^KEPT .* \\.' /tmp/out)\" -lt 8 ]; do usleep 50000; done
            kill -9 $vmm",
        after: BOOT_AGAIN,
        exit: 137,
        expect: &["SECOND 0", "ALL KEPT"],
        ..DISK
    },
    Case {
        name: "disks-32-on-3-threads",
        arguments: "$disks",
        before: "for i in $(seq 32); do
                truncate -s ${i}M /tmp/disk$i
                disks=\"$disks --disk path=/tmp/disk$i,iothread=t$((i % 3))\"
            done",
        guest: "for disk in /sys/block/vd*; do
                dev=/dev/${disk##*/}
                echo \"disk $(($(cat $disk/size) / 2048))\" | dd of=$dev bs=512 conv=sync,fsync 2>/dev/null
            done
            echo DISKS $(ls -d /sys/block/vd* | wc -l)
            echo WRITTEN; read go",
        drive: "until grep -q '^WRITTEN' /tmp/out || ! kill -0 $vmm; do usleep 50000; done
            cat /proc/$vmm/task/*/comm >/tmp/threads; say go",
        after: "good=0
            for i in $(seq 32); do [ \"$(head -n 1 /tmp/disk$i)\" = \"disk $i\" ] && good=$((good + 1)); done
            echo GOOD $good; echo THREADS $(sort /tmp/threads | grep '^io')
            rm /tmp/disk*",
        expect: &["DISKS 32", "GOOD 32", "THREADS io-t0 io-t1 io-t2"],
        ..DISK
    },
    Case {
        name: "disk-on-a-full-host",
        arguments: "--disk path=/full/disk --disk path=/full/other,direct",
        before: FULL_HOST,
        guest: "fill() { dd if=/dev/urandom of=$1 bs=64k count=160 conv=fsync 2>/dev/null; }
            for disk in /dev/vda /dev/vdb; do
                fill $disk && echo NOT FULL
                echo WAITS $disk; read go
                fill $disk && echo GOES ON $disk
                sum=$(sha256sum <$disk); echo 3 >/proc/sys/vm/drop_caches
                [ \"$sum\" = \"$(sha256sum <$disk)\" ] && echo SAME $disk
            done",
        drive: "for disk in vda vdb; do
                until grep -q \"^WAITS /dev/$disk\" /tmp/out || ! kill -0 $vmm; do usleep 50000; done
                rm /full/ballast-$disk; say go
            done",
        after: "grep -q 'NOT FULL' /tmp/out || echo BOTH WERE FULL; umount /full; rm /tmp/fs",
        expect: &[
            "BOTH WERE FULL",
            "GOES ON /dev/vda",
            "GOES ON /dev/vdb",
            "SAME /dev/vda",
            "SAME /dev/vdb",
            "No space left on device",
        ],
        ..DISK
    },
    Case {
        name: "disk-grows",
        arguments: "--disk path=/tmp/disk --api-sock /tmp/api",
        before: "truncate -s 8M /tmp/disk",
        guest: "size() { cat /sys/block/vda/size; }
            echo FROM $(size); echo WAITS
            until [ $(size) = 32768 ]; do usleep 50000; done
            echo TO $(size); dd if=/dev/zero of=/dev/vda bs=1M seek=15 count=1 conv=fsync && echo WRITTEN",
        drive: "until grep -q '^WAITS' /tmp/out || ! kill -0 $vmm; do usleep 50000; done
            truncate -s 16M /tmp/disk
            bench-probe api /tmp/api PATCH /drives/disk0 \
                '{\"drive_id\": \"disk0\", \"path_on_host\": \"/tmp/disk\"}'",
        after: "rm /tmp/disk",
        expect: &["FROM 16384", "TO 32768", "WRITTEN"],
        ..DISK
    },
    Case {
        name: "cloud-init-is-mounted",
        arguments: "--cloud-init /tmp/seed",
        before: "mkdir /tmp/seed; cd /tmp/seed; echo '#cloud-config' >user-data
            head -c 100000 /dev/urandom >vendor-data; sha256sum user-data vendor-data; cd /",
        guest: "mkdir /mnt; mount -t iso9660 -o ro /dev/vda /mnt && cd /mnt
            echo FILES $(ls); cat meta-data; echo LABEL $(dd if=/dev/vda bs=1 skip=32808 count=6 2>/dev/null)
            echo SUMS; sha256sum user-data vendor-data
            cd /; umount /mnt; dd if=/dev/zero of=/dev/vda count=1 2>/dev/null || echo READ ONLY",
        after: "cd /tmp/seed; for sum in $(sha256sum user-data vendor-data | cut -d' ' -f1); do
                grep -q $sum /tmp/out && echo SAME FILE
            done | uniq -c; cd /; rm -r /tmp/seed",
        expect: &[
            "FILES meta-data user-data vendor-data",
            "instance-id: iid-local01",
            "LABEL CIDATA",
            "2 SAME FILE",
            "READ ONLY",
        ],
        ..DISK
    },
    Case {
        name: "cloud-init-lets-its-user-in",
        image: Image::CloudDebian,
        arguments: "--disk path=$disk,overlay=/tmp --net tap=tap0 --cloud-init /tmp/seed",
        before: concat!(
            "mkdir /tmp/seed; cat >/tmp/seed/user-data <<'END'
#cloud-config
hostname: guest
password: let-me-in
chpasswd: {expire: false}
END
",
            dhcp_server!()
        ),
        drive: LOG_IN,
        after: "kill $server; tunctl -d tap0 >/dev/null; rm -r /tmp/seed",
        expect: &["USER-debian ON-guest", "PASSWORDS-1"],
        long: true,
        ..DEBIAN
    },
    Case {
        name: "disk-rates",
        arguments: "--disk path=/tmp/a,iops=200 --disk path=/tmp/b,bandwidth=4M",
        before: "truncate -s 64M /tmp/a; truncate -s 64M /tmp/b",
        guest: RATES,
        after: "rm /tmp/a /tmp/b",
        expect: &["REQUESTS GOOD", "BYTES GOOD"],
        counted: true,
        long: true,
        ..DISK
    },
];

/// Runs after the login. systemd says what failed.
const CHECK: &str = "systemctl is-system-running --wait >/dev/null
    echo FAILED $(systemctl list-units --state=failed --no-legend | wc -l)
    findmnt --noheadings --output SOURCE,FSTYPE / | sed 's/^/ROOT /'
    head -c 8388608 /dev/urandom >/root/file; before=$(sha256sum </root/file)
    sync /root/file; echo 3 >/proc/sys/vm/drop_caches
    [ \"$before\" = \"$(sha256sum </root/file)\" ] && echo SUM GOOD
    echo ON $(who | awk '$1 == \"root\" { print $2 }')";
const CHECKED: &[&str] = &["ROOT /dev/vda ext4", "FAILED 0", "SUM GOOD", "ON ttyS0"];

/// Types what a user would, when cloud-init has ended. The terminal echoes it, so it is not what the case expects. Only
/// the seed's user has a password.
const LOG_IN: &str =
    "shows() { until grep -q \"$1\" /tmp/out || ! kill -0 $vmm; do usleep 100000; done; }
shows 'Cloud-init v.* finished'; shows 'guest login:'; say debian
shows Password:; say let-me-in
shows 'debian@guest'
say 'echo USER-$(id -un) ON-$(uname -n)'
say 'echo PASSWORDS-$(sudo grep -c \"^[^:]*:[$]\" /etc/shadow); sudo systemctl poweroff'";

/// Reads with one request at once, and compares the rate with the limit.
const RATES: &str = r#"now() { cut -d' ' -f1 /proc/uptime; }
rate() {
    start=$(now); dd if=$2 of=/dev/null bs=$3 count=$4 iflag=direct 2>/dev/null; end=$(now)
    awk -v what=$1 -v count=$4 -v limit=$5 -v start=$start -v end=$end 'BEGIN {
        r = count / (end - start) / limit
        print what, (r > 0.95 && r < 1.05 ? "GOOD" : "BAD"), r
    }'
}
rate REQUESTS /dev/vda 4k 1000 200; rate BYTES /dev/vdb 64k 256 64"#;

/// Waits for the address by DHCP, then for its end.
const HAS_NETWORK: &str = "/lib/systemd/systemd-networkd-wait-online --timeout=0
    echo ADDRESS $(ip -4 -o addr show scope global | awk '{ sub(\"/.*\", \"\", $4); print $4 }')
    echo DNS $(awk '/^nameserver/ { print $2 }' /run/systemd/resolve/resolv.conf)
    ping -c 1 -W 60 10.0.0.1 >/dev/null && echo PING ANSWERED
    echo WAITS; sleep infinity";

/// The first boot fills the disk with files until it is killed. The next one finds a file system, and shows the files.
const FILL_OR_CHECK: &str = "mkdir /mnt
    if mount -t ext4 /dev/vda /mnt 2>/dev/null; then
        for file in /mnt/*.data; do echo FOUND $(sha256sum <$file) $file; done
        umount /mnt
    else
        mke2fs -F /dev/vda >/dev/null; sync; mount -t ext4 /dev/vda /mnt
        i=0
        while i=$((i + 1)); do
            head -c 98304 /dev/urandom | dd of=/mnt/$i.data bs=4k conv=fsync 2>/dev/null
            fsync /mnt
            echo KEPT $(sha256sum </mnt/$i.data) /mnt/$i.data .
        done
    fi";

/// Each file that the first boot called kept is found by the second, with the same content. A line may be cut by the
/// kill, so only those with a dot at the end count.
const BOOT_AGAIN: &str = "tr -d '\\r' </tmp/out | grep '^KEPT .* \\.$' >/tmp/kept
    ( run ) </dev/null >>/tmp/out 2>>/tmp/err; echo SECOND $?
    lost=0
    while read -r _ sum _ file _; do grep -q \"^FOUND $sum - $file\" /tmp/out || lost=$((lost + 1)); done </tmp/kept
    [ $lost = 0 ] && [ \"$(wc -l </tmp/kept)\" -ge 8 ] && echo ALL KEPT || echo LOST $lost
    rm /tmp/disk";

/// A file system of 40 MiB with two sparse images. For the 10 MiB that a guest writes to each, there is room when the
/// disk's ballast is gone, and not before.
const FULL_HOST: &str = "truncate -s 40M /tmp/fs; mke2fs -F /tmp/fs >/dev/null
    mkdir -p /full; mount -o loop /tmp/fs /full
    dd if=/dev/zero of=/full/ballast-vda bs=1M count=6 2>/dev/null
    dd if=/dev/zero of=/full/ballast-vdb bs=1M count=24 2>/dev/null
    truncate -s 64M /full/disk; truncate -s 64M /full/other; sync";
