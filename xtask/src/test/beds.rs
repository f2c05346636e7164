// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of `cargo xtask test` that run in the beds: all jobs of a bed in one start of it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::linux::{self, Boot};
use super::summary::{Row, Tally};
use super::{Run, libtest};
use crate::bed::{Bed, Vendor};
use crate::build::{self, Kind, TestBinary, TestBuild};
use crate::packages;
use crate::process::{capture_ok, sh_quote, step, write};
use crate::workspace::{Scratch, nonce};

/// How long a test executable and a Linux boot may take in a bed, in seconds.
fn limits(vendor: Vendor) -> (u32, u32) {
    match vendor {
        Vendor::Amd => (240, 60),
        Vendor::Intel => (240, 150),
    }
}

pub fn amd(run: &mut Run) {
    bed(run, Vendor::Amd, "AMD bed");
}

pub fn intel(run: &mut Run) {
    bed(run, Vendor::Intel, "Intel bed");
}

/// What a job is judged by.
enum Check {
    Tests(String),
    Linux(Boot),
}

struct Job {
    name: String,
    script: String,
    /// In seconds.
    limit: u32,
    check: Check,
}

/// What came of a job: its status, what it printed, how long it took.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    status: Option<u8>,
    output: String,
    elapsed: Duration,
}

fn bed(run: &mut Run, vendor: Vendor, place: &str) {
    let only = run.only.clone();
    let result = run
        .tests()
        .cloned()
        .and_then(|tests| run_jobs(vendor, place, &only, &tests));
    match result {
        Ok(rows) => rows.into_iter().for_each(|row| run.push(row)),
        Err(error) => run.row("bed", place, || Err(error)),
    }
}

