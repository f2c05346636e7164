// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process of a sealed machine.

mod filter;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};

use mini_vmm::config::{
    DiskSpec, HypercallRoute, Limit, Limits, LinkSpec, NetSpec, OnReboot, RngSpec, SerialSpec,
    VirtioSpec, VmSpec, VsockSpec,
};
use mini_vmm::layout::{self, MIB};
use mini_vmm::vmm::{Handle, Vmm};

use crate::bare::{Asm, Vm, passt};
use filter::seal;

/// What the machine's process should do, as words.
const TASK: &str = "MINI_VMM_SEALED_TASK";

/// The directory of its files.
const FOLDER: &str = "MINI_VMM_SEALED_FOLDER";

/// What it prints before the outcome.
const OUTCOME: &str = "outcome: ";

/// The process of a machine. Does nothing when run as a test itself.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    // As the command does: a heap of another thread would open a file when it shrinks.
    mini_vmm::share_heap();
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let has = |word| task.split(' ').any(|other| other == word);
    let output = folder.join("output");
    let spec = VmSpec {
        memory: 32 * MIB,
        debug_exit: Some(layout::DEBUG_EXIT),
        rtc: true,
        sealed: has("sealed"),
        on_reboot: match has("reset") {
            true => OnReboot::Reset,
            false => OnReboot::Exit,
        },
        hypercall: match task.split(' ').next().unwrap() {
            "--hypercall=pio" => HypercallRoute::Pio(None),
            "--hypercall=vendor" => HypercallRoute::Vendor,
            "--hypercall=forward" => HypercallRoute::Forward,
            _ => HypercallRoute::Auto,
        },
        serial: match () {
            () if has("socket") => SerialSpec::Socket(folder.join("socket")),
            () if has("pty") => SerialSpec::Pty,
            () => SerialSpec::File(output.clone()),
        },
        rng: has("rng").then(RngSpec::default),
        disk: disk(&folder, &task).into_iter().collect(),
        net: net(&task).into_iter().collect(),
        vsock: has("vsock").then(|| VsockSpec::new(3, folder.join("v"))),
        virtio: match has("mmio") {
            true => VirtioSpec::Mmio,
            false => VirtioSpec::Pci,
        },
        ..VmSpec::new(folder.join("kernel"))
    };
    let machine = Vmm::build(&spec).unwrap();
    let output = File::open(output).ok();
    let options = [
        ("reset", "--on-reboot reset"),
        ("socket", "--serial socket=PATH"),
        ("pty", "--serial pty"),
        ("rng", "--rng on"),
        ("disk", "--disk path=FILE"),
        ("net", "--net"),
        ("vsock", "--vsock cid=N,socket=PATH"),
    ];
    // When the control loop answers, it has all that it needs.
    machine.describe().unwrap();
    let options = options.iter().filter(|(word, _)| has(word));
    seal(&options.map(|(_, option)| *option).collect::<Vec<_>>());
    machine.resume().unwrap();
    if has("interrupts") {
        press_in_the_middle(&machine, &output.unwrap());
    }
    if has("reset") {
        while machine.describe().unwrap().resets < 3 {
            std::thread::yield_now();
        }
        machine.stop().unwrap();
    }
    println!("{OUTCOME}{:?}", machine.wait().unwrap());
    if let Some(failure) = machine.failure() {
        println!("{failure}");
    }
    process::exit(0);
}

/// The disk of a task, if it has one: raw, limited, or with an overlay.
fn disk(folder: &Path, task: &str) -> Option<DiskSpec> {
    let (_, kind) = task.split_once("disk ")?;
    let path = folder.join("disk.img");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let plain = DiskSpec::new(path);
    Some(match kind.split(' ').next().unwrap() {
        "limited" => DiskSpec {
            iops: Limit::per_second(1000),
            ..plain
        },
        "overlay" => DiskSpec {
            overlay: Some(folder.to_owned()),
            ..plain
        },
        _ => plain,
    })
}

/// The network of a task, if it has one: a tap, or by passt.
fn net(task: &str) -> Option<NetSpec> {
    let (_, kind) = task.split_once("net ")?;
    let link = match kind.split(' ').next().unwrap() {
        "tap" => LinkSpec::Tap("tap0".into()),
        _ => LinkSpec::User(Vec::new()),
    };
    let limits = Limits {
        iops: Limit::per_second(1000),
        ..Limits::default()
    };
    Some(NetSpec {
        rx: limits,
        tx: limits,
        ..NetSpec::new(link)
    })
}

/// Once the guest is ready: pauses it, saves it, resumes it, and presses the power button.
fn press_in_the_middle(machine: &Handle, output: &File) {
    let mut text = [0; 2];
    while output.read_at(&mut text, 0).unwrap() < 2 {
        // Fails once the machine has ended.
        machine.describe().unwrap();
    }
    machine.pause().unwrap();
    assert_eq!(machine.save().unwrap().vcpus.len(), 1);
    machine.resume().unwrap();
    machine.power_button().unwrap();
}

/// Starts the process of a machine that runs `guest`. `None`, with a note, if no guest can run.
pub fn start(test: &str, guest: &Asm, task: &str) -> Option<(Child, Vm)> {
    let vm = Vm::new(test, guest)?;
    let mut child = Command::new(std::env::current_exe().unwrap());
    if task.contains("net user") {
        child.env("PATH", passt::stand_in(&vm.path(""), passt::ECHO));
    }
    let child = child
        .args([
            "sealed::child",
            "--exact",
            "--nocapture",
            "--test-threads",
            "1",
        ])
        .env(TASK, task)
        .env(FOLDER, vm.path(""))
        // A panic with a backtrace would open files.
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Some((child.unwrap(), vm))
}

/// The process's output, or the signal that ended it.
pub fn end(child: Child) -> Result<String, i32> {
    let ended = child.wait_with_output().unwrap();
    if let Some(signal) = ended.status.signal() {
        return Err(signal);
    }
    let text = String::from_utf8(ended.stdout).unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{text}\n{said}");
    let (_, outcome) = text.split_once(OUTCOME).expect(&said);
    Ok(outcome.to_owned())
}

/// A sealed machine reaches an outcome. `None` if no guest can run.
#[track_caller]
pub fn expect(test: &str, guest: &Asm, task: &str, outcome: &str) -> Option<String> {
    let (child, _vm) = start(test, guest, &format!("{task} sealed"))?;
    let said = end(child).unwrap_or_else(|signal| panic!("{task}: signal {signal}"));
    assert!(said.starts_with(outcome), "{task}: {said}");
    Some(said)
}
