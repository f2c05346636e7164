// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of `cargo xtask test` that run in the beds. One start of a bed runs all of its jobs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::linux::{self, Boot};
use super::summary::{Row, Tally};
use super::{LONG, Run, libtest};
use crate::bed::{Bed, Vendor};
use crate::build::{self, Kind, TestBinary, TestBuild};
use crate::kernels::{Kernel, Series};
use crate::packages;
use crate::process::{capture_ok, sh_quote, step, write};
use crate::watch::Patience;
use crate::workspace::{Scratch, nonce};

/// A job's limit, in seconds of the bed's CPU time. A job that exceeds it has hung.
fn cpu_limit(vendor: Vendor) -> u32 {
    match vendor {
        // Many times what the longest needs: the bed also counts the time that a busy host takes from QEMU's CPU.
        Vendor::Amd => 1200,
        // Bochs's time counts instructions, however busy the host is.
        Vendor::Intel => 300,
    }
}

/// The limits for a bed. While jobs run, it prints a sign of life every few seconds.
const PATIENCE: Patience = Patience::of_work(300);

/// The kernels whose KVM can forward hypercalls to the VMM; Debian's 6.1 can't.
pub const FORWARDING: Series = Series::V6_12;

/// How many beds may end during one job before it has failed: an emulated machine may hang by itself, so that not even
/// its own timer ends the job.
const BEDS_PER_JOB: u32 = 2;

/// How many beds in a row may end before any of their jobs does. After that, the cause is the machine, and the
/// remaining jobs do not run.
const IDLE_BEDS: u32 = 2 * BEDS_PER_JOB;

/// The name of the row of the Linux boots.
const LINUX_BOOTS: &str = "Linux boots";

/// How jobs are run in a bed.
const JOB_LIBRARY: &str = include_str!("beds/job.sh");

pub fn amd(run: &mut Run) {
    bed(run, Vendor::Amd, "AMD bed");
}

pub fn intel(run: &mut Run) {
    bed(run, Vendor::Intel, "Intel bed");
}

/// How a job's result is checked.
enum Check {
    Tests(String),
    Linux(Boot),
}

struct Job {
    name: String,
    script: String,
    check: Check,
}

/// A job's result: its status, output and duration.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    status: Option<u8>,
    output: String,
    elapsed: Duration,
    began: bool,
    /// How often its bed ended while it ran.
    lost: u32,
    /// Why it has no status.
    cause: String,
}

fn bed(run: &mut Run, vendor: Vendor, place: &str) {
    // The test executables take long to build, so not if only boots run.
    let tests = match run.only.starts_with(linux::PREFIX) {
        true => Ok(TestBuild::default()),
        false => run.tests().cloned(),
    };
    let result = tests.and_then(|tests| run_jobs(run, vendor, place, &tests));
    match result {
        Ok(rows) => rows.into_iter().for_each(|row| run.push(row)),
        Err(error) => run.row("bed", place, || Err(error)),
    }
}

fn run_jobs(run: &Run, vendor: Vendor, place: &str, build: &TestBuild) -> Result<Vec<Row>> {
    let scratch = Scratch::new()?;
    let mut bed = Bed::new(vendor);
    bed.timeout = None;
    bed.patience = Some(PATIENCE);
    if vendor == Vendor::Amd && Kernel::fetch_offered(FORWARDING)?.is_some() {
        bed.series = Some(FORWARDING);
    }
    let mut jobs = Vec::new();
    add_tests(run, vendor, build, &mut bed, &scratch, &mut jobs)?;
    let (boots, mut skips) = linux::prepare(run, &mut bed, &scratch)?;
    let moves = moves::is_named(run, vendor);
    if jobs.is_empty() && boots.is_empty() && skips == Tally::default() && !moves {
        let only = &run.only;
        bail!("no job of the {place} has '{only}' in its name (--only)");
    }
    if !boots.is_empty() {
        bed.add(&build::mini_vmm()?, "/bin/mini-vmm");
    }
    if boots.iter().any(Boot::needs_probe) {
        bed.add(&build::bench_probe()?, "/bin/bench-probe");
    }
    jobs.extend(boots.into_iter().map(|boot| Job {
        name: boot.name(),
        script: boot.script(),
        check: Check::Linux(boot),
    }));
    let is_counted = |job: &Job| matches!(&job.check, Check::Linux(boot) if boot.is_counted());
    let (counted, usual): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(is_counted);
    let mut outcomes = run_group(run, &bed, place, &usual, &scratch)?;
    bed.counted = true;
    outcomes.extend(run_group(run, &bed, place, &counted, &scratch)?);
    if moves {
        skips.add(moves::run(run, place, &scratch)?);
    }
    let jobs: Vec<Job> = usual.into_iter().chain(counted).collect();
    Ok(rows(place, &jobs, &outcomes, skips))
}

