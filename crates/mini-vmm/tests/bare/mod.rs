// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bare guests run by the real program: assembled, written to an ELF file, run, and checked.

// Each test file uses a part of it; a test may panic.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod asm;
mod built;
pub mod counting;
pub mod ctl;
pub mod http;
pub mod lab;
pub mod monkey;
pub mod namespace;
pub mod passt;
pub mod registration;
pub mod virtio;
mod watch;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use watch::Watch;

pub use asm::{AP_CODE, AT, Asm, S5};
pub use built::{Built, chip_byte, without_event};

/// The program under test. The environment names it if the tests run on another machine than they were built on.
pub fn program() -> OsString {
    std::env::var_os("MINI_VMM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_mini-vmm").into())
}

/// Whether guests can run here. If not, says so once per test.
pub fn has_kvm(test: &str) -> bool {
    if std::env::var_os("MINI_VMM_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("SKIP: {test}: MINI_VMM_NO_KVM is set");
        return false;
    }
    kvm_ioctls::Kvm::new()
        .inspect_err(|e| eprintln!("SKIP: {test}: /dev/kvm can't be used: {e}"))
        .is_ok()
}

/// Whether long variants are enabled. If not, says that `test` has one.
pub fn is_long(test: &str) -> bool {
    let long = std::env::var_os("MINI_VMM_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        eprintln!("LONG: {test}");
    }
    long
}

/// Timeouts of a guest in seconds. The first one in which it gets far enough is used.
pub const TIMEOUTS: [u64; 7] = [1, 2, 4, 8, 16, 64, 256];

/// Whether an instruction emulator runs guest code: there is KVM, but no hardware virtualization.
pub fn is_emulated() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    !flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "svm" || flag == "vmx"))
}

/// A guest built by `write`.
pub fn guest(write: impl FnOnce(&mut Asm)) -> Asm {
    let mut asm = Asm::new();
    write(&mut asm);
    asm
}

/// An ELF file of a guest, with one segment.
pub fn elf(guest: &Asm) -> Vec<u8> {
    let code = guest.code();
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    for word in [AT, 64, 0] {
        out.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    out.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, all rights
    let size = code.len() as u64;
    for word in [120, AT, AT, size, size, 0x1000] {
        out.extend(word.to_le_bytes());
    }
    out.extend(code);
    out
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Vm {
    pub command: Command,
    dir: Arc<TempDir>,
}

impl Vm {
    /// A machine with 32 MiB and one vCPU that runs `guest`. `None`, with a note, if no guest can run.
    pub fn new(test: &str, guest: &Asm) -> Option<Vm> {
        if !has_kvm(test) {
            return None;
        }
        let mut vm = Vm::of_file(&elf(guest));
        // In a file, because flags override a file, but not each other.
        let config = vm.path("config.json");
        let defaults = r#"{"memory": "32M", "debug-exit": "0xf4"}"#;
        fs::write(&config, defaults).unwrap();
        vm.args(["--config".as_ref(), config.as_os_str()]);
        Some(vm)
    }

    /// A machine whose kernel file has these bytes.
    pub fn of_file(kernel: &[u8]) -> Vm {
        let mut vm = Vm::of_kernel("kernel".as_ref());
        fs::write(vm.path("kernel"), kernel).unwrap();
        vm.command.current_dir(vm.dir.path());
        vm
    }

    /// A machine whose kernel is at a path.
    pub fn of_kernel(kernel: &Path) -> Vm {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut command = Command::new(program());
        command.arg("--kernel").arg(kernel);
        command.env_remove("MINI_VMM_LOG");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Vm { command, dir }
    }

    /// A process that waits for clients at the path `api`, and the file `kernel` with `guest`. `None`, with a note, if
    /// no guest can run.
    pub fn waiting(test: &str, guest: &Asm) -> Option<Vm> {
        Some(Vm::new(test, guest)?.undescribed())
    }

    /// A process with the same files that waits for clients at the path `api`.
    pub fn undescribed(mut self) -> Vm {
        let mut command = Command::new(program());
        command.arg("--api-sock").arg(self.path("api"));
        command.env_remove("MINI_VMM_LOG");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir(self.dir.path());
        self.command = command;
        self
    }

    /// A process that goes on with the snapshot at `snap`, in the directory of this machine's files.
    pub fn restoring(&self, snap: &Path) -> Vm {
        self.beside(["--restore".as_ref(), snap.as_os_str()])
    }

    /// A process that waits for clients at `api`, in the directory of this machine's files.
    pub fn loading(&self, api: &Path) -> Vm {
        self.beside(["--api-sock".as_ref(), api.as_os_str()])
    }

    fn beside(&self, args: [&OsStr; 2]) -> Vm {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.dir.path());
        command.env_remove("MINI_VMM_LOG");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let dir = Arc::clone(&self.dir);
        Vm { command, dir }
    }

    /// The same machine with the files of another one.
    pub fn holding(self, files: Vm) -> Vm {
        Vm {
            command: self.command,
            dir: files.dir,
        }
    }

    /// A path in the directory of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds arguments, which override those of [`Vm::new`].
    pub fn args<S: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = S>) -> &mut Self {
        self.command.args(args);
        self
    }

    /// Starts it through a shell script that has the command in `"$@"`.
    pub fn through(self, line: &str) -> Vm {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line, "sh"])
            .arg(self.command.get_program());
        command.args(self.command.get_args());
        command.current_dir(self.dir.path());
        command.env_remove("MINI_VMM_LOG");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Vm {
            command,
            dir: self.dir,
        }
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Ended {
        self.start().end()
    }

    /// Starts the process and collects its output.
    pub fn start(&mut self) -> Running {
        let started = Instant::now();
        let mut child = self.command.spawn().unwrap();
        Running {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(Collector::start),
            stderr: child.stderr.take().map(Collector::start),
            watch: Watch::new(child.id()),
            child,
            started,
            _dir: Arc::clone(&self.dir),
        }
    }
}

