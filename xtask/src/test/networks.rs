// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots with two networks: a tap, and the bed's own network by passt. What the bed sends comes back the same. One boot
//! has passt alone, with IPv6 and forwarded ports. And boots with a tap that leads to the metadata service.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cases::{Case, Image, LINUX};
use crate::apt::Tree;
use crate::kernels::Series;

/// A tap with the bed at its other end, and a network that leads nowhere, with which passt starts. It takes the
/// addresses of `lo` as far away. Each port of 5000 and more sends or receives one file.
macro_rules! host {
    ($mib:literal) => {
        concat!(
            "head -c $((",
            $mib,
            " << 20)) </dev/urandom >/tmp/payload
mkfifo /tmp/hold; exec 4<>/tmp/hold
ip link set lo up; ip addr add 198.51.100.1/32 dev lo
tunctl -t tap0 >/dev/null; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up
tunctl -t up0 >/dev/null; ip addr add 192.0.2.2/24 dev up0; ip link set up0 up
ip route add default via 192.0.2.1
echo nameserver 198.51.100.53 >/etc/resolv.conf
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
for port in 5000 5002; do nc -l -p $port </tmp/payload & done
for port in 5001 5003; do nc -l -p $port <&4 >/tmp/back-$port & done
"
        )
    };
}

/// Takes the payload, and sends it back, by each network. busybox's nc ends when the other side has no more to say, so a
/// side that only listens keeps its input open.
const GUEST: &str = "mount -t tmpfs tmp /tmp; mkfifo /tmp/hold; exec 4<>/tmp/hold
cat >/tmp/lease <<'END'
[ \"$1\" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip route add default via $router; echo LEASE $ip DNS $dns
END
chmod +x /tmp/lease
ip link set lo up; ip link set eth0 up; ip link set eth1 up
ip addr add 10.0.0.2/24 dev eth0; ping -c 2 -W 60 10.0.0.1 && echo TAP ANSWERS
nc 10.0.0.1 5000 <&4 >/tmp/a; nc 10.0.0.1 5001 </tmp/a; rm /tmp/a
udhcpc -i eth1 -n -q -t 10 -s /tmp/lease
ping -c 2 -W 60 198.51.100.1 && echo PASST ANSWERS
nc 198.51.100.1 5002 <&4 >/tmp/b; echo SUM $(sha256sum </tmp/b); echo READY; read size
mkfifo /tmp/end; { head -c $size /tmp/b; cat /tmp/end; } | nc 198.51.100.1 5003 & read done; echo >/tmp/end";

/// passt of 2023, as in Debian 12, loses the end of what the guest sends if it closes the connection before all has
/// arrived. So this waits. That passt, which does not know its version, also resets connections on which a guest sends
/// more than about 12 MB.
const DRIVE: &str = "ready 2
size=$(stat -c %s /tmp/payload)
cmp /tmp/payload /tmp/back-5001 && echo SAME BY 5001
grep -q \"^SUM $(sha256sum </tmp/payload | cut -c 1-64)\" /tmp/out && echo SAME BY 5002
case $(passt --version) in *unknown*) [ $size -gt 4194304 ] && size=4194304; esac
say $size
until [ $(stat -c %s /tmp/back-5003) -ge $size ]; do kill -0 $vmm || break; sleep 1; done
head -c $size /tmp/payload | cmp - /tmp/back-5003 && echo SAME BY 5003
say done";

const NETWORKS: Case = Case {
    isolated: true,
    virtio: true,
    before: host!("4"),
    guest: GUEST,
    drive: DRIVE,
    expect: &[
        "TAP ANSWERS",
        "LEASE 192.0.2.2 DNS 198.51.100.53",
        "PASST ANSWERS",
        "SAME BY 5001",
        "SAME BY 5002",
        "SAME BY 5003",
    ],
    ..LINUX
};

