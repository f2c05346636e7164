// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The AMD bed: QEMU emulates a CPU with SVM; a Debian kernel with kvm-amd runs on it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bed::{Bed, End, Machine, Sink, Writes};
use crate::packages;
use crate::process::tied;
use crate::watch::Watch;

/// The bed's kernel doesn't check the timer: on a busy host the check fails, because it gives QEMU too little time, and
/// the kernel then panics.
const CMDLINE: &str = "console=ttyS1 quiet panic=-1 mitigations=off no_timer_check";

/// Installs what the bed needs.
pub fn require() -> Result<()> {
    packages::require(&[("qemu-system-x86_64", "qemu-system-x86")])
}

/// Runs the machine to its end.
pub fn run(machine: &Machine, sink: Sink) -> Result<End> {
    let interactive = machine.bed.terminal.is_some();
    let mut command = qemu(machine);
    if interactive {
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    command.stderr(Stdio::piped());
    let mut child = command.spawn().context("can't start qemu-system-x86_64")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = AtomicU64::new(0);
    thread::scope(|scope| {
        let errors = scope.spawn(move || {
            let mut text = Vec::new();
            // After an error, show what was read before.
            let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        if let Some(mut pipe) = stdout {
            let printed = &printed;
            scope.spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    printed.fetch_add(count as u64, Ordering::Relaxed);
                    sink(&buffer[..count]);
                }
            });
        }
        let output = || printed.load(Ordering::Relaxed) + length(&machine.log);
        let forced = wait(&mut child, machine.bed, &output)?;
        let stderr = errors.join().unwrap_or_default();
        Ok(forced.unwrap_or(End::Exited(stderr)))
    })
}

/// The current length of a file.
pub fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// Waits until `child` ends by itself, or kills it at one of the limits of `bed`, and returns how it ended. `output` is
/// a number that grows with the bed's output.
pub fn wait(child: &mut Child, bed: &Bed, output: &dyn Fn() -> u64) -> Result<Option<End>> {
    let started = Instant::now();
    let mut watch = bed
        .patience
        .map(|patience| Watch::new(child.id(), patience));
    loop {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        let timed_out = bed.timeout.is_some_and(|limit| started.elapsed() > limit);
        let hang = watch.as_mut().and_then(|watch| watch.hang(output()));
        if timed_out || hang.is_some() {
            child.kill()?;
            child.wait()?;
            return Ok(Some(hang.map_or(End::TimedOut, End::Hung)));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn qemu(machine: &Machine) -> Command {
    let bed = machine.bed;
    let mut command = tied(&Command::new("qemu-system-x86_64"));
    let accelerator = match bed.counted {
        true => [
            "-accel",
            "tcg,thread=single",
            "-icount",
            "shift=0,sleep=off",
        ]
        .as_slice(),
        false => &["-accel", "tcg,thread=multi"],
    };
    command.args(accelerator);
    command.args(["-cpu", "max,-la57", "-M", "q35"]);
    command.args(["-m", &bed.memory.to_string(), "-smp", &bed.cpus.to_string()]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // Ctrl-C is the guest's.
    command.args([
        "-chardev",
        "stdio,id=io,signal=off",
        "-serial",
        "chardev:io",
    ]);
    command.arg("-serial");
    command.arg(format!("file:{}", machine.log.display()));
    for (index, disk) in bed.disks.iter().enumerate() {
        let path = disk.image.to_string_lossy().replace(',', ",,");
        let access = match disk.writes {
            Writes::Refused => "readonly=on",
            Writes::Dropped => "snapshot=on",
            Writes::Kept => "snapshot=off",
        };
        command.arg("-drive");
        command.arg(format!(
            "file={path},format=raw,if=none,id=disk{index},{access}"
        ));
        command.args(["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    command.arg("-kernel").arg(&machine.kernel);
    command.arg("-initrd").arg(&machine.initrd);
    command.args(["-append", CMDLINE]);
    command
}
