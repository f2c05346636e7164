// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines that clients of the API describe, start and control.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use std::{fs, iter};

use bare::ctl::{ctl, ctl_fails};
use bare::http::Client;
use bare::virtio::{DISK, by_mmio};
use bare::{Asm, Running, Vm, guest};
use mini_vmm::layout;
use rustix::process::Signal;

/// A port without a device. Writes to it show that the guest runs.
const NOWHERE: u16 = 0x1234;

/// Exits in an endless loop.
fn busy_guest() -> Asm {
    guest(|asm| {
        asm.forever(|asm| {
            asm.out(NOWHERE, 0);
        });
    })
}

/// Powers off when its button is pressed.
fn obedient_guest() -> Asm {
    guest(|asm| {
        asm.until_equal(|asm| {
            asm.input(layout::GED_EVENTS)
                .compare_al(layout::GED_POWER_BUTTON);
        });
        asm.power_off();
    })
}

/// A waiting process, a client of it, and its socket.
fn waiting(test: &str, guest: &Asm) -> Option<(Running, Client, PathBuf)> {
    let mut vm = Vm::waiting(test, guest)?;
    let api = vm.path("api");
    let mut running = vm.start();
    let client = Client::connect(&mut running, &api);
    Some((running, client, api))
}

#[test]
fn four_requests_boot_a_guest_whose_end_is_that_of_the_process() {
    let test = "four_requests_boot_a_guest_whose_end_is_that_of_the_process";
    let guest = guest(|asm| {
        asm.print("hello").power_off();
    });
    let Some((running, mut client, api)) = waiting(test, &guest) else {
        return;
    };
    assert_eq!(
        fs::metadata(&api).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(client.state(), "Not started");
    client.describe();
    client.act("InstanceStart");
    running.end().expect(0).printed("hello");
    assert!(!api.exists());
}

#[test]
fn a_guest_pauses_resumes_and_obeys_its_button() {
    let test = "a_guest_pauses_resumes_and_obeys_its_button";
    let Some((running, mut client, _)) = waiting(test, &obedient_guest()) else {
        return;
    };
    client.describe();
    client.act("InstanceStart");
    assert_eq!(client.state(), "Running");
    client.let_it_run();
    client.set_state("Paused");
    assert_eq!(client.state(), "Paused");
    let exits = client.exits();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(client.exits(), exits);
    client.set_state("Resumed");
    client.let_it_run();
    for (method, path, body) in [
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
        ),
        ("PATCH", "/machine-config", r#"{"vcpu_count": 1}"#),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "kernel"}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/serial", "{}"),
        ("PATCH", "/options", "{}"),
    ] {
        client.refused(method, path, body, "after starting the microVM");
    }
    assert_eq!(client.get("/machine-config")["mem_size_mib"], 32);
    client.act("SendCtrlAltDel");
    running.end().expect(0);
}

#[test]
fn a_machine_that_can_not_start_can_be_mended() {
    let test = "a_machine_that_can_not_start_can_be_mended";
    let Some((running, mut client, api)) = waiting(
        test,
        &guest(|asm| {
            asm.power_off();
        }),
    ) else {
        return;
    };
    client.describe();
    let path = api.with_file_name("no-kernel");
    fs::write(&path, "text").unwrap();
    client.done(
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "no-kernel"}"#,
    );
    let start = r#"{"action_type": "InstanceStart"}"#;
    client.refused("PUT", "/actions", start, "no-kernel");
    assert_eq!(client.state(), "Not started");
    client.describe();
    client.act("InstanceStart");
    running.end().expect(0);
}

