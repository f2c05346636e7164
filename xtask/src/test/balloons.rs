// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux gives memory back: by the balloon, by reports and by hints. mini-vmm's process becomes smaller by it.

use super::cases::{Case, Image, LINUX};
use crate::kernels::Series;

/// Uses 200 MB and frees them, twice. Then it does what the console says.
const USE: &str = "mount -t tmpfs tmp /tmp
for round in 1 2; do
    head -c 200000000 /dev/zero >/tmp/big; echo USED $round; read go
    rm /tmp/big; echo FREED $round; read go
done
eval \"$go\"; read end";

/// The bed's part, with functions that wait for lines of the guest, for a size of the balloon, and for a process that is
/// smaller than before, in KiB.
macro_rules! drive {
    ($($part:expr),+ $(,)?) => {
        concat!(
            "rss() { awk '/^VmRSS/ { print $2 }' /proc/$vmm/status; }\n",
            "says() { until grep -q \"^$1\" /tmp/out; do kill -0 $vmm || return 1; usleep 100000; done; }\n",
            "ctl() { mini-vmm ctl /tmp/api balloon \"$1\"; }\n",
            "has() { until ctl stats | grep -q \"^actual_mib: $1\\$\"; do kill -0 $vmm || return 1; usleep 200000; done; }\n",
            "falls() { until [ $(rss) -lt $(($1 - $2)) ]; do kill -0 $vmm || return 1; usleep 200000; done; }\n",
            $($part),+
        )
    };
}

/// The balloon takes nearly all, and gives it back. The guest needs more than it has, and takes it.
const INFLATE: &str = drive!(
    "says 'USED 1'; used=$(rss); say rm; says 'FREED 1'\n",
    "ctl 384M; has 384 && falls $used 150000 && echo BALLOON TOOK IT\n",
    "until ctl stats | grep '^total_memory: [1-9]'; do kill -0 $vmm || break; usleep 200000; done\n",
    "ctl 0; has 0 && echo BALLOON IS EMPTY\n",
    "say again; says 'USED 2'; say rm; says 'FREED 2'\n",
    "ctl 400M; has 400; say 'head -c 60000000 /dev/zero >/tmp/more && echo GOT MORE'; says 'GOT MORE'\n",
    "ctl stats | awk '/^actual_mib/ && $2 < 400 { print \"THE GUEST TOOK IT\" }'; say end",
);

/// The guest tells by itself.
const REPORT: &str = drive!(
    "for round in 1 2; do\n",
    "    says \"USED $round\"; used=$(rss); say rm; says \"FREED $round\"\n",
    "    falls $used 150000 && echo REPORTED $round\n",
    "    say go\n",
    "done; say end",
);

/// The guest is asked.
const HINT: &str = drive!(
    "for round in 1 2; do\n",
    "    says \"USED $round\"; used=$(rss); say rm; says \"FREED $round\"\n",
    "    ctl hint; falls $used 150000 && echo HINTED $round\n",
    "    say go\n",
    "done; say end",
);

/// What the guest keeps is there after each restore, of a Diff, too. What it gave back does not come from the file.
const KEEP: &str = "mount -t tmpfs tmp /tmp
head -c 20000000 /dev/urandom >/tmp/keep; sha256sum </tmp/keep >/tmp/sum
echo SAVE; read go
head -c 100000000 /dev/urandom >/tmp/big; rm /tmp/big; echo FREED; read go
sha256sum </tmp/keep | cmp - /tmp/sum && echo KEPT; read go";

const RESTORE: &str = drive!(
    "go_on() { exec mini-vmm --restore /tmp/snap --resume --api-sock /tmp/api --serial stdio; }\n",
    "next() { mini-vmm ctl /tmp/api stop; wait $vmm; go_on </tmp/in >>/tmp/out 2>>/tmp/err & vmm=$!; \n",
    "    until [ -S /tmp/api ] && mini-vmm ctl /tmp/api info >/dev/null 2>&1; do kill -0 $vmm || return 1; usleep 100000; done; }\n",
    "says SAVE; mini-vmm ctl /tmp/api snapshot /tmp/snap --diff; next\n",
    "say go; says FREED; used=$(rss)\n",
    "ctl 150M; has 150 && falls $used 60000 && echo RESTORED GAVE BACK\n",
    "mini-vmm ctl /tmp/api snapshot /tmp/one --diff; mini-vmm snapshot merge /tmp/snap /tmp/one /tmp/snap; next\n",
    "has 150; ctl 0; has 0 && echo RESTORED IS EMPTY\n",
    "say go; says KEPT; say go",
);

const BALLOON: Case = Case {
    virtio: true,
    guest: USE,
    ..LINUX
};

/// The boots.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "6.1-balloon", image: Image::Debian(Series::V6_1), drive: INFLATE,
        arguments: "--memory 512M --api-sock /tmp/api --balloon stats=1,deflate-on-oom",
        expect: &["BALLOON TOOK IT", "total_memory: ", "BALLOON IS EMPTY", "GOT MORE", "THE GUEST TOOK IT"], ..BALLOON },
    Case { name: "6.12-balloon-reports", image: Image::Debian(Series::V6_12), drive: REPORT,
        arguments: "--memory 512M --balloon reporting", expect: &["REPORTED 1", "REPORTED 2"], ..BALLOON },
    Case { name: "6.1-balloon-reports", image: Image::Debian(Series::V6_1), drive: REPORT, long: true,
        arguments: "--virtio mmio --memory 512M --balloon reporting", expect: &["REPORTED 1", "REPORTED 2"], ..BALLOON },
    Case { name: "6.1-balloon-hints", image: Image::Debian(Series::V6_1), drive: HINT, long: true,
        arguments: "--memory 512M --api-sock /tmp/api --balloon hinting", expect: &["HINTED 1", "HINTED 2"], ..BALLOON },
    Case { name: "6.1-balloon-restored", image: Image::Debian(Series::V6_1), drive: RESTORE, guest: KEEP,
        arguments: "--memory 256M --api-sock /tmp/api --balloon stats=1", after: "rm -r /tmp/snap /tmp/one",
        expect: &["RESTORED GAVE BACK", "RESTORED IS EMPTY", "KEPT"], ..BALLOON },
];
