// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux under load, through chains of snapshots. Each is restored in a new process.
//!
//! The guest writes and reads a disk, sends and takes numbers by TCP, and sleeps. It says what it has done, and BAD if
//! something was lost. No step ends before all of that has gone on.

use super::cases::{Case, Image, LINUX};
use crate::kernels::Series;

/// A disk, and a tap that outlives its processes. One connection each way sends numbers in their order.
const HOST: &str = "steps=3; truncate -s 8M /tmp/disk
tunctl -t tap0 >/dev/null; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up
mkfifo /tmp/hold; exec 4<>/tmp/hold; : >/tmp/back
seq 1 99999999 | nc -l -p 5000 >/dev/null & sender=$!
nc -l -p 5001 <&4 | awk '$1 != NR { print \"BAD BACK\", NR, $1; exit } NR % 1000 == 0 { print \"BACK\", NR; fflush() }' >/tmp/back & taker=$!";

/// The load. It ends when a line comes from the console. A clock that goes back is BAD, and so is a message about time.
const LOAD: &str =
    "mount -t tmpfs tmp /tmp; mkfifo /tmp/hold; exec 4<>/tmp/hold; dmesg >/tmp/boot
ip link set lo up; ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
nc 10.0.0.1 5000 <&4 | awk '$1 != NR { print \"BAD TCP\", NR, $1; exit } NR % 1000 == 0 { print \"TCP\", NR; fflush() }' &
seq 1 99999999 | nc 10.0.0.1 5001 &
sum() { dd if=/dev/vda bs=64k skip=$1 count=1 2>/dev/null | sha256sum; }
i=0; while i=$((i + 1)); do
    at=$((i % 4)); echo 3 >/proc/sys/vm/drop_caches
    [ $i -le 4 ] || [ \"$(sum $at)\" = \"$(cat /tmp/sum-$at)\" ] || echo BAD DISK $i
    head -c 65536 /dev/urandom >/tmp/data; sha256sum </tmp/data >/tmp/sum-$at
    dd if=/tmp/data of=/dev/vda bs=64k seek=$at conv=fsync 2>/dev/null || echo BAD WRITE $i
    echo DISK $i
done &
i=0 last=0; while i=$((i + 1)); do
    usleep 50000; read up idle </proc/uptime; now=${up%.*}${up#*.}
    [ $now -ge $last ] || echo BAD CLOCK $last $now
    last=$now; [ $((i % 4)) != 0 ] || echo TIMER $i $now
done &
read end
dmesg | tail -n +$(($(wc -l </tmp/boot) + 1)) | grep -v drop_caches | tee /tmp/later | sed 's/^/LATER /'
grep -qiE 'unstable|backward|skew|lockup|stall|blocked for|hung|BUG|WARN|Call Trace|error' /tmp/later && echo BAD LOG || echo LOG CLEAN";

/// A chain of `$steps`. Each begins when the whole load has gone on.
const CHAIN: &str = "count() { cat /tmp/out /tmp/back | grep -c \"^$1 \"; }
goes_on() {
    for what in DISK TCP BACK TIMER; do
        last=$(count $what)
        until [ $(count $what) -gt $last ]; do kill -0 $vmm || return 1; usleep 100000; done
    done
}
go_on() {
    exec mini-vmm --restore /tmp/snap --resume --disk path=/tmp/disk$overlay --net tap=tap0 --api-sock /tmp/api --serial stdio
}
ready 1; made=0
while [ $made -lt $steps ] && goes_on; do
    mini-vmm ctl /tmp/api snapshot /tmp/snap && mini-vmm ctl /tmp/api stop || break
    wait $vmm; go_on </tmp/in >>/tmp/out 2>>/tmp/err & vmm=$!
    made=$((made + 1))
done
goes_on && [ $made = $steps ] && echo ALL STEPS; say end";

const AFTER: &str = "kill $sender $taker; grep BAD /tmp/out /tmp/back || echo NOTHING LOST
tunctl -d tap0 >/dev/null; rm -r /tmp/disk /tmp/snap /tmp/back /tmp/hold";

const LOADED: Case = Case {
    virtio: true,
    arguments: "--disk path=/tmp/disk --net tap=tap0 --rng on --api-sock /tmp/api",
    before: HOST,
    guest: LOAD,
    drive: CHAIN,
    after: AFTER,
    expect: &["ALL STEPS", "LOG CLEAN", "NOTHING LOST"],
    ..LINUX
};

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "6.1-snapshots", image: Image::Debian(Series::V6_1), ..LOADED },
];
