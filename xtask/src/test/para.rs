// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The boots in which Linux registers for hypercalls with the driver in `guest/linux`.

use crate::bed::{Bed, Vendor};
use crate::kernels::Series;

use super::beds::FORWARDING;
use super::cases::{Case, Image, LINUX};
use super::snapshots;

/// A case whose guest has the driver.
const PARA: Case = Case {
    para: true,
    ..LINUX
};

const KERNEL_6_1: Image = Image::Debian(Series::V6_1);
const KERNEL_6_12: Image = Image::Debian(Series::V6_12);

/// The output of `para-show` that a case with these routes expects.
const VENDOR_AMD: &[&str] = &[
    "status       live",
    "stub         0f 01 d9 c3 ff c3",
    "route        vendor",
    "ping         0",
    "nop          -1000",
    "UNLOADED",
    "does not answer hypercalls (route vendor)",
];
const VENDOR_INTEL: &[&str] = &[
    "status       live",
    "stub         0f 01 c1 c3 ff c3",
    "route        vendor",
    "ping         0",
    "nop          -1000",
];
const PIO: &[&str] = &[
    "status       live",
    "stub         e6 f5 c3 cc ff c3",
    "route        pio",
    "ping         0",
    "nop          0",
    "UNLOADED",
];
const FORWARD: &[&str] = &[
    "status       live",
    "stub         0f 01 d9 c3 ff c3",
    "route        forward",
    "ping         0",
    "nop          0",
    "UNLOADED",
];