fn run_jobs(vendor: Vendor, place: &str, only: &str, build: &TestBuild) -> Result<Vec<Row>> {
    let scratch = Scratch::new()?;
    let mut bed = Bed::new(vendor);
    bed.timeout = Some(Duration::from_secs(900));
    let mut jobs = Vec::new();
    add_tests(vendor, only, build, &mut bed, &scratch, &mut jobs)?;
    let (boots, skips) = linux::prepare(vendor, only, &mut bed, &scratch)?;
    if jobs.is_empty() && boots.is_empty() && skips.skips.is_empty() {
        bail!("no job of the {place} has '{only}' in its name (--only)");
    }
    if !boots.is_empty() {
        bed.add(&build::mini_vmm()?, "/bin/mini-vmm");
    }
    jobs.extend(boots.into_iter().map(|boot| Job {
        name: boot.name(),
        script: boot.script(limits(vendor).1),
        // The script has its own limit; this one is for a script that hangs.
        limit: limits(vendor).1 + 15,
        check: Check::Linux(boot),
    }));
    for (index, job) in jobs.iter().enumerate() {
        let script = scratch.path(&format!("script-{index}"));
        write(&script, &job.script)?;
        bed.add(&script, &format!("/jobs/{index}"));
    }
    let names = jobs.iter().map(|job| (job.name.clone(), job.limit));
    let mut log = JobLog::new(&nonce(), names.collect());
    let script = log.script();
    let end = step(place, || bed.run(&script, &mut |bytes| log.feed(bytes)));
    let cause = match end {
        Ok(_) => "the bed ended before this job did".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let mut rows = Vec::new();
    for (title, is_linux) in [("KVM tests", false), ("Linux boots", true)] {
        let mut row = Row {
            part: title.to_owned(),
            place: place.to_owned(),
            tally: if is_linux {
                skips.clone()
            } else {
                Tally::default()
            },
            elapsed: Duration::ZERO,
        };
        let mut any = !row.tally.skips.is_empty();
        for (job, outcome) in jobs.iter().zip(&log.outcomes) {
            if matches!(job.check, Check::Linux(_)) == is_linux {
                any = true;
                row.elapsed += outcome.elapsed;
                row.tally.add(judge(job, outcome, &cause));
            }
        }
        if any {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn judge(job: &Job, outcome: &Outcome, cause: &str) -> Tally {
    match (&job.check, outcome.status) {
        (_, None) => Tally::fail(format!("{}: {cause}", job.name)),
        (Check::Tests(name), Some(status)) => {
            with_kvm(libtest::count(name, &outcome.output, status == 0))
        }
        (Check::Linux(boot), Some(status)) => boot.judge(status, &outcome.output),
    }
}

/// A bed exists for its KVM: there, a test that finds none failed.
fn with_kvm(mut tally: Tally) -> Tally {
    let lacks_kvm = |skip: &String| skip.contains("/dev/kvm") || skip.contains("MINI_VMM_NO_KVM");
    let (failed, skipped) = tally.skips.into_iter().partition(lacks_kvm);
    let failed: Vec<String> = failed;
    tally.failures.extend(failed);
    tally.skips = skipped;
    tally
}

/// Adds the tests that use KVM: the files `tests/kvm*.rs`, and unit tests with `kvm` in their name. The
/// others ran on the host, and emulation makes them take minutes.
fn add_tests(
    vendor: Vendor,
    only: &str,
    build: &TestBuild,
    bed: &mut Bed,
    scratch: &Scratch,
    jobs: &mut Vec<Job>,
) -> Result<()> {
    packages::require(&[("strip", "binutils")])?;
    let tests = build.tests.iter().filter(|test| test.package != "xtask");
    let mut used = false;
    for (index, test) in tests.enumerate() {
        let is_kvm = test.kind == Kind::Integration && test.target.starts_with("kvm");
        let filter = match test.kind {
            _ if is_kvm => "",
            Kind::Integration => continue,
            Kind::Unit => "kvm",
        };
        let name = format!("{}::{}", test.package, test.target);
        if !name.contains(only) {
            continue;
        }
        if test.kind == Kind::Unit && !has_tests(test, filter)? {
            continue;
        }
        used = true;
        let guest = format!("/t/{}-{index}", test.target);
        add_stripped(bed, &test.path, &guest, scratch)?;
        jobs.push(Job {
            name: name.clone(),
            script: test_script(test, &guest, filter),
            limit: limits(vendor).0,
            check: Check::Tests(name),
        });
    }
    if used {
        // Integration tests start these by their path on the host.
        for program in build
            .programs
            .iter()
            .filter(|path| !path.ends_with("xtask"))
        {
            add_stripped(bed, program, &program.to_string_lossy(), scratch)?;
        }
    }
    Ok(())
}

fn has_tests(test: &TestBinary, filter: &str) -> Result<bool> {
    let output =
        capture_ok(Command::new(&test.path).args(["--list", "--format", "terse", filter]))?;
    Ok(!output.is_empty())
}

fn test_script(test: &TestBinary, guest: &str, filter: &str) -> String {
    let directory = sh_quote(&test.directory.to_string_lossy());
    // Property tests try fewer cases here: the host tried them all.
    format!(
        "mkdir -p {directory} && cd {directory}\n\
         export CARGO_MANIFEST_DIR={directory} PROPTEST_CASES=16 RUST_BACKTRACE=1\n\
         exec {guest} --show-output --test-threads=2 {filter}\n"
    )
}

/// Adds a program without its debug sections, which are most of its bytes.
fn add_stripped(bed: &mut Bed, host: &Path, guest: &str, scratch: &Scratch) -> Result<()> {
    let small = scratch.path(&format!("stripped-{}", bed.files.len()));
    capture_ok(Command::new("strip").arg("-o").arg(&small).arg(host))
        .with_context(|| format!("can't add {} to the bed", host.display()))?;
    bed.add(&small, guest);
    Ok(())
}

/// Follows the jobs of a bed on its serial port.
#[derive(Debug)]
struct JobLog {
    mark: String,
    /// Names and limits.
    jobs: Vec<(String, u32)>,
    outcomes: Vec<Outcome>,
    current: Option<(usize, Instant)>,
    line: Vec<u8>,
}

impl JobLog {
    fn new(nonce: &str, jobs: Vec<(String, u32)>) -> JobLog {
        JobLog {
            mark: format!("@{nonce} "),
            outcomes: vec![Outcome::default(); jobs.len()],
            jobs,
            current: None,
            line: Vec::new(),
        }
    }

    /// The script that runs /jobs/0, /jobs/1, ... and marks their beginnings and ends.
    fn script(&self) -> String {
        let mark = &self.mark;
        let mut script = String::new();
        for (index, (_, limit)) in self.jobs.iter().enumerate() {
            script.push_str(&format!(
                "echo; echo '{mark}begin {index}'\n\
                 timeout -s KILL {limit} sh /jobs/{index} </dev/null 2>&1; s=$?\n\
                 killall -q -9 mini-vmm\n\
                 echo; echo '{mark}end {index} '$s\n"
            ));
        }
        script
    }

    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                self.take(&line);
            }
        }
    }

    fn take(&mut self, line: &str) {
        let Some(mark) = line.strip_prefix(&self.mark) else {
            if let Some((index, _)) = self.current {
                self.outcomes[index].output.push_str(line);
            }
            return;
        };
        let words: Vec<&str> = mark.split_whitespace().collect();
        match words.as_slice() {
            ["begin", index] => {
                let index = index.parse().ok().filter(|&index| index < self.jobs.len());
                self.current = index.map(|index| (index, Instant::now()));
            }
            ["end", _, status] => {
                let Some((index, started)) = self.current.take() else {
                    return;
                };
                let outcome = &mut self.outcomes[index];
                outcome.status = status.parse().ok();
                outcome.elapsed = started.elapsed();
                eprintln!(
                    "xtask: {}: exit code {status}, {:.1} s",
                    self.jobs[index].0,
                    outcome.elapsed.as_secs_f64()
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(names: &[&str]) -> Vec<(String, u32)> {
        names.iter().map(|&name| (name.to_owned(), 9)).collect()
    }

    #[test]
    fn jobs_are_told_apart_by_marks() {
        let mut log = JobLog::new("n", jobs(&["a", "b", "c"]));
        let console = "x\n\n@n begin 0\none\n@m end 0 1\n\n@n end 0 0\n\n@n begin 1\ntwo\n\n@n end 1 33\n\n@n begin 2\nlost\n";
        for piece in console.as_bytes().chunks(3) {
            log.feed(piece);
        }
        let seen: Vec<_> = log
            .outcomes
            .iter()
            .map(|outcome| (outcome.status, outcome.output.trim_end()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some(0), "one\n@m end 0 1"),
                (Some(33), "two"),
                (None, "lost")
            ]
        );
    }

    #[test]
    fn a_job_that_never_ended_fails_with_the_cause() {
        let job = Job {
            name: "kvm".into(),
            script: String::new(),
            limit: 1,
            check: Check::Tests("kvm".into()),
        };
        let tally = judge(&job, &Outcome::default(), "the bed was ended");
        assert_eq!(tally.failures, ["kvm: the bed was ended"]);
    }

    #[test]
    fn a_bed_without_kvm_fails() {
        let mut tally = Tally::skip("kick: /dev/kvm can't be used");
        tally.add(Tally::skip("save: MINI_VMM_NO_KVM is set"));
        tally.add(Tally::skip("tsc: no scaling"));
        let tally = with_kvm(tally);
        assert_eq!((tally.failures.len(), tally.skips.len()), (2, 1));
    }

    #[test]
    fn marks_out_of_place_are_harmless() {
        let mut log = JobLog::new("n", jobs(&["a"]));
        log.feed(b"@n end 0 0\n@n begin 7\n@n begin\n@n end 7 0\ntext\n");
        assert_eq!(log.outcomes, [Outcome::default()]);
    }

    #[test]
    fn the_script_runs_jobs_in_order() {
        let log = JobLog::new("n", jobs(&["a", "b"]));
        let mut shell = Command::new("sh");
        capture_ok(shell.args(["-n", "-c", &log.script()])).unwrap();
    }
}
