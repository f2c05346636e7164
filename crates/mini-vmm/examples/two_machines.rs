// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two machines in one process. One is paused while the other is stopped.
//!
//! ```console
//! $ cargo run --example two_machines -- vmlinux
//! the second ended: Stopped
//! the first is paused after 18023 exits
//! the first ended: Stopped
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};

use mini_vmm::config::{SerialSpec, VmSpec};
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::{Handle, Vmm};

/// Also a module of the tests, which don't call this.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    let kernel = std::env::args_os().nth(1).ok_or("say which kernel")?;
    run(&PathBuf::from(kernel)).map(drop)
}

/// The outcomes of both.
pub fn run(kernel: &Path) -> Result<[Outcome; 2], Box<dyn Error>> {
    let (first, second) = (start(kernel)?, start(kernel)?);
    first.pause()?;
    second.stop()?;
    let second = second.wait()?;
    println!("the second ended: {second:?}");

    let about = first.describe()?;
    let exits: u64 = about.exits.iter().sum();
    println!("the first is {} after {exits} exits", about.state);
    first.resume()?;
    first.stop()?;
    let first = first.wait()?;
    println!("the first ended: {first:?}");
    Ok([first, second])
}

/// Starts a machine without a console.
fn start(kernel: &Path) -> Result<Handle, Box<dyn Error>> {
    let spec = VmSpec {
        memory: 64 << 20,
        serial: SerialSpec::Off,
        ..VmSpec::new(kernel)
    };
    let machine = Vmm::build(&spec)?;
    machine.resume()?;
    Ok(machine)
}