/// Load, unload, load again; the CPUs that registered; a call; the end by a call if the VMM answers. Otherwise the job
/// continues to a power-off.
const USE: &str = "insmod /para/para.ko && rmmod para && [ ! -e /sys/kernel/para ] && echo UNLOADED
insmod /para/para.ko; para-show
[ \"$(cat /sys/kernel/para/cpus)\" = \"$(cat /sys/devices/system/cpu/online)\" ] || echo CPUS-MISSING
[ $(grep -c 'registered registrations=1 .* ret=0x0$' /sys/kernel/para/cpu_state) = $(nproc) ] && echo ALL-REGISTERED
para-exit 7";

/// Like [`USE`], with a CPU that goes offline and online again.
const HOTPLUG: &str =
    "insmod /para/para.ko && rmmod para && [ ! -e /sys/kernel/para ] && echo UNLOADED
insmod /para/para.ko; para-show
cd /sys/devices/system/cpu/cpu1
echo 0 >online; echo \"unplugged: $(cat /sys/kernel/para/cpus).\"
echo 1 >online; echo \"plugged: $(cat /sys/kernel/para/cpus).\"
cat /sys/kernel/para/cpu_state; echo \"ping of cpu1: $(taskset 2 cat /sys/kernel/para/ping).\"
para-exit 7";

/// Registrations that are refused or not tried, then the other vendor's instruction. KVM's fix-up, which is on unless a
/// VMM turns it off, replaces it with the host's through the guest's page tables. Without the fix-up the instruction is
/// #UD; `mini-vmm`'s own tests cover that, because no option turns the fix-up off.
const REFUSED_AND_WRONG: &str =
    "insmod /para/para.ko guest_version=2; cat /sys/kernel/para/status; rmmod para
insmod /para/para.ko off=1; cat /sys/kernel/para/status; rmmod para
insmod /para/para.ko; insmod /para/para_test.ko wrong=1; dmesg";

/// A case with a kernel, a count of CPUs and a route; it expects the route's bytes.
const fn usual(name: &'static str, image: Image, cpus: u32, route: Route) -> Case {
    let (arguments, expect, exit) = match route {
        Route::Vendor => ("--hypercall vendor", VENDOR_AMD, 0),
        Route::Pio => ("--hypercall pio", PIO, 7),
        Route::Forward => ("--hypercall forward", FORWARD, 7),
    };
    Case {
        name,
        image,
        cpus,
        arguments,
        guest: USE,
        exit,
        expect,
        also_expect: &["ALL-REGISTERED"],
        ..PARA
    }
}

enum Route {
    Vendor,
    Pio,
    Forward,
}

/// A guest that registers this often, from both CPUs in turn, while the other one calls. A million takes seven minutes
/// in the bed; the shorter one fits in a minute.
const STORM: &str = "insmod /para/para.ko; insmod /para/para_test.ko storm=2000; rmmod para_test
dmesg -c >/dev/null; echo READY
insmod /para/para_test.ko storm=60000 seconds=3600; dmesg; para-show
echo READY; read done";
const LONG_STORM: &str =
    "insmod /para/para.ko; insmod /para/para_test.ko storm=2000; rmmod para_test
dmesg -c >/dev/null; echo READY
insmod /para/para_test.ko storm=1000000 seconds=3600; dmesg; para-show
echo READY; read done";

/// The VMM's private data before and after, without the guest's memory.
const STORM_DRIVE: &str =
    "data() { sed -n 's/^VmData:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$vmm/status; }
ready 2; before=$(data); ready 3; after=$(data)
echo \"VmData before $before kB, after $after kB\"
[ $((after - before)) -le 128 ] && echo VMM-MEMORY-STEADY
say done";

/// The cases of the AMD bed.
#[rustfmt::skip]
const AMD: &[Case] = &[
    bare("bare-vendor", "--hypercall vendor --debug-exit", &["stub [0f, 01, d9, c3, ff, c3]", "ping 0, boot mark -1000"]),
    bare("bare-pio", "--hypercall pio", &["stub [e6, f5, c3, cc, ff, c3]", "ping 0, boot mark 0"]),
    Case { exit: 3, ..bare("bare-off", "--para off --debug-exit", &["bare guest: Fault"]) },
    usual("para-6.1-1cpu-vendor", KERNEL_6_1, 1, Route::Vendor),
    usual("para-6.1-2cpu-vendor", KERNEL_6_1, 2, Route::Vendor),
    usual("para-6.1-1cpu-pio", KERNEL_6_1, 1, Route::Pio),
    usual("para-6.12-1cpu-vendor", KERNEL_6_12, 1, Route::Vendor),
    usual("para-6.12-2cpu-vendor", KERNEL_6_12, 2, Route::Vendor),
    usual("para-6.12-1cpu-pio", KERNEL_6_12, 1, Route::Pio),
    usual("para-6.12-2cpu-pio", KERNEL_6_12, 2, Route::Pio),
    Case { name: "para-6.1-2cpu-pio-hotplug", guest: HOTPLUG, also_expect: &["unplugged: 0.", "plugged: 0-1.",
        "cpu1 registered registrations=2", "ping of cpu1: 0."], ..usual("", KERNEL_6_1, 2, Route::Pio) },
    // After a reset no CPU is registered, so the VMM does not answer a call by port I/O.
    Case { name: "para-reset", cpus: 2, arguments: "--hypercall pio --on-reboot reset",
        guest: "read what
            try() { insmod /para/para_test.ko unregistered=1; rmmod para_test; dmesg | sed -n 's/.*unregistered: //p' | tail -n 1; }
            insmod /para/para.ko off=1; echo \"$what first: $(try).\"; rmmod para
            insmod /para/para.ko; echo \"$what then: $(try).\"; para-show
            [ $what = poweroff ] || reboot -f",
        drive: "ready 1; say reboot; ready 2; say poweroff",
        expect: &["reboot first: no answer.", "reboot then: answered.", "poweroff first: no answer.",
            "poweroff then: answered."], ..PARA },
    Case { name: "para-refusals-wrong-vendor", arguments: "--hypercall vendor", guest: REFUSED_AND_WRONG,
        expect: &["refused: the host has API version 1, this guest asks for 2",
            "off by parameter: loaded without effect",
            "wrong: read-only text: fault, bytes 0f 01 c1 c3",
            "wrong: writable text: result 0, bytes 0f 01 d9 c3"], ..PARA },
    Case { name: "para-off", arguments: "--para off",
        guest: "insmod /para/para.ko; dmesg; para-show; echo \"status: $(cat /sys/kernel/para/status).\"",
        expect: &["no host answers MSR 0x87655678: loaded without effect", "status: no host.",
            "stub         b8 da ff ff ff c3"], ..PARA },
    // pvpanic's driver would be first.
    Case { name: "para-panic", arguments: "--hypercall pio -v",
        guest: "rmmod pvpanic_mmio; rmmod pvpanic; insmod /para/para.ko panic_status=77
            echo c >/proc/sysrq-trigger",
        exit: 77, expect: &["boot mark 0x1 ", "boot mark 0xdead "], ..PARA },
    fork("para-fork-6.1", KERNEL_6_1, 1, &["para: clone 3: reseeded after "]),
    fork("para-fork-6.12", KERNEL_6_12, 2, &["by the generation ID's driver after "]),
    Case { after: THOUSAND_CLONES, expect: &["UUIDS 1001 of 1001", "clone 0: ", "clone 1000: "], long: true,
        ..fork("para-fork-a-thousand", KERNEL_6_12, 1, &["by the generation ID's driver after "]) },
    Case { name: "para-storm", cpus: 2, arguments: "--hypercall pio", guest: STORM, drive: STORM_DRIVE,
        expect: &["VMM-MEMORY-STEADY", "storm: 60000 registrations, ", " 0 wrong, ", "status       live"], ..PARA },
    Case { name: "para-storm-of-a-million", cpus: 2, arguments: "--hypercall pio", guest: LONG_STORM, drive: STORM_DRIVE,
        expect: &["VMM-MEMORY-STEADY", "storm: 1000000 registrations, ", " 0 wrong, ", "status       live"],
        long: true, ..PARA },
];

/// Asks for a snapshot. The original and each clone first make a UUID.
const FORK: &str = "insmod /para/para.ko; echo 1 >/sys/kernel/para/snapshot || echo NO-SNAPSHOT
uuid=$(cat /proc/sys/kernel/random/uuid)
echo \"clone $(cat /sys/kernel/para/snapshot): $uuid\"
dmesg | sed -n 's/.*para: clone/para: clone/p'";

/// Ten clones at once, after the original has ended.
const TEN_CLONES: &str = "for n in 1 2 3 4 5 6 7 8 9 10; do
    mini-vmm --restore /tmp/snaps/1 --resume --clone-id $n </dev/null >/tmp/clone-$n 2>&1 &
done; wait
cat /tmp/clone-* >>/tmp/out
echo \"UUIDS $(sed -n 's/^clone [0-9]*: //p' /tmp/out | sort -u | wc -l) of $(grep -c '^clone ' /tmp/out)\"";

/// A thousand clones, ten at once.
const THOUSAND_CLONES: &str = "for ten in $(seq 0 10 990); do
    for one in 1 2 3 4 5 6 7 8 9 10; do n=$((ten + one))
        mini-vmm --restore /tmp/snaps/1 --resume --clone-id $n </dev/null >/tmp/clone-$n 2>&1 &
    done; wait
    cat /tmp/clone-* >>/tmp/out; rm /tmp/clone-*
done
echo \"UUIDS $(sed -n 's/^clone [0-9]*: //p' /tmp/out | sort -u | wc -l) of $(grep -c '^clone ' /tmp/out)\"";

/// A case whose guest is copied.
const fn fork(name: &'static str, image: Image, cpus: u32, by: &'static [&'static str]) -> Case {
    Case {
        name,
        image,
        cpus,
        arguments: "--snapshot-dir /tmp/snaps",
        before: "rm -rf /tmp/snaps; mkdir /tmp/snaps",
        guest: FORK,
        after: TEN_CLONES,
        expect: &["UUIDS 11 of 11", "clone 0: ", "clone 1: ", "clone 10: "],
        also_expect: by,
        ..PARA
    }
}

/// The example guest without an operating system, on a route.
const fn bare(
    name: &'static str,
    arguments: &'static str,
    expect: &'static [&'static str],
) -> Case {
    Case {
        name,
        image: Image::Bare,
        arguments,
        expect,
        exit: 5,
        ..LINUX
    }
}

/// More cases for an AMD bed whose KVM forwards hypercalls.
const FORWARDED: &[Case] = &[
    usual("para-6.1-1cpu-forward", KERNEL_6_1, 1, Route::Forward),
    usual("para-6.12-2cpu-forward", KERNEL_6_12, 2, Route::Forward),
    snapshots::FORWARDED,
    Case {
        arguments: "--hypercall forward --snapshot-dir /tmp/snaps",
        ..fork(
            "para-fork-6.12-forward",
            KERNEL_6_12,
            1,
            &["by the generation ID's driver after "],
        )
    },
];

/// The cases of the Intel bed.
const INTEL: &[Case] = &[Case {
    name: "para-6.1-vendor",
    image: KERNEL_6_1,
    arguments: "--hypercall vendor",
    cmdline: Some("cryptomgr.notests=1"),
    guest: "insmod /para/para.ko; para-show",
    expect: VENDOR_INTEL,
    ..PARA
}];

/// The cases of a bed: those that its KVM supports, and those that it doesn't.
pub fn cases(bed: &Bed) -> (Vec<&'static Case>, &'static [Case]) {
    let forwards = bed.series == Some(FORWARDING);
    match bed.vendor {
        Vendor::Amd if forwards => (AMD.iter().chain(FORWARDED).collect(), &[]),
        Vendor::Amd => (AMD.iter().collect(), FORWARDED),
        Vendor::Intel => (INTEL.iter().collect(), &[]),
    }
}