#[test]
fn a_machine_of_the_command_line_starts_at_once_and_can_be_controlled() {
    let test = "a_machine_of_the_command_line_starts_at_once_and_can_be_controlled";
    let Some(mut vm) = Vm::new(test, &busy_guest()) else {
        return;
    };
    let api = vm.path("api");
    vm.args(["--sealed", "on"]);
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    // A command waits for a machine that is still loading.
    client.set_state("Resumed");
    assert_eq!(client.state(), "Running");
    client.let_it_run();
    let config = client.get("/vm/config");
    assert_eq!(config["boot-source"]["kernel_image_path"], "kernel");
    client.refused("PUT", "/entropy", "{}", "after starting");
    client.refused("PUT", "/logger", r#"{"log_path": "log"}"#, "sealed");
    client.done("PUT", "/logger", r#"{"level": "Error"}"#);
    client.act("Stop");
    running.end().expect(0);
    assert!(!api.exists());

    // Its failure is that of the process, as without an API.
    let mut vm = Vm::of_file(b"text");
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    vm.run().expect(1).says(&["kernel"]);
    assert!(!api.exists());
}

#[test]
fn signals_end_a_process_in_every_state() {
    let test = "signals_end_a_process_in_every_state";
    let Some((running, _client, api)) = waiting(test, &busy_guest()) else {
        return;
    };
    running.signal(Signal::TERM);
    running.end().expect(143);
    assert!(!api.exists());

    let Some((running, mut client, _)) = waiting(test, &obedient_guest()) else {
        return;
    };
    client.describe();
    client.act("InstanceStart");
    client.set_state("Paused");
    running.signal(Signal::TERM);
    running.end().expect(0).says(&["power button"]);
}

#[test]
fn clients_that_contradict_each_other_or_vanish_harm_nothing() {
    let test = "clients_that_contradict_each_other_or_vanish_harm_nothing";
    let Some((mut running, mut client, api)) = waiting(test, &busy_guest()) else {
        return;
    };
    assert_eq!(client.state(), "Not started");
    let threads = fs::read_dir(format!("/proc/{}/task", running.id()))
        .unwrap()
        .count();
    assert_eq!(threads, 2, "the main thread, and that of the API");
    client.describe();
    client.act("InstanceStart");
    let others: Vec<_> = ["Paused", "Resumed", "Paused", "Resumed"]
        .map(|state| {
            let mut client = Client::connect(&mut running, &api);
            thread::spawn(move || (0..25).for_each(|_| client.set_state(state)))
        })
        .into();
    for round in 0..25 {
        let mut vanishing = Client::connect(&mut running, &api);
        let request = b"PATCH /vm HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"state\": \"Resumed\"}";
        vanishing.send(&request[..request.len() - round % request.len()]);
        drop(vanishing);
        assert!(["Running", "Paused"].contains(&&*client.state()));
    }
    others.into_iter().for_each(|other| other.join().unwrap());
    client.set_state("Resumed");
    client.let_it_run();
    client.act("Stop");
    running.end().expect(0);
}

/// Numbers that look random.
fn random(seed: u64) -> impl Iterator<Item = u64> {
    let next = |state: &u64| {
        Some(
            state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407),
        )
    };
    iter::successors(Some(seed), next).map(|state| state >> 33)
}

/// What a request leads to, or `None` if it is refused.
fn model(state: &str, request: usize) -> Option<&'static str> {
    match (state, request) {
        ("Not started", 0 | 1) => Some("Not started"),
        ("Not started", 2) => Some("Running"),
        ("Running" | "Paused", 3) => Some("Paused"),
        ("Running" | "Paused", 4) => Some("Running"),
        ("Running", 5) => Some("Running"),
        ("Paused", 5) => Some("Paused"),
        _ => None,
    }
}

