// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measurements in the AMD bed, on real kvm-amd: boots of Debian's kernel, start, exits, all in counted time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::boots::{self, Boot};
use super::debian;
use super::guest::Work;
use super::host::{STORMS, Sample, parse_sample};
use super::order;
use super::restore::{self, Frozen};
use super::results::Report;
use super::subject::{Kind, Setup, Subject};
use super::virtio::{self, Load};
use crate::bed::{Bed, Hung, Vendor};
use crate::process::{Progress, last_lines, sh_words};
use crate::watch::Patience;

/// The start of a run's part of the output.
const MARK: &str = "BENCH-RUN ";
/// The path of the stopwatch in the bed.
const PROBE: &str = "/bin/bench-probe";
/// Exits of a short and of a long storm.
const FEW: u32 = 5_000;
const MANY: u32 = 105_000;
/// The limit of one run, in seconds of the bed's clock.
const LIMIT: u32 = 60;
/// The limit of the bed: twice what [`LIMIT`] takes in counted time, so that the bed itself ends a subject that hangs.
const PATIENCE: Patience = Patience::of_work(600);

/// The measurements in the bed.
#[derive(Debug)]
pub struct InBed<'a> {
    /// The stopwatch.
    pub probe: &'a Path,
    /// For images and initial RAM disks; they have the same paths in the bed.
    pub directory: PathBuf,
    /// The compared programs.
    pub subjects: &'a [Subject],
    /// Rounds in the bed.
    pub rounds: usize,
}

