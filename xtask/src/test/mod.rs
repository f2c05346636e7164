// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`: all tests and checks, with a summary.

mod balloons;
mod beds;
mod cases;
mod clients;
mod consoles;
mod copies;
pub mod coverage;
mod disks;
mod libtest;
mod licenses;
#[cfg(test)]
mod limits;
mod linux;
mod networks;
mod packaged;
mod para;
mod parts;
mod plugged;
mod shares;
mod small;
mod snapshots;
mod sockets;
mod summary;
#[cfg(test)]
mod versions;
mod words;

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::bed::Bed;
use crate::build::{self, TestBuild};
use crate::process::step;
use parts::{PARTS, Part};
use summary::{Row, Summary, Tally};

/// What the parts share.
#[derive(Debug, Default)]
pub struct Run {
    summary: Summary,
    /// Only bed jobs whose name contains this.
    only: String,
    /// Whether long variants run too.
    long: bool,
    build: Option<TestBuild>,
}

impl Run {
    /// The factor by which tests may take longer than usual.
    fn patience(&self) -> u32 {
        if self.long { LONG_FACTOR } else { 1 }
    }

    /// Runs `work` as one row of the table; an error is a failure.
    fn row(&mut self, part: &str, place: &str, work: impl FnOnce() -> Result<Tally>) {
        let started = Instant::now();
        let tally = step(part, work).unwrap_or_else(|error| Tally::fail(format!("{error:#}")));
        self.push(Row {
            part: part.to_owned(),
            place: place.to_owned(),
            tally,
            elapsed: started.elapsed(),
        });
    }

    /// Adds a row and prints its result. A row in which nothing ran is a failure.
    fn push(&mut self, mut row: Row) {
        if row.tally == Tally::default() {
            row.tally = Tally::fail("nothing ran");
        }
        eprintln!(
            "xtask: {} ({}): {}, {:.0} s",
            row.part,
            row.place,
            row.tally.counts(),
            row.elapsed.as_secs_f64()
        );
        self.summary.0.push(row);
    }

    /// The statically linked tests, built once.
    fn tests(&mut self) -> Result<&TestBuild> {
        if self.build.is_none() {
            let build = step("building the tests", || build::tests(|_| ()))?;
            self.build = Some(build);
        }
        match &self.build {
            Some(build) => Ok(build),
            None => bail!("the tests were not built"),
        }
    }
}

/// The variable that tells tests, on the host and in the beds, whether their long variants are wanted: 1 or 0.
const LONG: &str = "MINI_VMM_TEST_LONG";

/// The factor by which tests may take longer with their long variants.
const LONG_FACTOR: u32 = 10;

/// `cargo xtask test`: parses its arguments, runs the parts, prints the summary.
pub fn command(parser: &mut lexopt::Parser) -> Result<u8> {
    use lexopt::prelude::*;
    let mut run = Run::default();
    let mut quick = false;
    let mut wanted: Vec<String> = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => quick = true,
            Long("long") => run.long = true,
            Long("only") => run.only = parser.value()?.string()?,
            Value(part) => wanted.push(part.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(
        !(quick && run.long),
        "--quick and --long contradict each other: leave one out"
    );
    let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
    if let Some(unknown) = wanted.iter().find(|part| !names.contains(&part.as_str())) {
        bail!(
            "there is no part {unknown}: the parts are {}",
            names.join(", ")
        );
    }
    let is_wanted = |part: &&Part| {
        let is_named = wanted.is_empty() || wanted.iter().any(|name| name == part.name);
        is_named && (part.quick || !quick)
    };
    // The beds' packages are requested before anything is built. If they stay missing, the beds' parts fail.
    for part in PARTS.iter().filter(is_wanted) {
        if let Some(vendor) = part.bed
            && let Err(error) = Bed::new(vendor).require()
        {
            eprintln!("xtask: {error:#}");
        }
    }
    for part in PARTS.iter().filter(is_wanted) {
        (part.run)(&mut run);
    }
    println!("\n{}", run.summary.render());
    Ok(if run.summary.is_success() { 0 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_and_long_contradict_each_other() {
        let mut parser = lexopt::Parser::from_args(["--long", "--quick", "format"]);
        let error = command(&mut parser).unwrap_err().to_string();
        assert!(error.contains("--quick and --long"), "{error}");
    }

    #[test]
    fn a_part_that_ran_nothing_failed() {
        let mut run = Run::default();
        run.row("unit tests", "host", || Ok(Tally::default()));
        assert_eq!(run.summary.0[0].tally, Tally::fail("nothing ran"));
    }
}