/// IPv6 for the bed, as the first part of [`host`] has IPv4. Nothing could answer the search for a second owner of the
/// address.
const HOST_6: &str = "ip link set lo up; ip -6 addr add 2001:db8:1::1/128 dev lo
tunctl -t up0 >/dev/null; echo 0 >/proc/sys/net/ipv6/conf/up0/accept_dad; ip link set up0 up
ip -6 addr add fe80::2/64 dev up0; ip -6 addr add 2001:db8::2/64 dev up0; ip -6 route add default via 2001:db8::1 dev up0
ip addr add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range; echo nameserver 198.51.100.53 >/etc/resolv.conf
head -c 4194304 </dev/urandom >/tmp/payload; mkfifo /tmp/hold; exec 4<>/tmp/hold
nc -l -p 5000 </tmp/payload &
nc -l -p 5001 <&4 >/tmp/back-5001 &
";

/// Takes the payload by IPv6 and sends it back, then both by forwarded ports. Like [`GUEST`], it closes no connection
/// before all has arrived.
const GUEST_6: &str = "mount -t tmpfs tmp /tmp; mkfifo /tmp/hold /tmp/end; exec 4<>/tmp/hold
ip link set lo up; ip link set eth0 up
cat >/tmp/lease <<'END'
[ \"$1\" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip route add default via $router
END
chmod +x /tmp/lease; udhcpc -i eth0 -n -q -t 10 -s /tmp/lease
tries=100
until [ $((tries -= 1)) = 0 ] || ip -6 addr show dev eth0 | grep -v tentative | grep -q 'inet6 2001:db8:'; do usleep 100000; done
ping6 -c 2 -W 60 2001:db8:1::1 && echo PASST ANSWERS
nc 2001:db8:1::1 5000 <&4 >/tmp/a
{ cat /tmp/a; cat /tmp/end; } | nc 2001:db8:1::1 5001 & echo READY; read done; echo >/tmp/end; wait
listens() { tries=1000; until [ $((tries -= 1)) = 0 ] || grep -q \":$1 .* 0A \" /proc/net/tcp6; do usleep 10000; done; echo READY; }
nc -l -p 80 <&4 >/tmp/b & listens 0050; wait $!; echo SUM $(sha256sum </tmp/b)
{ cat /tmp/b; cat /tmp/end; } | nc -l -p 81 & listens 0051; read done; echo >/tmp/end";

/// passt of 2023 only acknowledges the guest's SYN with data of the client's, so the client speaks first.
const DRIVE_6: &str = "size=$(stat -c %s /tmp/payload)
all() {
    until [ $(stat -c %s /tmp/back-$1) -ge $size ]; do kill -0 $vmm || break; sleep 1; done
    cmp /tmp/payload /tmp/back-$1 && echo SAME BY $1
    say done
}
ready 2; all 5001
ready 3; nc 127.0.0.1 8080 </tmp/payload
: >/tmp/back-8081; ready 4; { echo; cat <&4; } | nc 127.0.0.1 8081 >/tmp/back-8081 & all 8081
grep -q \"^SUM $(sha256sum </tmp/payload | cut -c 1-64)\" /tmp/out && echo SAME BY 8080";

/// passt alone. A host without IPv4 would be a host without a resolver, too.
const PASST: Case = Case {
    before: HOST_6,
    guest: GUEST_6,
    drive: DRIVE_6,
    arguments: "--net user,forward=8080:80,forward=8081:81",
    expect: &[
        "PASST ANSWERS",
        "SAME BY 5001",
        "SAME BY 8080",
        "SAME BY 8081",
    ],
    ..NETWORKS
};
const PCI: &str = "--net tap=tap0 --net user,forward=8080:80";
const MMIO: &str = "--virtio mmio --net tap=tap0 --net user,forward=8080:80";

/// A tap at whose other end a server has the metadata service's address, and hears nothing.
const METADATA: Case = Case {
    isolated: true,
    virtio: true,
    long: true,
    arguments: "--metadata /tmp/metadata",
    before: "tunctl -t tap0 >/dev/null; ip addr add 169.254.169.254/24 dev tap0; ip link set tap0 up
large=$(seq -w 6000 | tr -d '\\n')
echo '{\"latest\": {\"meta-data\": {\"ami-id\": \"ami-1\", \"large\": \"'$large'\"}}}' >/tmp/metadata
nc -l -p 80 </dev/null >/tmp/heard & server=$!",
    guest: "ip link set lo up; ip link set eth0 up; ip addr add 169.254.169.2/24 dev eth0
at=http://169.254.169.254/latest
token=$(printf 'PUT /latest/api/token HTTP/1.0\\r\\nX-metadata-token-ttl-seconds: 600\\r\\n\\r\\n' |
    nc 169.254.169.254 80 | tail -n 1)
echo ROOT $(wget -q -O - $at || echo REFUSED)
get() { wget -q -O - --header \"X-aws-ec2-metadata-token: $token\" \"$@\"; }
echo NAMES $(get $at/meta-data/)
echo JSON $(get --header 'Accept: application/json' $at/meta-data/ami-id)
[ $(get $at/meta-data/large) = $(seq -w 6000 | tr -d '\\n') ] && echo ALL OF IT
get $at/none || echo NOT FOUND",
    after: "kill $server && [ ! -s /tmp/heard ] && echo NOTHING HEARD",
    expect: &[
        "NAMES ami-id large",
        "JSON \"ami-1\"",
        "NOT FOUND",
        "ALL OF IT",
        "NOTHING HEARD",
    ],
    ..LINUX
};
const V1: Option<&str> = Some(
    r#""network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}], "mmds-config": {"network_interfaces": ["eth0"]}"#,
);
const V2: Option<&str> = Some(
    r#""network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}], "mmds-config": {"network_interfaces": ["eth0"], "version": "V2"}"#,
);

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "6.1-net-pci", image: Image::Debian(Series::V6_1), arguments: PCI, ..NETWORKS },
    Case { name: "6.12-net-mmio", image: Image::Debian(Series::V6_12), arguments: MMIO, long: true, ..NETWORKS },
    Case { name: "6.1-net-100M", image: Image::Debian(Series::V6_1), arguments: MMIO, before: host!("100"),
        long: true, ..NETWORKS },
    Case { name: "6.1-metadata-v1", image: Image::Debian(Series::V6_1), firecracker: V1,
        also_expect: &["ROOT meta-data/"], ..METADATA },
    Case { name: "6.12-metadata-v2", image: Image::Debian(Series::V6_12), cpus: 2, firecracker: V2,
        also_expect: &["ROOT REFUSED"], ..METADATA },
    Case { name: "6.12-net-100M", image: Image::Debian(Series::V6_12), arguments: PCI, cpus: 2, before: host!("100"),
        long: true, ..NETWORKS },
    Case { name: "6.1-passt", image: Image::Debian(Series::V6_1), ..PASST },
];

/// Debian's passt.
pub fn passt() -> Result<PathBuf> {
    let tree = Tree {
        name: "passt",
        pattern: "^passt$",
        choose: &|offered| (!offered.is_empty()).then(|| offered.to_vec()),
    };
    let found = tree.cached(&|place| {
        let program = place.join("usr/bin/passt");
        let found = program.is_file().then_some(program);
        found.with_context(|| format!("{} holds no passt", place.display()))
    })?;
    found.context("Debian offers no passt for this machine")
}

/// `script` in a network and a mount namespace of its own. passt gives up its root file system, which can't be the
/// bed's initial one.
pub fn isolated(script: &str) -> String {
    format!(
        r#"cat >/tmp/isolated <<'END-OF-SCRIPT'
{script}
END-OF-SCRIPT
cat >/tmp/enter <<'END-OF-SCRIPT'
mkdir -p /tmp/root; mount -t tmpfs root /tmp/root; cd /tmp/root
mkdir -m 1777 tmp; mkdir etc
for part in bin dev guest lib lib64 proc sys; do mkdir $part; mount --rbind /$part $part; done
cp /tmp/isolated tmp/script
echo nobody:x:65534:65534::/:/bin/sh >etc/passwd; echo nobody:x:65534: >etc/group
mount --move . /; exec chroot . sh /tmp/script
END-OF-SCRIPT
unshare -m -n sh /tmp/enter
"#
    )
}
