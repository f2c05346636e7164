// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a user sees and can do while images are loaded. Here they come from pipes that never end. No guest runs.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use bare::http::Client;
use bare::{Running, Vm, elf, guest};
use rustix::process::Signal;
use tempfile::TempDir;

/// A directory with a FIFO in it.
struct Fifo(TempDir);

impl Fifo {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), 0o600.into()).unwrap();
        Fifo(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fifo")
    }

    /// Opens it for writing, which waits until the program has opened it for reading.
    fn open(&self) -> File {
        OpenOptions::new().write(true).open(self.path()).unwrap()
    }
}

/// Starts a machine whose kernel is a pipe, and starts writing to it.
fn start(fifo: &Fifo, args: &[&str]) -> (Running, File) {
    let mut vm = Vm::of_kernel(&fifo.path());
    let running = vm.args(args).start();
    let mut pipe = fifo.open();
    pipe.write_all(b"\x7fELF").unwrap();
    (running, pipe)
}

#[test]
fn signals_end_the_loading_of_a_kernel() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let fifo = Fifo::new();
        let (running, _pipe) = start(&fifo, &[]);
        running.signal(signal);
        running.end().expect(code).silent();
    }
}

#[test]
fn signals_end_the_loading_of_an_initrd() {
    let fifo = Fifo::new();
    let mut vm = Vm::of_file(b"\x7fELF");
    let running = vm
        .args(["--initrd".as_ref(), fifo.path().as_os_str()])
        .start();
    let _pipe = fifo.open();
    running.signal(Signal::TERM);
    running.end().expect(143).silent();
}

#[test]
fn the_timeout_counts_while_images_are_loaded() {
    // The pipe has no writer.
    let fifo = Fifo::new();
    let mut vm = Vm::of_kernel(&fifo.path());
    vm.args(["--timeout", "100ms"]).run().expect(36).silent();
}

#[test]
fn long_loading_is_told() {
    let fifo = Fifo::new();
    let (mut running, mut pipe) = start(&fifo, &[]);
    pipe.write_all(&vec![0; 3 << 20]).unwrap();
    running.await_stderr("mini-vmm: reading the kernel: 3 MiB so far\n");
    running.signal(Signal::TERM);
    running.end().expect(143);
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let fifo = Fifo::new();
    // Like nohup.
    let vm = Vm::of_kernel(&fifo.path()).through("trap '' HUP; exec \"$@\"");
    let mut running = { vm }.start();
    let _pipe = fifo.open();
    running.signal(Signal::HUP);
    running.await_stderr("mini-vmm: reading the kernel: ");
    running.signal(Signal::TERM);
    running.end().expect(143);
}

#[test]
fn a_pipe_is_judged_as_a_file_is() {
    let fifo = Fifo::new();
    let path = fifo.path();
    let mut vm = Vm::of_kernel(&path);
    let running = vm.start();
    fs::write(&path, "").unwrap();
    let message = format!(
        "kernel {} is a pipe that brings nothing; check what writes to it",
        path.display()
    );
    running.end().expect(1).says(&[&message]);

    // More than the machine's memory.
    let mut vm = Vm::of_kernel(&path);
    let running = vm.args(["--memory", "32M"]).start();
    let mut pipe = fifo.open();
    while pipe.write_all(&[0; 65536]).is_ok() {}
    running
        .end()
        .expect(1)
        .says(&["more than the 32 MiB of memory"]);
}

#[test]
fn what_is_missing_is_told_before_a_pipe_is_waited_for() {
    let fifo = Fifo::new();
    let missing = Path::new("/nonexistent/initrd");
    let mut vm = Vm::of_kernel(&fifo.path());
    vm.args(["--initrd".as_ref(), missing.as_os_str()]);
    vm.run()
        .expect(1)
        .says(&["initrd /nonexistent/initrd can't be opened"]);
}

const START: &str = r#"{"action_type": "InstanceStart"}"#;
const STOP: &str = r#"{"action_type": "Stop"}"#;
const PAUSE: &str = r#"{"state": "Paused"}"#;

