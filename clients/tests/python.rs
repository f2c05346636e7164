// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients from PyPI: `python/` has a script for each. They make taps, rules and directories as root, so each runs in
//! namespaces of its own. The environment variable `MINI_VMM_CLIENTS_PYTHON` names a Python that has them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use mini_vmm_clients::Place;

/// Gives the namespaces a way out, for the clients that look for one, and an empty /var/lib. Then runs a program.
const ENTER: &str = "ip link set lo up
    ip tuntap add dev out0 mode tap
    ip address add 192.0.2.1/24 dev out0
    ip link set out0 up
    ip route add default via 192.0.2.2
    mount -t tmpfs tmpfs /var/lib
    exec \"$@\"";

/// A shell's command line in new namespaces. What it leaves behind ends with it.
fn inside(arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "sh", "-ec", ENTER, "sh"]);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Programs: mini-vmm under Firecracker's name, a sudo that has nothing to do, and others that need not be here.
fn programs(place: &Place) {
    fs::create_dir(place.path("bin")).unwrap();
    // smolvm follows links, and would lose the name.
    fs::copy(place.path("firecracker"), place.path("bin/firecracker")).unwrap();
    for (name, line) in [
        ("sudo", "[ \"$1\" = -n ] && shift\nexec \"$@\""),
        ("iptables", ""),
        ("ssh", ""),
    ] {
        let path = place.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// Runs `python/SCRIPT.py`.
fn run(script: &str) {
    let Some(place) = Place::new(script) else {
        return;
    };
    let probe = inside(&["true"]).output().unwrap();
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr).into_owned();
        eprintln!(
            "SKIP: {script}: this host makes no namespaces with a tap: {}",
            why.trim()
        );
        return;
    }
    let python = std::env::var("MINI_VMM_CLIENTS_PYTHON");
    let python = python.expect("MINI_VMM_CLIENTS_PYTHON names no Python");
    programs(&place);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("python/{script}.py"));
    let home = place.path("");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}bin:{path}", home.display());
    let mut run = inside(&[
        &python,
        script.to_str().unwrap(),
        home.to_str().unwrap().trim_end_matches('/'),
    ]);
    run.env("HOME", &home)
        .env("USER", "root")
        .env("PATH", path)
        .env_remove("SUDO_USER");
    let output = run.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn bandsox_lives() {
    run("bandsox_lives");
}

#[test]
fn bandsox_snapshots() {
    run("bandsox_snapshots");
}

#[test]
fn bunkervm_lives() {
    run("bunkervm_lives");
}

#[test]
fn dud_lives() {
    run("dud_lives");
}

#[test]
fn firecracker_python_lives() {
    run("firecracker_python_lives");
}

#[test]
fn firecracker_python_snapshots() {
    run("firecracker_python_snapshots");
}

#[test]
fn microheart_lives() {
    run("microheart_lives");
}

#[test]
fn smolvm_lives() {
    run("smolvm_lives");
}

#[test]
fn smolvm_snapshots() {
    run("smolvm_snapshots");
}