#[test]
fn random_requests_never_leave_the_model() {
    let requests = [
        ("PUT", "/boot-source", r#"{"kernel_image_path": "kernel"}"#),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
        ),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PUT", "/balloon", "{}"),
        ("PATCH", "/vm", "{"),
    ];
    let mut seen = BTreeSet::new();
    for seed in 0..3 {
        let test = "random_requests_never_leave_the_model";
        let Some((running, mut client, _)) = waiting(test, &busy_guest()) else {
            return;
        };
        client.describe();
        let mut state = "Not started";
        for random in random(seed).take(80) {
            let request = random as usize % requests.len();
            let (method, path, body) = requests[request];
            let answer = client.ask(method, path, body).unwrap();
            let next = model(state, request);
            let status = if next.is_some() { 204 } else { 400 };
            assert_eq!(answer.status, status, "{state}, {path} {body}: {answer:?}");
            state = next.unwrap_or(state);
            assert_eq!(client.state(), state, "after {path} {body}");
            seen.insert(state);
        }
        client.act("Stop");
        running.end().expect(0);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

/// A guest that checks for a disk of `sectors` at the first MMIO window, prints the end of its command line, and resets
/// as Linux does with `reboot=k`.
fn firecracker_guest(sectors: u32, line: usize) -> Asm {
    guest(|asm| {
        let window = layout::VIRTIO_MMIO;
        asm.load(window).expect_eax(0x7472_6976, 1);
        asm.load(window + 8).expect_eax(2, 2);
        asm.load(window + 0x100).expect_eax(sectors, 3);
        asm.show(layout::CMDLINE, line as u32);
        asm.out(layout::I8042_STATUS, 0xfe).halt();
    })
}

#[test]
fn under_its_name_it_is_firecracker() {
    let line = "quiet pci=off root=/dev/vda ro virtio_mmio.device=0x1000@0xd0000000:1";
    let guest = firecracker_guest(3, line.len());
    let Some(mut vm) = Vm::waiting("under_its_name_it_is_firecracker", &guest) else {
        return;
    };
    let config = r#"{
        "boot-source": {"kernel_image_path": "kernel", "boot_args": "quiet"},
        "drives": [{"drive_id": "r", "path_on_host": "disk", "is_root_device": true, "is_read_only": true}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32}
    }"#;
    fs::write(vm.path("disk"), [0; 3 * 512]).unwrap();
    fs::write(vm.path("config"), config).unwrap();
    let name = vm.path("firecracker");
    std::os::unix::fs::symlink(bare::program(), &name).unwrap();
    let mut command = |args: &[&str]| {
        let mut command = std::process::Command::new(&name);
        command.args(args).current_dir(name.parent().unwrap());
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        vm.command = command;
        vm.start()
    };
    let ended = command(&["--no-api", "--config-file", "config"]).end();
    ended.expect(0).printed(line);
    let version = command(&["--version"]).end();
    assert!(version.expect(0).stdout.starts_with(b"Firecracker v1."));

    // The same by requests.
    let mut running = command(&["--api-sock", "api", "--id", "vm-1"]);
    let api = name.with_file_name("api");
    let mut client = Client::connect(&mut running, &api);
    let instance = client.get("/");
    assert_eq!(
        (&instance["id"], &instance["app_name"]),
        (&"vm-1".into(), &"Firecracker".into())
    );
    assert_eq!(
        instance["vmm_version"],
        client.get("/version")["firecracker_version"]
    );
    client.done(
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "kernel", "boot_args": "quiet"}"#,
    );
    client.done(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
    );
    let drive = r#"{"drive_id": "r", "path_on_host": "disk", "is_root_device": true, "is_read_only": true}"#;
    client.done("PUT", "/drives/r", drive);
    client.act("InstanceStart");
    running.end().expect(0).printed(line);
}

#[test]
fn clients_find_the_threads_of_a_firecracker() {
    let Some(mut vm) = Vm::waiting("clients_find_the_threads_of_a_firecracker", &busy_guest())
    else {
        return;
    };
    let api = vm.path("api");
    let mut command = std::process::Command::new(bare::program());
    command.args(["firecracker", "--api-sock", "api"]);
    command
        .current_dir(api.parent().unwrap())
        .stdin(std::process::Stdio::null());
    vm.command = command;
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.done(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 2, "mem_size_mib": 32}"#,
    );
    client.done("PUT", "/boot-source", r#"{"kernel_image_path": "kernel"}"#);
    client.act("InstanceStart");
    client.let_it_run();
    let tasks = fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let names: BTreeSet<String> = names.map(|name| name.trim_end().to_owned()).collect();
    for name in ["fc_vcpu 0", "fc_vcpu 1", "api"] {
        assert!(names.contains(name), "{names:?}");
    }
    client.act("Stop");
    running.end().expect(0);
}

