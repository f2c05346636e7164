// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots with a virtio console and with console ports.

use super::cases::{Case, Image, LINUX};
use crate::kernels::Series;

/// Types on the console, and prints what it shows. The guest learns of a new size when something is typed.
const TYPE: &str = "pty=$(sed -n 's/.*the virtio console is on //p' /tmp/err | tr -d '\\r')
until [ -n \"$pty\" ] || ! kill -0 $vmm; do
    usleep 100000; pty=$(sed -n 's/.*the virtio console is on //p' /tmp/err | tr -d '\\r')
done
cat $pty >/tmp/shown & cat=$!
stty -F $pty rows 31 cols 97
ready 1
until grep -q '# ' /tmp/shown || ! kill -0 $vmm; do usleep 100000; done
size() { echo >$pty; sleep 1; echo 'echo SIZE $(stty size)' >$pty; }
size
until grep -q '^SIZE 31 97' /tmp/shown || ! kill -0 $vmm; do usleep 100000; done
stty -F $pty rows 50 cols 132
size
until grep -q '^SIZE 50 132' /tmp/shown || ! kill -0 $vmm; do usleep 100000; done
echo 'echo SHELL $((6 * 7)) $(tty); touch /done' >$pty";

/// A shell on the console, until it is told to end.
const SHELL: &str =
    "[ $(cat /sys/class/tty/console/active | wc -w) -ge 1 ] && cat /sys/class/tty/console/active
getty -n -l /bin/sh 0 hvc0 vt100 & until [ -e /done ]; do usleep 100000; done; usleep 300000";

const SHELLS: Case = Case {
    virtio: true,
    arguments: "--console pty",
    // The last one is the guest's standard output.
    cmdline: Some("console=hvc0 console=ttyS0"),
    guest: SHELL,
    drive: TYPE,
    after: "kill $cat; cat /tmp/shown; rm /tmp/shown",
    expect: &["hvc0", "SIZE 31 97", "SIZE 50 132", "SHELL 42 /dev/hvc0"],
    ..LINUX
};

/// As udev names the ports.
macro_rules! named {
    ($($then:literal)*) => {
        concat!(
            "mkdir /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do ln -s /dev/${port##*/} /dev/virtio-ports/$(cat $port/name); done
cd /dev/virtio-ports; echo NAMES $(ls)\n",
            $($then)*
        )
    };
}

/// Both directions, by checksum.
const STREAMS: Case = Case {
    virtio: true,
    arguments: "--console-port name=org.in,to=fd:5 --console-port name=org.out,to=file:/tmp/back 5</tmp/payload",
    before: "head -c 1048576 </dev/urandom >/tmp/payload",
    guest: named!("cat <org.in >/data; cat /data >org.out; echo ALL $(wc -c </data)"),
    after: "cmp /tmp/payload /tmp/back && echo SAME BACK; rm /tmp/payload /tmp/back",
    expect: &["NAMES org.in org.out", "ALL 1048576", "SAME BACK"],
    ..LINUX
};

const LONG_STREAMS: Case = Case {
    before: "head -c 67108864 </dev/urandom >/tmp/payload",
    expect: &["NAMES org.in org.out", "ALL 67108864", "SAME BACK"],
    long: true,
    ..STREAMS
};

/// The ports of virtme-ng, as its init uses them: a script with the standard streams of the host's command, and its status.
const VIRTME: Case = Case {
    virtio: true,
    arguments: "--console-port name=virtme.stdin,to=fd:5 --console-port name=virtme.stdout,to=fd:6 \
        --console-port name=virtme.stderr,to=fd:7 --console-port name=virtme.dev_stdout,to=fd:6 \
        --console-port name=virtme.dev_stderr,to=fd:7 --console-port name=virtme.ret,to=file:/tmp/ret \
        5</tmp/script 6>/tmp/script-out 7>/tmp/script-err",
    before: "printf 'echo from stdout\\necho from stderr >&2\\necho to the device >/dev/stdout\\nexit 7\\n' >/tmp/script",
    guest: named!(
        "ln -sf /dev/virtio-ports/virtme.dev_stdout /dev/stdout
setsid sh <virtme.stdin >virtme.stdout 2>virtme.stderr; echo $? >virtme.ret"
    ),
    after: "echo $(cat /tmp/script-out); cat /tmp/script-err; echo RETURNED $(cat /tmp/ret)
rm /tmp/script /tmp/script-out /tmp/script-err /tmp/ret",
    expect: &["from stdout to the device", "from stderr", "RETURNED 7"],
    ..LINUX
};

/// A saved machine gets its ports again, and the guest goes on with them.
const RESTORE: &str = "ready 2; mini-vmm ctl /tmp/api snapshot /tmp/snap && mini-vmm ctl /tmp/api stop
mini-vmm --restore /tmp/snap --resume --console-port name=org.in,to=fd:5 --console-port name=org.out,to=file:/tmp/back \\
    --serial file=/tmp/out2 5</tmp/payload & next=$!
wait $next";

const RESTORED: Case = Case {
    virtio: true,
    arguments: "--api-sock /tmp/api --console-port name=org.in,to=fd:5 --console-port name=org.out,to=file:/tmp/old 5<>/tmp/hold",
    before: "mkfifo /tmp/hold; head -c 1048576 </dev/urandom >/tmp/payload",
    // Its reader waits while the machine is saved, and reads what the other host sends.
    guest: named!("echo READY; cat <org.in >/data; cat /data >org.out; echo ALL $(wc -c </data)"),
    drive: RESTORE,
    after: "cat /tmp/out2; cmp /tmp/payload /tmp/back && echo SAME BACK; rm -r /tmp/snap /tmp/payload /tmp/back /tmp/old",
    expect: &["ALL 1048576", "SAME BACK"],
    ..LINUX
};

/// The boots.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "console-6.1", image: Image::Debian(Series::V6_1), ..SHELLS },
    Case { name: "console-6.12", image: Image::Debian(Series::V6_12), ..SHELLS },
    Case { name: "console-ports-6.1", image: Image::Debian(Series::V6_1), ..STREAMS },
    Case { name: "console-ports-6.12-mmio", image: Image::Debian(Series::V6_12),
        arguments: "--virtio mmio --console-port name=org.in,to=fd:5 --console-port name=org.out,to=file:/tmp/back 5</tmp/payload",
        ..STREAMS },
    Case { name: "console-ports-long", ..LONG_STREAMS },
    Case { name: "console-virtme", ..VIRTME },
    Case { name: "console-restored", ..RESTORED },
];