/// Runs the jobs that share a kind of bed.
fn run_group(
    run: &Run,
    bed: &Bed,
    place: &str,
    jobs: &[Job],
    scratch: &Scratch,
) -> Result<Vec<Outcome>> {
    let mut bed = bed.clone();
    for (index, job) in jobs.iter().enumerate() {
        let script = scratch.path(&format!("script-{}", job.name.replace(':', "-")));
        write(&script, &job.script)?;
        bed.add(&script, &format!("/jobs/{index}"));
    }
    let names = jobs.iter().map(|job| job.name.clone());
    let mut log = JobLog::new(&nonce(), names.collect());
    run_beds(&mut log, &mut |log| {
        let script = log.script(cpu_limit(bed.vendor) * run.patience());
        match step(place, || bed.run(&script, &mut |bytes| log.feed(bytes))) {
            Ok(_) => "the bed ended too early".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    });
    Ok(log.outcomes)
}

/// Runs beds until no job waits, or too many beds fail. `bed` runs one bed, and returns the cause of its end. A job
/// that ends its bed a few times is not run again, so it doesn't block the others.
fn run_beds(log: &mut JobLog, bed: &mut dyn FnMut(&mut JobLog) -> String) {
    let mut idle = 0;
    while log.is_waiting() && idle < IDLE_BEDS {
        let ended = log.ended();
        let cause = bed(log);
        log.end(&cause);
        if !log.has_begun() {
            return;
        }
        idle = if log.ended() > ended { 0 } else { idle + 1 };
    }
}

/// A row for the tests and one for the boots, if there were any.
fn rows(place: &str, jobs: &[Job], outcomes: &[Outcome], skips: Tally) -> Vec<Row> {
    let row = |title: &str, is_linux: bool, mut tally: Tally| {
        let (mut elapsed, mut any) = (Duration::ZERO, tally != Tally::default());
        for (job, outcome) in jobs.iter().zip(outcomes) {
            if matches!(job.check, Check::Linux(_)) == is_linux {
                any = true;
                elapsed += outcome.elapsed;
                tally.add(judge(job, outcome));
            }
        }
        any.then(|| Row {
            part: title.to_owned(),
            place: place.to_owned(),
            tally,
            elapsed,
        })
    };
    let tests = row("KVM tests", false, Tally::default());
    tests
        .into_iter()
        .chain(row(LINUX_BOOTS, true, skips))
        .collect()
}

fn judge(job: &Job, outcome: &Outcome) -> Tally {
    match (&job.check, outcome.status) {
        (_, None) => Tally::fail(format!("{}: {}", job.name, outcome.cause)),
        (Check::Tests(name), Some(status)) => {
            with_kvm(libtest::count(name, &outcome.output, status == 0))
        }
        (Check::Linux(boot), Some(status)) => boot.judge(status, &outcome.output),
    }
}

/// A bed must have KVM, so a test that finds none there failed.
fn with_kvm(mut tally: Tally) -> Tally {
    let lacks_kvm = |skip: &String| skip.contains("/dev/kvm") || skip.contains("MINI_VMM_NO_KVM");
    let (failed, skipped) = tally.skips.into_iter().partition(lacks_kvm);
    let failed: Vec<String> = failed;
    tally.failures.extend(failed);
    tally.skips = skipped;
    tally
}

/// The integration tests of the Intel bed, with libtest's filters: those where vendors may differ. Bochs never
/// interrupts a nested guest that spins with interrupts disabled. So tests that interrupt such a guest, as most others
/// do, can't end there.
const INTEL_TESTS: &[(&str, &str)] = &[
    ("kvm_boot_entry", ""),
    ("kvm_fixup", "without_the_fix_up"),
    ("kvm_irq", ""),
    ("kvm_nested", ""),
    ("kvm_para", ""),
    ("kvm_para_32bit", ""),
    ("kvm_para_machine", "r9_auto h15_"),
    ("kvm_para_smp", "r11_"),
    (
        "kvm",
        "string_reads ports_and_mmio msrs_read_back unclaimed_msr triple_fault bytes_at_rip",
    ),
    ("kvm_coalesced", ""),
    ("kvm_registers", ""),
    ("kvm_snapshot_calls", ""),
    ("kvm_state", ""),
];

/// Adds the tests that use KVM: the files `tests/kvm*.rs`, and unit tests with `kvm` in their name. The
/// others ran on the host, and emulation makes them take minutes.
fn add_tests(
    run: &Run,
    vendor: Vendor,
    build: &TestBuild,
    bed: &mut Bed,
    scratch: &Scratch,
    jobs: &mut Vec<Job>,
) -> Result<()> {
    packages::require(&[("strip", "binutils")])?;
    let tests = build.tests.iter().filter(|test| test.package != "xtask");
    let mut used = false;
    for (index, test) in tests.enumerate() {
        let filter = match test.kind {
            Kind::Integration if vendor == Vendor::Intel => {
                match INTEL_TESTS
                    .iter()
                    .find(|(target, _)| *target == test.target)
                {
                    Some((_, filter)) => *filter,
                    None => continue,
                }
            }
            Kind::Integration if test.target.starts_with("kvm") => "",
            Kind::Integration => continue,
            Kind::Unit => "kvm",
        };
        let name = format!("{}::{}", test.package, test.target);
        if !name.contains(&run.only) {
            continue;
        }
        if test.kind == Kind::Unit && !has_tests(test, filter)? {
            continue;
        }
        if test.kind == Kind::Integration {
            // Without this check, a filter that no longer matches would silently skip a test.
            for word in filter.split_whitespace() {
                ensure!(has_tests(test, word)?, "{name} has no test like {word}");
            }
        }
        used = true;
        let guest = format!("/t/{}-{index}", test.target);
        add_stripped(bed, &test.path, &guest, scratch)?;
        jobs.push(Job {
            name: name.clone(),
            script: test_script(test, &guest, filter, run.long),
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

fn test_script(test: &TestBinary, guest: &str, filter: &str, long: bool) -> String {
    let directory = sh_quote(&test.directory.to_string_lossy());
    // One test at a time, because the bed has one CPU. Property tests try fewer cases, because the host tried them all.
    // MINI_VMM_BED allows tests to change settings of this kernel.
    let long = u8::from(long);
    format!(
        "mkdir -p {directory} && cd {directory}\n\
         export CARGO_MANIFEST_DIR={directory} PROPTEST_CASES=16 RUST_BACKTRACE=1\n\
         export MINI_VMM_BED=1 {LONG}={long}\n\
         exec {guest} --show-output --test-threads=1 {filter}\n"
    )
}

/// Adds a program without its debug sections, which are most of its size.
pub fn add_stripped(bed: &mut Bed, host: &Path, guest: &str, scratch: &Scratch) -> Result<()> {
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
    /// Their names.
    jobs: Vec<String>,
    outcomes: Vec<Outcome>,
    current: Option<(usize, Instant)>,
    line: Vec<u8>,
}

impl JobLog {
    fn new(nonce: &str, jobs: Vec<String>) -> JobLog {
        JobLog {
            mark: format!("@{nonce} "),
            outcomes: vec![Outcome::default(); jobs.len()],
            jobs,
            current: None,
            line: Vec::new(),
        }
    }

    /// Whether some jobs never began.
    fn is_waiting(&self) -> bool {
        self.outcomes.iter().any(|outcome| !outcome.began)
    }

    /// The number of jobs with a status.
    fn ended(&self) -> usize {
        let outcomes = self.outcomes.iter();
        outcomes.filter(|outcome| outcome.status.is_some()).count()
    }

    /// Whether a bed started its first job.
    fn has_begun(&self) -> bool {
        let mut outcomes = self.outcomes.iter();
        outcomes.any(|outcome| outcome.began || outcome.lost > 0)
    }

    /// Records that the bed ended, and the cause for the jobs without a status.
    fn end(&mut self, cause: &str) {
        self.line.clear();
        if let Some((index, started)) = self.current.take() {
            let outcome = &mut self.outcomes[index];
            outcome.elapsed = started.elapsed();
            let seconds = outcome.elapsed.as_secs();
            let name = &self.jobs[index];
            outcome.lost += 1;
            let again = outcome.lost < BEDS_PER_JOB;
            if again {
                outcome.output.clear();
                outcome.began = false;
            }
            outcome.cause = format!("{cause}\nits bed ended {seconds} s after {name} began");
            let next = if again { "; it gets another bed" } else { "" };
            eprintln!("xtask: {name}: the bed ended during this job, after {seconds} s{next}");
        }
        let idle = |outcome: &&mut Outcome| !outcome.began && outcome.lost == 0;
        for outcome in self.outcomes.iter_mut().filter(idle) {
            outcome.cause = format!("did not begin: {cause}");
        }
    }

    /// The script that runs the jobs of /jobs/0, /jobs/1, ... that have not started, each within `limit` seconds of CPU
    /// time, and marks their starts and ends.
    fn script(&self, limit: u32) -> String {
        let mark = &self.mark;
        let mut script = JOB_LIBRARY.to_owned();
        let jobs = self.outcomes.iter().enumerate();
        for (index, _) in jobs.filter(|(_, outcome)| !outcome.began) {
            script.push_str(&format!(
                "echo; echo '{mark}begin {index}'\n\
                 run {index} {limit}\n\
                 s=$?; echo; echo '{mark}end {index} '$s\n"
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
                if let Some(index) = index {
                    self.outcomes[index].began = true;
                }
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
                    self.jobs[index],
                    outcome.elapsed.as_secs_f64()
                );
            }
            _ => {}
        }
    }
}

mod moves;
#[cfg(test)]
mod tests;
