// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots with shared directories. A tree of small files is the same on both sides, whoever made it. The end of virtiofsd
//! leaves the machine alive.

use super::cases::{Case, Image, LINUX};
use crate::kernels::Series;

/// A tree of small files, whose names and contents differ.
macro_rules! tree {
    ($files:literal) => {
        concat!(
            "mkdir -p /tmp/share/tree /tmp/fixed; echo fixed >/tmp/fixed/file
sum() { (cd $1 && find . -type f | sort | xargs sha256sum | sha256sum | cut -c 1-64); }
n=0
while [ $((n += 1)) -le 25 ]; do mkdir /tmp/share/tree/$((n % 25)); done
n=0
while [ $((n += 1)) -le ",
            $files,
            " ]; do echo \"$n $((n * n))\" >/tmp/share/tree/$((n % 25))/$n; done
"
        )
    };
}

/// The guest sums the tree up, copies it within the share, and changes names. The second directory is read-only. At the
/// end virtiofsd is gone, so nothing waits for it: no file is synchronized. A whole tree is not removed, since the bed's
/// file system in memory skips names when one of those before them goes.
const GUEST: &str = "mkdir /mnt /fixed; mount -t virtiofs work /mnt && mount -t virtiofs share1 /fixed && echo MOUNTED
sum() { (cd $1 && find . -type f | sort | xargs sha256sum | sha256sum | cut -c 1-64); }
echo TREE $(sum /mnt/tree) OF THE HOST
cp -r /mnt/tree /mnt/copy; mv /mnt/copy /mnt/back; rm /mnt/back/1/1; cp /mnt/tree/1/1 /mnt/back/1
cat /fixed/file; echo changed 2>/dev/null >/fixed/file || echo READ ONLY
echo READY; read word
echo FROM THE HOST $(cat /mnt/word)
echo READY; read word; echo STILL ALIVE; poweroff -n -f";

const DRIVE: &str = "before=$(sum /tmp/share/tree)
ready 2
grep -q \"^TREE $before OF THE HOST\" /tmp/out && echo SAME IN THE GUEST
[ \"$(sum /tmp/share/back)\" = $before ] && [ ! -e /tmp/share/copy ] && echo SAME ON THE HOST
echo hello >/tmp/share/word; say go
ready 3; kill -9 $(pidof virtiofsd); say go";

const SHARES: Case = Case {
    virtio: true,
    before: tree!("1000"),
    guest: GUEST,
    drive: DRIVE,
    after: "pidof virtiofsd || echo NO VIRTIOFSD IS LEFT; rm -r /tmp/share /tmp/fixed",
    expect: &[
        "MOUNTED",
        "SAME IN THE GUEST",
        "SAME ON THE HOST",
        "fixed",
        "READ ONLY",
        "FROM THE HOST hello",
        "its vhost-user backend has ended",
        "STILL ALIVE",
        "NO VIRTIOFSD IS LEFT",
    ],
    ..LINUX
};

/// The boots. The beds' root file system can't be left for another one, so virtiofsd has no namespaces.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "6.12-share-pci", image: Image::Debian(Series::V6_12),
        arguments: "--share path=/tmp/share,tag=work,sandbox=chroot --share path=/tmp/fixed,readonly,sandbox=none", ..SHARES },
    Case { name: "6.1-share-mmio", image: Image::Debian(Series::V6_1), cpus: 2,
        arguments: "--virtio mmio --share path=/tmp/share,tag=work,sandbox=chroot --share path=/tmp/fixed,readonly,sandbox=none",
        before: tree!("10000"), long: true, ..SHARES },
];
