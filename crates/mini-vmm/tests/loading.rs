// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a user sees and can do while images are loaded. Here they come from pipes that never end. No guest runs.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use bare::{Running, Vm};
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
