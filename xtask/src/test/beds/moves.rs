// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that moves from bed to bed by its snapshot: through a new start of the host, and to another kernel.

use std::fs::File;

use super::super::linux::{self, Boot};
use super::super::snapshots::{MOVED, MOVED_ON};
use super::*;
use crate::bed::{Disk, Writes};

/// The kernels of the beds.
const BEDS: [Series; 3] = [Series::V6_1, Series::V6_1, Series::V6_12];

/// The size of the disk that moves, with the snapshot. What is not written takes no space.
const SIZE: u64 = 1 << 30;

/// Whether `run` names it.
pub fn is_named(run: &Run, vendor: Vendor) -> bool {
    vendor == Vendor::Amd && linux::name(&MOVED).contains(&run.only)
}

/// Runs it, or leaves it to `--long`.
pub fn run(run: &Run, place: &str, scratch: &Scratch) -> Result<Tally> {
    if !run.long {
        let left = 1;
        return Ok(Tally {
            left,
            ..Tally::default()
        });
    }
    let kept = scratch.path("kept");
    File::create(&kept)?.set_len(SIZE)?;
    let mut tally = Tally::default();
    for (index, series) in BEDS.into_iter().enumerate() {
        let mut bed = Bed::new(Vendor::Amd);
        bed.timeout = None;
        bed.patience = Some(PATIENCE);
        bed.series = Some(series);
        let disk = bed.attach(Disk {
            image: kept.clone(),
            writes: Writes::Kept,
        });
        bed.add(&build::mini_vmm()?, "/bin/mini-vmm");
        let boot = match linux::add(&MOVED, &mut bed, scratch)? {
            Ok(boot) => boot,
            Err(why) => return Ok(Tally::skip(format!("{}: {why}", linux::name(&MOVED)))),
        };
        let job = Job {
            name: format!("{}:{}", boot.name(), index + 1),
            script: format!("kept={disk}\n{}", script(&boot, index)),
            check: Check::Linux(boot),
        };
        let outcomes = run_group(run, &bed, place, &[job], scratch)?;
        let outcome = outcomes.first().context("no job ran")?;
        tally = judge_part(index, outcome);
        if !tally.failures.is_empty() {
            break;
        }
    }
    Ok(tally)
}

fn script(boot: &Boot, index: usize) -> String {
    let next = match index + 1 == BEDS.len() {
        true => "goes_on && say end || kill $vmm",
        false => "goes_on && save || kill $vmm",
    };
    match index {
        0 => boot.script(),
        _ => linux::framed(MOVED_ON, "go_on", next, MOVED.after),
    }
}

/// A guest that goes on prints its release no more, and its last word only in the last bed.
fn judge_part(index: usize, outcome: &Outcome) -> Tally {
    let is_last = index + 1 == BEDS.len();
    let wrong = match outcome.status {
        None => Some(outcome.cause.clone()),
        Some(0) if !is_last || outcome.output.contains("LOG ") => None,
        Some(status) => Some(format!("exit code {status}\n{}", outcome.output)),
    };
    let name = format!("{} in bed {}", linux::name(&MOVED), index + 1);
    wrong.map_or(Tally::pass(), |why| Tally::fail(format!("{name}: {why}")))
}