/// The purpose of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Purpose {
    /// A measure of its time, at a position of the axis.
    Time(&'static str, Option<u32>),
    /// A measure of exits, and the number of exits, few or many.
    Storm(&'static str, u32),
    /// A load on a device, and the number of requests, few or many.
    Load(Load, u32),
    Boot(Boot),
    /// The first boot of all of Debian, which is not measured.
    FirstDebian,
    /// All of Debian.
    Debian,
    /// A saved machine with this much memory goes on.
    Restore(u32),
}

struct Job {
    purpose: Purpose,
    subject: usize,
    words: Vec<String>,
    /// What the probe does before all jobs; nothing if this is empty.
    before: Vec<String>,
}

impl Job {
    fn new(purpose: Purpose, subject: usize, words: Vec<String>) -> Job {
        Job {
            purpose,
            subject,
            words,
            before: Vec::new(),
        }
    }
}

impl InBed<'_> {
    /// Runs the bed once; reports measures whose name contains `only`, with notes.
    pub fn measure(&self, only: &str, report: &mut Report) -> Result<()> {
        let mut bed = Bed::new(Vendor::Amd);
        bed.counted = report.counted;
        bed.timeout = None;
        bed.patience = Some(PATIENCE);
        bed.require()?;
        bed.add(self.probe, PROBE);
        let places = self.subjects.iter().enumerate();
        let inside: Vec<Subject> = places
            .map(|(place, subject)| add(&mut bed, place, subject))
            .collect();
        if debian::is_wanted(only) {
            debian::prepare(&mut bed, &self.directory)?;
            bed.patience = Some(debian::PATIENCE);
        }
        let jobs = self.jobs(&inside, only)?;
        for file in std::fs::read_dir(&self.directory)?.flatten() {
            let path = file.path();
            bed.add(&path, &path.to_string_lossy());
        }
        let (status, mut output, runs) = run(&bed, &script(&jobs, self.rounds));
        match status {
            Ok(0) => {}
            Ok(status) => {
                let said = last_lines(&output, 20);
                bail!("the bed's job failed ({status}):\n{said}")
            }
            // QEMU's counted time sometimes stops. The measurements until then are valid.
            Err(error) if error.is::<Hung>() && runs > 1 => {
                let job = cut_last_run(&mut output).and_then(|number| jobs.get(number));
                let words = job.map_or_else(String::new, |job| sh_words(&job.words));
                report.notes.push(format!(
                    "the bed hung in run {runs} ({words}): only the runs before it count"
                ));
            }
            Err(error) => return Err(error),
        }
        self.evaluate(&jobs, &output, report)?;
        match report.notes.last() {
            Some(note) if report.measures.is_empty() => bail!("{note}"),
            _ => Ok(()),
        }
    }

    /// One run of each kind per subject, in the order of a round; the timeline last.
    fn jobs(&self, inside: &[Subject], only: &str) -> Result<Vec<Job>> {
        let wanted = |name: &str| name.contains(only);
        let usual = Setup::of(Work::Nothing);
        let mut guests = Vec::new();
        if wanted("start") {
            guests.push((Purpose::Time("start-wall", None), usual));
        }
        let sizes = [32, 512, 4096, 16384].into_iter();
        for memory in sizes.filter(|_| wanted("growth")) {
            let purpose = Purpose::Time("memory-wall", Some(memory));
            guests.push((purpose, Setup { memory, ..usual }));
        }
        for (id, work) in STORMS.into_iter().filter(|(id, _)| wanted(id)) {
            let storm = |count| (Purpose::Storm(id, count), Setup::of(work(count)));
            guests.extend([storm(FEW), storm(MANY)]);
        }
        let mut jobs = Vec::new();
        for (purpose, setup) in guests {
            for (place, subject) in inside.iter().enumerate().filter(|(_, s)| s.can(&setup)) {
                let words = subject.words(&setup, &self.directory)?;
                jobs.push(Job::new(purpose, place, words));
            }
        }
        for load in virtio::LOADS
            .into_iter()
            .filter(|load| load.work.is_disk() && wanted(load.ids[2]))
        {
            for count in load.counts {
                for (place, subject) in inside.iter().enumerate().filter(|(_, s)| virtio::can(s)) {
                    let words = load.words(subject, count, &self.directory, virtio::BED_DISK)?;
                    jobs.push(Job::new(Purpose::Load(load, count), place, words));
                }
            }
        }
        if wanted("restore") {
            jobs.extend(self.restores(inside)?);
        }
        if wanted("boot") {
            for (boot, place, words) in boots::runs(inside, &self.directory)? {
                jobs.push(Job::new(Purpose::Boot(boot), place, words));
            }
        }
        if debian::is_wanted(only) {
            let able = || inside.iter().enumerate().filter(|(_, s)| virtio::can(s));
            let first = able()
                .take(1)
                .map(|one| (one, Purpose::FirstDebian, debian::FIRST_JOB));
            let all = able().map(|one| (one, Purpose::Debian, debian::JOB));
            for ((place, subject), purpose, job) in first.chain(all) {
                let words = debian::words(subject, job, &self.directory)?;
                jobs.push(Job::new(purpose, place, words));
            }
        }
        Ok(jobs)
    }

    /// Saves come before all runs.
    fn restores(&self, inside: &[Subject]) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for setup in restore::SIZES.map(restore::saved) {
            // Cloud Hypervisor's snapshots are as large as their memory, and all of them are in the bed's.
            let able = |subject: &Subject| {
                let is_small = setup.memory == restore::SIZES[0];
                restore::can(subject) && (is_small || subject.kind != Kind::CloudHypervisor)
            };
            for (place, subject) in inside.iter().enumerate().filter(|(_, s)| able(s)) {
                let frozen = Frozen::new(subject, &setup, Path::new("/tmp"));
                let purpose = Purpose::Restore(setup.memory);
                jobs.push(Job {
                    before: frozen.save(&setup, &self.directory)?,
                    ..Job::new(purpose, place, frozen.go_on(&setup))
                });
            }
        }
        Ok(jobs)
    }

    fn evaluate(&self, jobs: &[Job], output: &str, report: &mut Report) -> Result<()> {
        // The times of short storms; the long storms of the same round follow them.
        let mut short = BTreeMap::new();
        for (job, text) in parse_runs(jobs, output)? {
            let subject = &self.subjects[job.subject];
            let sample = parse_sample(text).filter(|sample| sample.wall > 0.0);
            let Some(Sample { wall, .. }) = sample else {
                let (words, said) = (sh_words(&job.words), last_lines(text, 5));
                bail!("{words} failed in the bed:\n{said}");
            };
            match job.purpose {
                Purpose::Time(id, x) => {
                    report.push(id, x.map(f64::from), &subject.name, wall / 1e6);
                }
                Purpose::Restore(memory) => {
                    let x = Some(f64::from(memory));
                    report.push("restore-wall", x, &subject.name, wall / 1e6);
                }
                Purpose::FirstDebian => {}
                Purpose::Debian => debian::add(report, subject, wall, text),
                Purpose::Boot(boot) => boots::add(report, boot, subject, wall, text)?,
                Purpose::Load(load, count) if count == load.counts[0] => {
                    short.insert((load.ids[2], job.subject), wall);
                }
                Purpose::Load(load, count) => {
                    if let Some(shorter) = short.remove(&(load.ids[2], job.subject)) {
                        let requests = f64::from(count - load.counts[0]);
                        let each = (wall - shorter) / 1e3 / requests;
                        report.push(load.ids[2], load.x().map(f64::from), &subject.name, each);
                    }
                }
                Purpose::Storm(id, FEW) => drop(short.insert((id, job.subject), wall)),
                Purpose::Storm(id, _) => {
                    if let Some(shorter) = short.remove(&(id, job.subject)) {
                        let seconds = (wall - shorter).max(1.0) / 1e9;
                        let rate = f64::from(MANY - FEW) / seconds;
                        report.push(id, None, &subject.name, rate);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Adds a subject with its files to the bed; returns the subject with its paths there.
fn add(bed: &mut Bed, place: usize, subject: &Subject) -> Subject {
    let mut program = PROBE.to_owned();
    if subject.kind != Kind::Floor {
        program = format!("/bin/subject-{place}");
        bed.add(&subject.program, &program);
    }
    for (file, place) in subject.firmware() {
        bed.add(&file, &place);
    }
    Subject::new(&subject.name, subject.kind, Path::new(&program))
}

/// Runs the bed's script: its status, its output, and how many runs it started.
fn run(bed: &Bed, script: &str) -> (Result<u8>, String, usize) {
    let (mut output, mut runs) = (Vec::new(), 0);
    let mut progress = None;
    let status = bed.run(script, &mut |bytes| {
        let before = output.len().saturating_sub(MARK.len() - 1);
        output.extend_from_slice(bytes);
        let new = String::from_utf8_lossy(&output[before..]);
        let new = new.matches(MARK).count();
        if new > 0 {
            runs += new;
            // The old progress line must end before the new one starts.
            drop(progress.take());
            progress = Some(Progress::start(&format!("run {runs} in the AMD bed")));
        }
    });
    drop(progress);
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    (status, output, runs)
}

/// All jobs in turn, `rounds` times; first boots and timelines once.
fn script(jobs: &[Job], rounds: usize) -> String {
    let mut script = "cd /tmp\n".to_owned();
    let has_disk = |job: &Job| matches!(job.purpose, Purpose::Load(..) | Purpose::Debian);
    if jobs.iter().any(has_disk) {
        script.push_str(virtio::BED_SCRIPT);
    }
    if jobs.iter().any(|job| job.purpose == Purpose::Debian) {
        script.push_str(debian::BED_SCRIPT);
    }
    for job in jobs.iter().filter(|job| !job.before.is_empty()) {
        script.push_str(&format!("bench-probe {}\n", sh_words(&job.before)));
    }
    let line = |number: usize, job: &Job| {
        let words = sh_words(&job.words);
        let words = match job.purpose {
            // They say what the probe does.
            Purpose::Restore(_) => words,
            _ => format!("lines {words}"),
        };
        let limit = match job.purpose {
            // Its words have their own.
            Purpose::FirstDebian | Purpose::Debian => String::new(),
            _ => format!("timeout -s KILL {LIMIT} "),
        };
        format!(
            "echo {MARK}{number}; {limit}bench-probe {words} 2>/tmp/stderr \\\n\
             || tail -n 5 /tmp/stderr\n"
        )
    };
    // The round in which a job runs, if it does so only once. Timelines are the last jobs.
    let only_round = |job: &Job| match job.purpose {
        Purpose::FirstDebian => Some(0),
        Purpose::Boot(Boot::Timeline) => Some(rounds - 1),
        _ => None,
    };
    let turns: Vec<(usize, &Job)> = jobs.iter().enumerate().collect();
    for round in 0..rounds {
        for group in turns.chunk_by(|(_, a), (_, b)| a.purpose == b.purpose) {
            let mut group = group.to_vec();
            order::of_round(&mut group, round);
            group.retain(|(_, job)| only_round(job).is_none_or(|only| only == round));
            for (number, job) in group {
                script.push_str(&line(number, job));
            }
        }
    }
    script.push_str(&format!("echo {MARK}end\n"));
    script
}

/// Removes an unfinished run from the output, and returns its job's number.
fn cut_last_run(output: &mut String) -> Option<usize> {
    let at = output.rfind(MARK)?;
    let cut = output.split_off(at);
    output.push_str(&format!("{MARK}end\n"));
    cut.lines().next()?.strip_prefix(MARK)?.parse().ok()
}

/// The output of each run, with its job.
fn parse_runs<'a>(jobs: &'a [Job], output: &'a str) -> Result<Vec<(&'a Job, &'a str)>> {
    let mut runs = Vec::new();
    for part in output.split(MARK).skip(1) {
        let (number, text) = part.split_once('\n').unwrap_or((part, ""));
        if number == "end" {
            return Ok(runs);
        }
        let job = number
            .parse()
            .ok()
            .and_then(|number: usize| jobs.get(number));
        runs.push((job.context("the bed's output is garbled")?, text));
    }
    bail!("the bed's output has no end:\n{}", last_lines(output, 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(purpose: Purpose, subject: usize) -> Job {
        Job::new(purpose, subject, vec!["x y".to_owned()])
    }

    #[test]
    fn scripts_run_in_rounds_and_timelines_once() {
        let boot = Purpose::Boot(Boot::Elf);
        let jobs = [
            job(boot, 0),
            job(boot, 1),
            job(Purpose::Boot(Boot::Timeline), 0),
        ];
        let script = script(&jobs, 5);
        let runs = |number| {
            let run = format!("{MARK}{number}; timeout -s KILL 60 bench-probe lines 'x y'");
            script.matches(&run).count()
        };
        assert_eq!([runs(0), runs(1), runs(2)], [5, 5, 1]);
        assert!(script.rfind(&format!("{MARK}2")) > script.rfind(&format!("{MARK}1")));
    }

    #[test]
    fn machines_are_saved_once_before_all_runs() {
        let mut restore = job(Purpose::Restore(128), 0);
        restore.before = vec!["freeze".to_owned(), "a b".to_owned()];
        let script = script(&[restore], 3);
        assert_eq!(script.matches("bench-probe freeze 'a b'\n").count(), 1);
        assert!(script.find("freeze") < script.find(MARK));
        assert_eq!(script.matches("bench-probe 'x y'").count(), 3);
    }

    #[test]
    fn runs_become_samples_of_their_subjects() {
        let subjects = [
            Subject::new("mini-vmm", Kind::MiniVmm, Path::new("/x")),
            Subject::new("floor", Kind::Floor, Path::new("/x")),
        ];
        let bed = InBed {
            probe: Path::new("/p"),
            directory: "/d".into(),
            subjects: &subjects,
            rounds: 1,
        };
        let evaluate = |jobs: &[Job], output: &str| {
            let mut report = Report::default();
            bed.evaluate(jobs, output, &mut report)?;
            anyhow::Ok(report)
        };
        let storm = |count| Purpose::Storm("exits-port", count);
        let jobs = [
            job(Purpose::Time("start-wall", None), 1),
            job(storm(FEW), 0),
            job(storm(MANY), 0),
            job(Purpose::Boot(Boot::Elf), 0),
        ];
        let output = "noise\nBENCH-RUN 0\n7000000 0 0 0 0\nBENCH-RUN 1\n1000000 0 0 0 0\n\
            BENCH-RUN 2\n2001000000 0 0 0 0\nBENCH-RUN 3\n400000000 BENCH-INIT\n\
            900000000 400000000 0 0 0\nBENCH-RUN end\n";
        let report = evaluate(&jobs, output).unwrap();
        let found = |id: &str, name: &str| {
            let point = report.find(id).unwrap().point().unwrap();
            point.samples(name).unwrap().to_vec()
        };
        assert_eq!(found("start-wall", "floor"), [7.0]);
        let exits = f64::from(MANY - FEW);
        assert_eq!(found("exits-port", "mini-vmm"), [exits / 2.0]);
        assert_eq!(found("boot", "mini-vmm"), [900.0]);
        assert_eq!(found("boot-init", "mini-vmm"), [400.0]);
        let cut = output.replace("BENCH-RUN end\n", "");
        assert!(evaluate(&jobs, &cut).is_err());
        let failed = output.replace("7000000 0 0 0 0", "bench-probe: no such file");
        let error = evaluate(&jobs, &failed).unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
        let mut stood_still = output[..output.find("900000000 4").unwrap()].to_owned();
        assert_eq!(cut_last_run(&mut stood_still), Some(3));
        let report = evaluate(&jobs, &stood_still).unwrap();
        let ids: Vec<&str> = report
            .measures
            .iter()
            .map(|measure| measure.id.as_str())
            .collect();
        assert_eq!(ids, ["start-wall", "exits-port"]);
    }
}