#[test]
fn a_running_guest_learns_of_a_larger_disk() {
    let guest = by_mmio(&DISK, |asm| {
        asm.load(layout::VIRTIO_MMIO + 0x100).compare_eax(2048);
        asm.if_equal(|asm| {
            asm.power_off();
        });
    });
    let test = "a_running_guest_learns_of_a_larger_disk";
    let Some((mut running, mut client, api)) = waiting(test, &guest) else {
        return;
    };
    let disk = api.with_file_name("disk");
    fs::write(&disk, [0; 1024 * 512]).unwrap();
    client.describe();
    client.done("PATCH", "/options", r#"{"virtio": "mmio"}"#);
    client.done(
        "PUT",
        "/drives/d",
        r#"{"path_on_host": "disk", "is_root_device": false}"#,
    );
    client.act("InstanceStart");
    // Its driver runs once it has written.
    while fs::read(&disk).unwrap()[512..516] == [0; 4] {
        assert!(running.is_alive(), "{running:?}");
        thread::yield_now();
    }
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.set_len(2048 * 512).unwrap();
    client.done(
        "PATCH",
        "/drives/d",
        r#"{"drive_id": "d", "path_on_host": "disk"}"#,
    );
    running.end().expect(0);
}

/// Nothing of this needs a machine, either.
#[test]
fn the_log_changes_its_place_and_level_while_the_process_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut vm = Vm::of_kernel(&path("kernel"));
    let mut command = std::process::Command::new(bare::program());
    command.args([
        "firecracker",
        "--api-sock",
        "api",
        "--log-path",
        "first",
        "--level",
        "info",
    ]);
    command.current_dir(dir.path()).env_remove("MINI_VMM_LOG");
    command.stderr(std::process::Stdio::piped());
    vm.command = command;
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &path("api"));
    let log = |name: &str| fs::read_to_string(path(name)).unwrap();
    client.refused("PUT", "/entropy", "[]", "object");
    client.get("/version");
    assert!(
        log("first").contains("info: API: PUT /entropy: [] is not"),
        "{}",
        log("first")
    );
    assert!(!log("first").contains("/version"), "{}", log("first"));
    let logger = &client.get("/vm/config")["logger"];
    assert_eq!(
        (&logger["log_path"], &logger["level"]),
        (&"first".into(), &"info".into())
    );
    client.done(
        "PUT",
        "/logger",
        r#"{"log_path": "second", "level": "Debug", "show_level": true}"#,
    );
    client.get("/version");
    assert!(log("second").contains("GET /version"), "{}", log("second"));
    fs::write(path("kernel"), "bytes").unwrap();
    let source = format!(r#"{{"kernel_image_path": {:?}}}"#, path("kernel"));
    client.done("PUT", "/boot-source", &source);
    client.refused("PUT", "/logger", r#"{"log_path": "kernel"}"#, "made from");
    assert_eq!(log("kernel"), "bytes");
    client.done("PUT", "/logger", r#"{"level": "Info"}"#);
    assert_eq!(client.get("/vm/config")["logger"]["log_path"], "second");
    let before = log("second");
    client.done("PUT", "/logger", r#"{"level": "Off"}"#);
    client.refused("PUT", "/entropy", "[]", "object");
    assert_eq!(log("second"), before);
    client.act("Stop");
    running.end().expect(0).silent();
}

#[test]
fn people_control_a_machine_from_another_terminal() {
    let test = "people_control_a_machine_from_another_terminal";
    let Some((running, mut client, api)) = waiting(test, &obedient_guest()) else {
        return;
    };
    assert!(ctl(&api, &["info"]).contains("state: Not started\n"));
    ctl_fails(&api, &["start"], "kernel_image_path: ");
    ctl_fails(&api, &["pause"], "before starting");
    client.describe();
    assert_eq!(ctl(&api, &["start"]), "Running\n");
    client.let_it_run();
    assert_eq!(ctl(&api, &["pause", "--json"]), "{\"state\":\"Paused\"}\n");
    assert_eq!(client.state(), "Paused");
    let info: serde_json::Value = serde_json::from_str(&ctl(&api, &["info", "--json"])).unwrap();
    assert_eq!(
        (&info["state"], &info["mem_size_mib"]),
        (&"Paused".into(), &32.into())
    );
    assert!(info["exits"].is_array(), "{info}");
    let config: serde_json::Value = serde_json::from_str(&ctl(&api, &["config"])).unwrap();
    assert_eq!(config, client.get("/options"));
    assert!(ctl(&api, &["metrics"]).contains("# TYPE "));
    assert_eq!(ctl(&api, &["resume"]), "Running\n");
    assert_eq!(client.state(), "Running");
    assert_eq!(ctl(&api, &["power-button"]), "Ended\n");
    running.end().expect(0);
    ctl_fails(&api, &["info"], "is mini-vmm running with --api-sock?");

    let Some((running, mut client, api)) = waiting(test, &busy_guest()) else {
        return;
    };
    client.describe();
    ctl(&api, &["start"]);
    assert_eq!(ctl(&api, &["stop"]), "Ended\n");
    running.end().expect(0);
}

/// Nothing of this needs a machine, so it also runs without KVM.
#[test]
fn bad_sockets_are_refused_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let refuse = |path: &Path, why: &str| {
        let mut vm = Vm::of_kernel(&file);
        vm.args(["--api-sock".as_ref(), path.as_os_str()]);
        vm.run().expect(1).says(&[why]);
    };
    refuse(&file, "is no socket and is left alone");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    refuse(&dir.path().join("no/such"), "the API socket can't be made");
    let taken = dir.path().join("taken");
    let listener = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    refuse(&taken, "another process listens");
    // Also for copies in programs that other tests are starting.
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
    refuse(&taken, "left by a process that has ended; remove it");
}
