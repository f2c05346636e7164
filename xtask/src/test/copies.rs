// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies of Linux from one snapshot that the host takes, all at once. A copy hears its number on the console.
//!
//! Copies that ask for the snapshot themselves are in [`super::para`].

use super::cases::{Case, Image, LINUX};
use crate::debian;
use crate::kernels::Series;

/// Saves the guest at its second READY, and ends it.
const SAVE: &str = "ready 2; mini-vmm ctl /tmp/api snapshot /tmp/snap; mini-vmm ctl /tmp/api stop";

/// Starts this many copies with these arguments, waits for all, and shows what they said.
macro_rules! copies {
    ($count:literal, $arguments:literal) => {
        concat!(
            "copies=$(seq ",
            $count,
            ")
for n in $copies; do
    echo $n | mini-vmm --restore /tmp/snap --resume --serial stdio ",
            $arguments,
            " >/tmp/copy-$n 2>&1 &
    pids=\"$pids $!\"
done
for pid in $pids; do wait $pid || echo BAD END $? >>/tmp/out; done
for n in $copies; do cat /tmp/copy-$n >>/tmp/out; rm /tmp/copy-$n; done; rm -r /tmp/snap
grep BAD /tmp/out || echo NOTHING BAD
"
        )
    };
}

/// Makes a random number, so that the kernel's keys are new, and waits for the snapshot and for its number. Linux makes
/// new keys after half the time that it has been up, so this waits until the copies end before that.
const UNSEEDED: &str =
    "while read up idle </proc/uptime; [ ${up%.*} -lt 30 ]; do usleep 500000; done
cat /proc/sys/kernel/random/uuid; echo READY; read number
read uuid </proc/sys/kernel/random/uuid; echo \"COPY $number: $uuid\"";

const TEN_COPIES: &str = concat!(
    copies!("10", ""),
    "echo UUIDS $(sed -n 's/^COPY .*: //p' /tmp/out | sort -u | wc -l) of $(grep -c '^COPY' /tmp/out)"
);

/// Reads what all copies share, and writes to its own overlay. What it wrote is read from the disk. Debian's kernel has
/// no driver for the generation ID, so the copies' random numbers may be equal.
const USE_DEBIAN: &str = "systemctl is-system-running --wait >/dev/null; dmesg >/run/boot; echo READY; read number
shared=$(find /usr/bin /usr/sbin -type f | sort | head -n 100 | xargs cat | sha256sum)
{ echo \"$number\"; head -c 8388608 /dev/urandom; } >/root/own; own=$(sha256sum </root/own)
sync /root/own; echo 3 >/proc/sys/vm/drop_caches
[ \"$own\" = \"$(sha256sum </root/own)\" ] || echo BAD FILE
echo \"OWN $own\"; echo \"SHARED $shared\"
echo FAILED $(systemctl list-units --state=failed --no-legend | wc -l)
dmesg | tail -n +$(($(wc -l </run/boot) + 1)) | grep -iE 'unstable|backward|skew|lockup|stall|blocked for|hung|BUG|WARN|Call Trace|error' | sed 's/^/BAD LOG /'";

/// Each copy has a file of its own, and all have the same system.
const FIVE_DEBIANS: &str = concat!(
    copies!(
        "5",
        "--disk path=$disk,overlay=/tmp --disk path=/guest/job-debian-copies,readonly,serial=xtask-job"
    ),
    "echo OWN $(grep '^OWN' /tmp/out | sort -u | wc -l) SHARED $(grep '^SHARED' /tmp/out | sort | uniq -c | cut -c -8)
echo UNITS $(grep -c '^FAILED 0' /tmp/out)"
);

/// The cases.
pub const CASES: &[Case] = &[
    // What `para.ko` and the generation ID's driver prevent.
    Case {
        name: "6.1-copies-unseeded",
        image: Image::Debian(Series::V6_1),
        arguments: "--api-sock /tmp/api",
        guest: UNSEEDED,
        drive: SAVE,
        after: TEN_COPIES,
        expect: &["UUIDS 1 of 10", "NOTHING BAD"],
        long: true,
        ..LINUX
    },
    Case {
        name: "debian-copies",
        image: Image::AllOfDebian,
        cmdline: Some(debian::CMDLINE),
        arguments: "--disk path=$disk,overlay=/tmp --api-sock /tmp/api",
        guest: USE_DEBIAN,
        drive: SAVE,
        after: FIVE_DEBIANS,
        expect: &["OWN 5 SHARED 5", "UNITS 5", "NOTHING BAD"],
        long: true,
        ..LINUX
    },
];
