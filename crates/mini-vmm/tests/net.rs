// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Networks that can't be used, from a user's view. Nothing here needs /dev/kvm.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

mod bare;

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bare::namespace::{is_inside, make_tap, shell};
use rustix::io::{FdFlags, fcntl_setfd};
use virtio_models::net::{Link, Tap};

/// What the serial console's file has before the run.
const BEFORE: &str = "output of an earlier run\n";

/// The one sentence about a machine with these networks. `passt` is a script in place of passt. Nothing may have changed.
fn refusal(nets: &[&str], passt: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let serial = dir.path().join("serial");
    fs::write(&serial, BEFORE).unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    if let Some(script) = passt {
        let path = dir.path().join("bin/passt");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(bare::program());
    command.env_remove("MINI_VMM_LOG").stdin(Stdio::null());
    command.env("PATH", dir.path().join("bin"));
    command.args([
        "--kernel",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    ]);
    command.arg(format!("--serial=file={}", serial.display()));
    command.args(nets.iter().map(|net| format!("--net={net}")));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{nets:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{nets:?}: {output:?}");
    assert_eq!(fs::read_to_string(&serial).unwrap(), BEFORE, "{nets:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("mini-vmm: error: "), "{nets:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{nets:?}: {text}");
    text
}

fn check(nets: &[&str], passt: Option<&str>, part: &str) {
    let text = refusal(nets, passt);
    assert!(text.contains(part), "{nets:?}: {text} lacks {part:?}");
}

#[test]
fn each_bad_network_is_one_sentence() {
    let same_mac = ["user,mac=02:00:00:00:00:01", "tap=a,mac=02:00:00:00:00:01"];
    let cases: &[(&[&str], &str)] = &[
        (
            &["tap=no-such-tap"],
            "there is no network interface \"no-such-tap\": make it",
        ),
        (&["tap=a/b"], "is no name of a network interface"),
        (
            &["tap=a-name-that-is-too-long"],
            "is no name of a network interface",
        ),
        (&["fd=1000"], "no such descriptor is open"),
        (&["fd=4294967296"], "no such descriptor is open"),
        (&["fd=0"], "is not an open tap"),
        (
            &["tap=a", "tap=a"],
            "two networks have tap=a; give each one its own",
        ),
        (&["fd=5", "fd=5"], "two networks have fd=5"),
        (
            &same_mac,
            "two networks have the MAC address 02:00:00:00:00:01",
        ),
        (&["tap=a,mac=01:00:5e:00:00:01"], "is a multicast address"),
        (&["tap=a,mac=ff:ff:ff:ff:ff:ff"], "is the broadcast address"),
        (&["tap=a,mac=00:00:00:00:00:00"], "is no address; give"),
        (&["tap=a,mtu=67"], "is not a number of bytes from 68"),
        (&["tap=a,queues=0"], "queue pairs from 1 to"),
        (&["fd=3,queues=2"], "have one pair of queues"),
        (&["user,forward=1:2,forward=1:3"], "is forwarded twice"),
        (
            &["user"; 33],
            "33 networks are too many; give the machine at most 32",
        ),
        (&["user"], "install the package passt"),
    ];
    for (nets, part) in cases {
        check(nets, None, part);
    }
}

#[test]
fn a_passt_that_does_not_start_says_why() {
    let fails = "echo Failed to do it >&2; exit 1";
    check(
        &["user"],
        Some(fails),
        "passt can't start: Failed to do it; ",
    );
    check(
        &["user"],
        Some("exit 7"),
        "passt can't start: it gave no reason (exit status: 7)",
    );
    check(
        &["user"],
        Some("kill -9 $$"),
        "passt can't start: it gave no reason (signal: 9",
    );
}

/// passt is not even asked.
#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let net = format!("user,forward={port}:80");
    check(&[&net], None, &format!(":{port} is in use on the host"));
    check(
        &["user,forward=203.0.113.7/8080:80"],
        None,
        "is not an address of this host",
    );
}

/// A passt that starts is not what stops a machine, whose kernel is none.
#[test]
fn a_good_passt_is_not_refused() {
    if !bare::has_kvm("a_good_passt_is_not_refused") {
        return;
    }
    check(&["user"], Some("exit 0"), "Cargo.toml");
}

#[test]
fn each_bad_tap_is_one_sentence() {
    if !is_inside("each_bad_tap_is_one_sentence") {
        return;
    }
    assert!(make_tap("good", "") && make_tap("busy", ""));
    let busy = Tap::open("busy", 1).unwrap();
    check(&["tap=lo"], None, "\"lo\" is not a tap");
    check(&["tap=busy"], None, "\"busy\" is in use by another process");
    check(&["tap=good,queues=2"], None, "\"good\" has a single queue");
    // The same one by its name and by a descriptor.
    let fd = busy[0].source();
    fcntl_setfd(fd, FdFlags::empty()).unwrap();
    let number = format!("fd={}", fd.as_raw_fd());
    check(
        &["tap=good", &number, "tap=good"],
        None,
        "two networks have tap=good",
    );
    let again = rustix::io::dup(fd.as_fd()).unwrap();
    let second = format!("fd={}", again.as_raw_fd());
    check(&[&number, &second], None, "two networks use the tap busy");
    let missing = refusal(&["tap=missing"], None);
    assert!(
        missing.contains("there is no network interface"),
        "{missing}"
    );
    shell("! ip link show dev missing 2>/dev/null");
    if bare::has_kvm("each_bad_tap_is_one_sentence") {
        // Only the kernel is wrong.
        check(&["tap=good", &number], None, "Cargo.toml");
    }
    if make_tap("many", "multi_queue") {
        let taps = Tap::open("many", 2).unwrap();
        assert_eq!(taps.len(), 2);
        drop(taps);
        if bare::has_kvm("each_bad_tap_is_one_sentence") {
            check(&["tap=many,queues=2"], None, "Cargo.toml");
            check(&["tap=many"], None, "Cargo.toml");
        }
        shell("ip tuntap add dev other mode tun");
        check(&["tap=other"], None, "\"other\" is not a tap");
    }
}

/// Where everybody may use /dev/net/tun, as usual, another user runs the command.
const AS_ANOTHER_USER: &str = "mount -t tmpfs net /dev/net; mknod -m 666 /dev/net/tun c 10 200
    exec setpriv --reuid=65534 --clear-groups --bounding-set=-all --inh-caps=-all \"$@\"";

/// Root made the tap for a third user.
#[test]
fn a_foreign_tap_is_named() {
    let test = "a_foreign_tap_is_named";
    let mut probe = Command::new("unshare");
    probe.args(["-m", "sh", "-ec", AS_ANOTHER_USER, "sh", "true"]);
    if !probe.output().is_ok_and(|ran| ran.status.success()) {
        eprintln!("SKIP: {test}: no command can be run as another user");
        return;
    }
    if !is_inside(test) {
        return;
    }
    shell("ip tuntap add dev foreign mode tap user 1");
    // A copy, since the build's directory may be out of this user's reach.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("mini-vmm");
    fs::copy(bare::program(), &program).unwrap();
    fs::write(dir.path().join("kernel"), "no kernel").unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", AS_ANOTHER_USER, "sh"]);
    command
        .arg(program)
        .arg("--kernel")
        .arg(dir.path().join("kernel"));
    let output = command
        .args(["--serial=off", "--net=tap=foreign"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("\"foreign\" belongs to another user"),
        "{text}"
    );
}