/// A process that clients have told to load a kernel from `fifo`: the client that waits for it, and another one.
fn ordered(fifo: &Fifo, vm: Vm) -> (Running, [Client; 2]) {
    let mut vm = vm.undescribed();
    let api = vm.path("api");
    let mut running = vm.start();
    let mut clients = [(); 2].map(|()| Client::connect(&mut running, &api));
    let path = fifo.path();
    let boot = format!(r#"{{"kernel_image_path": {path:?}, "boot_args": ""}}"#);
    clients[0].describe();
    clients[0].done("PUT", "/boot-source", &boot);
    clients[0].begin("PUT", "/actions", START);
    (running, clients)
}

#[test]
fn others_are_served_while_a_machine_loads_and_a_stop_ends_it() {
    let fifo = Fifo::new();
    let vm = Vm::of_file(b"x");
    let api = vm.path("api");
    let (mut running, [mut starter, mut other]) = ordered(&fifo, vm);
    let _pipe = fifo.open();
    assert_eq!(other.state(), "Not started");
    assert_eq!(other.get("/machine-config")["mem_size_mib"], 32);
    for (method, path, body) in [
        ("PUT", "/actions", START),
        ("PUT", "/entropy", "{}"),
        ("PATCH", "/options", "{}"),
    ] {
        other.refused(method, path, body, "still loading");
    }
    // One waits for the machine, one has gone, and one is killed within its request.
    let [mut waiting, mut gone, mut cut] = [(); 3].map(|()| Client::connect(&mut running, &api));
    waiting.begin("PATCH", "/vm", PAUSE);
    gone.begin("PATCH", "/vm", PAUSE);
    drop(gone);
    cut.send(b"PATCH /vm HTTP/1.1\r\nContent-Length: 20\r\n\r\n{");
    drop(cut);
    let mut ctl = std::process::Command::new(bare::program());
    ctl.arg("ctl").arg(&api).arg("pause");
    let mut killed = ctl.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut told = [0];
    // It says what it waits for.
    std::io::Read::read_exact(&mut killed.stderr.take().unwrap(), &mut told).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(other.state(), "Not started");
    other.done("PUT", "/actions", STOP);
    starter.is_refused("has ended");
    waiting.is_refused("has ended");
    running.end().expect(0).silent();
}

#[test]
fn a_signal_ends_the_loading_that_a_client_ordered() {
    let fifo = Fifo::new();
    let (running, [mut starter, _]) = ordered(&fifo, Vm::of_file(b"x"));
    let _pipe = fifo.open();
    running.signal(Signal::TERM);
    starter.is_refused("has ended");
    running.end().expect(143).silent();
}

#[test]
fn a_load_that_fails_is_answered_and_another_machine_can_be_described() {
    let fifo = Fifo::new();
    let vm = Vm::of_file(b"x");
    let api = vm.path("api");
    let (mut running, [mut starter, mut other]) = ordered(&fifo, vm);
    let pipe = fifo.open();
    let mut waiting = Client::connect(&mut running, &api);
    waiting.begin("PATCH", "/vm", PAUSE);
    assert_eq!(other.state(), "Not started");
    drop(pipe);
    starter.is_refused("brings nothing");
    waiting.is_refused("before starting");
    for client in [&mut starter, &mut other] {
        assert_eq!(client.state(), "Not started");
        client.describe();
    }
    other.done("PUT", "/actions", STOP);
    running.end().expect(0).silent();
}

#[test]
fn clients_see_and_stop_the_loading_that_the_command_line_ordered() {
    let fifo = Fifo::new();
    let mut vm = Vm::of_kernel(&fifo.path());
    let api = vm.path("api");
    let mut running = vm.args(["--api-sock".as_ref(), api.as_os_str()]).start();
    let mut client = Client::connect(&mut running, &api);
    let _pipe = fifo.open();
    assert_eq!(client.state(), "Not started");
    client.done("PUT", "/actions", STOP);
    running.end().expect(0).silent();
}

#[test]
fn a_guest_starts_once_its_kernel_has_come() {
    let test = "a_guest_starts_once_its_kernel_has_come";
    let guest = guest(|asm| {
        asm.print("hello").power_off();
    });
    let Some(vm) = Vm::new(test, &guest) else {
        return;
    };
    let fifo = Fifo::new();
    let api = vm.path("api");
    let (mut running, [mut starter, mut other]) = ordered(&fifo, vm);
    let mut pipe = fifo.open();
    // Both are done before the guest runs.
    let mut third = Client::connect(&mut running, &api);
    third.begin("GET", "/vm", "");
    assert_eq!(other.state(), "Not started");
    other.begin("PATCH", "/vm", PAUSE);
    assert_eq!(Client::connect(&mut running, &api).state(), "Not started");
    pipe.write_all(&elf(&guest)).unwrap();
    drop(pipe);
    assert_eq!(starter.answer().unwrap().status, 204);
    assert_eq!(third.answer().unwrap().json["exits"][0], 0);
    assert_eq!(other.answer().unwrap().status, 204);
    assert_eq!(starter.state(), "Paused");
    starter.set_state("Resumed");
    running.end().expect(0).printed("hello");
}