/// The output of a stream so far.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                collected.lock().unwrap().extend(&buffer[..count]);
            }
        });
        Collector { bytes, thread }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn end(self) -> Vec<u8> {
        self.thread.join().unwrap();
        std::mem::take(&mut *self.bytes.lock().unwrap())
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shorten(&String::from_utf8_lossy(&self.bytes())).fmt(f)
    }
}

/// The start of a text that may be long.
fn shorten(text: &str) -> String {
    text.chars().take(4000).collect()
}

/// A process that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    pub stdin: Option<ChildStdin>,
    stdout: Option<Collector>,
    stderr: Option<Collector>,
    child: Child,
    watch: Watch,
    started: Instant,
    _dir: Arc<TempDir>,
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn is_hung(&mut self) -> bool {
        let streams = [&self.stdout, &self.stderr].into_iter().flatten();
        let output = streams.map(|stream| stream.bytes.lock().unwrap().len());
        self.watch.is_hung(output.sum())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends the guest input. Does nothing if the process has ended.
    pub fn type_in(&mut self, input: &[u8]) {
        let _ = self.stdin.as_mut().unwrap().write_all(input);
    }

    /// What the guest printed so far.
    pub fn output(&self) -> Vec<u8> {
        self.stdout.as_ref().unwrap().bytes()
    }

    /// Waits until the guest has printed `text`.
    pub fn await_output(&mut self, text: &str) {
        self.await_that(text, |running| contains(&running.output(), text.as_bytes()));
    }

    /// Waits until the guest has printed `many` bytes.
    pub fn await_many(&mut self, many: usize) {
        self.await_that("output", |running| running.output().len() >= many);
    }

    /// Waits until `text` is on standard error.
    pub fn await_stderr(&mut self, text: &str) {
        self.await_that(text, |running| {
            let collector = running.stderr.as_ref().unwrap();
            contains(&collector.bytes(), text.as_bytes())
        });
    }

    fn await_that(&mut self, what: &str, is_there: impl Fn(&Running) -> bool) {
        while !is_there(self) {
            let is_waiting = self.is_alive() && !self.is_hung();
            assert!(is_waiting, "no {what:?} in {self:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        while self.is_alive() {
            assert!(!self.is_hung(), "hung: {self:?}");
            thread::sleep(Duration::from_millis(2));
        }
        let took = self.started.elapsed();
        drop(self.stdin.take());
        Ended {
            status: self.child.wait().unwrap(),
            stdout: self.stdout.take().map(Collector::end).unwrap_or_default(),
            stderr: String::from_utf8(self.stderr.take().map(Collector::end).unwrap_or_default())
                .unwrap(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has already ended, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// Checks the exit code. On a mismatch, shows everything.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(code),
            "signal {:?} after {:?}\nstdout: {}\nstderr: {}",
            self.status.signal(),
            self.took,
            shorten(&String::from_utf8_lossy(&self.stdout)),
            shorten(&self.stderr)
        );
        self
    }

    /// Whether it exited with this code, not by a signal.
    pub fn is_code(&self, code: i32) -> bool {
        self.status.code() == Some(code)
    }

    /// Checks all that the guest printed.
    #[track_caller]
    pub fn printed(&self, text: &str) -> &Self {
        assert_eq!(String::from_utf8_lossy(&self.stdout), text);
        self
    }

    /// Checks that standard error is empty.
    #[track_caller]
    pub fn silent(&self) -> &Self {
        assert_eq!(self.stderr, "");
        self
    }

    /// Checks that standard error has each of the texts.
    #[track_caller]
    pub fn says(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "no {text:?} in {:?}",
                self.stderr
            );
        }
        self
    }
}

/// How often `text` is in `bytes`.
pub fn count(bytes: &[u8], text: &str) -> usize {
    bytes
        .windows(text.len())
        .filter(|window| *window == text.as_bytes())
        .count()
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
