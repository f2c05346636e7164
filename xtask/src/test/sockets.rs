// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots with a socket device. What one side sends comes back the same, and a half-closed stream still brings the rest.

use super::cases::{Case, LINUX};

/// Two processes of the host: one that sends back what the guest sends it, and the file that another one will send.
const BEFORE: &str = "head -c 4194304 </dev/urandom >/tmp/payload
bench-probe unix echo /tmp/v_53 2 & server=$!";

/// The guest talks to a process of the host, twice; nobody listens on another port. Then it sends back what comes.
const GUEST: &str = "head -c 3000000 /dev/urandom >/data
for round in 1 2; do
    bench-probe vsock talk 53 </data >/back; cmp /data /back && echo SAME FROM GUEST $round
done
bench-probe vsock talk 54 </dev/null || echo NOBODY THERE
bench-probe vsock echo 7 2";

/// Processes of the host talk to the guest.
const DRIVE: &str = "until grep -q '^ECHO READY' /tmp/out || ! kill -0 $vmm; do usleep 50000; done
bench-probe unix ask /tmp/v 8
for round in 1 2; do
    bench-probe unix talk /tmp/v 7 </tmp/payload >/tmp/back
    cmp /tmp/payload /tmp/back && echo SAME FROM HOST $round
done";

const SOCKETS: Case = Case {
    virtio: true,
    before: BEFORE,
    guest: GUEST,
    drive: DRIVE,
    after: "[ -e /tmp/v ] || echo SOCKET REMOVED; kill $server 2>/dev/null; rm -f /tmp/v_53 /tmp/payload /tmp/back",
    expect: &[
        "SAME FROM GUEST 1",
        "SAME FROM GUEST 2",
        "NOBODY THERE",
        "SAME FROM HOST 1",
        "SAME FROM HOST 2",
        "PORT 8 IS CLOSED",
        "SOCKET REMOVED",
    ],
    ..LINUX
};

/// A connection is there when the machine is saved. The guest serves one at a time. So it has to learn that this one is
/// gone before it serves another one on the restored machine, which has another CID and another socket.
const RESTORE: &str = "until grep -q '^ECHO READY' /tmp/out || ! kill -0 $vmm; do usleep 50000; done
mkfifo /tmp/hold; exec 4<>/tmp/hold
{ echo hello; cat <&4; } | bench-probe unix talk /tmp/v 7 >/tmp/heard &
until grep -q hello /tmp/heard || ! kill -0 $vmm; do usleep 50000; done
mini-vmm ctl /tmp/api snapshot /tmp/snap && mini-vmm ctl /tmp/api stop
mini-vmm --restore /tmp/snap --resume --api-sock /tmp/next --vsock cid=4,socket=/tmp/w --serial file=/tmp/out2 & next=$!
until [ -S /tmp/w ] || ! kill -0 $next; do usleep 50000; done
bench-probe unix talk /tmp/w 7 </tmp/payload >/tmp/back
cmp /tmp/payload /tmp/back && echo SAME AFTER RESTORE
mini-vmm ctl /tmp/next stop; wait $next; rm -r /tmp/snap /tmp/back";

const RESTORED: Case = Case {
    virtio: true,
    arguments: "--api-sock /tmp/api --vsock cid=3,socket=/tmp/v",
    before: "head -c 1048576 </dev/urandom >/tmp/payload",
    guest: "bench-probe vsock echo 7 9",
    drive: RESTORE,
    after: "cat /tmp/out2; rm -f /tmp/payload",
    expect: &["SAME AFTER RESTORE"],
    ..LINUX
};

/// Commands in the guest. One runs when the machine is saved. So it has to end on the restored machine, whose agent still
/// listens. The loops end with the machine.
const COMMANDS: &str = "exec_in() { at=$1; shift; mini-vmm ctl $at exec \"$@\"; }
until exec_in /tmp/api -- true 2>/dev/null || ! kill -0 $vmm; do usleep 100000; done
exec_in /tmp/api --env A=here --cwd /tmp -- sh -c 'echo $A $PWD; echo apart >&2; exit 7' >/tmp/o 2>/tmp/e
echo \"STATUS $? $(cat /tmp/o) $(cat /tmp/e)\"
exec_in /tmp/api -- cat </tmp/payload | cmp - /tmp/payload && echo SAME BOTH WAYS
[ \"$(exec_in /tmp/api -- sha256sum </tmp/payload)\" = \"$(sha256sum </tmp/payload)\" ] && echo SAME SUM
exec_in /tmp/api -- absent; echo \"ABSENT $?\"
hold() { mini-vmm ctl /tmp/api exec -- sh -c 'echo up; exec sleep 99999' >/tmp/up & holder=$!; until grep -q up /tmp/up || ! kill -0 $vmm; do usleep 50000; done; }
hold; kill -TERM $holder; wait $holder; echo \"STOPPED $?\"
hold; mini-vmm ctl /tmp/api snapshot /tmp/snap; exec_in /tmp/api -- true; echo \"PAUSED $?\"
mini-vmm ctl /tmp/api stop; wait $holder; echo \"GONE $?\"
mini-vmm --restore /tmp/snap --resume --api-sock /tmp/next --vsock cid=4,socket=/tmp/w --serial file=/tmp/out2 & next=$!
until [ -S /tmp/next ] || ! kill -0 $next; do usleep 50000; done
while exec_in /tmp/next -- pidof sleep >/dev/null; do usleep 100000; done; echo COMMAND ENDED
exec_in /tmp/next -- cat </tmp/payload | cmp - /tmp/payload && echo SAME AFTER RESTORE
mini-vmm ctl /tmp/next stop; wait $next; rm -r /tmp/snap /tmp/payload";

const EXEC: Case = Case {
    virtio: true,
    arguments: "--api-sock /tmp/api --vsock cid=3,socket=/tmp/v",
    before: "head -c 1048576 </dev/urandom >/tmp/payload",
    guest: "mini-vmm agent & read end",
    drive: COMMANDS,
    expect: &[
        "STATUS 7 here /tmp apart",
        "SAME BOTH WAYS",
        "SAME SUM",
        "ABSENT 127",
        "STOPPED 143",
        "PAUSED 255",
        "the machine is paused; let it go on with",
        "GONE 255",
        "the machine ended before the command did",
        "COMMAND ENDED",
        "SAME AFTER RESTORE",
    ],
    ..LINUX
};

/// The boots.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "vsock-pci", arguments: "--vsock cid=3,socket=/tmp/v", ..SOCKETS },
    Case { name: "vsock-mmio", arguments: "--virtio mmio --vsock cid=3,socket=/tmp/v", long: true, ..SOCKETS },
    Case { name: "vsock-restored", ..RESTORED },
    Case { name: "vsock-exec", ..EXEC },
];
