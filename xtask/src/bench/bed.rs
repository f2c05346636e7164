// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measures in the AMD bed, on real kvm-amd: boots of Debian's kernel, start, exits, all in counted time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::boots::{self, Boot, Boots};
use super::guest::Work;
use super::host::{Sample, parse_sample};
use super::order;
use super::results::Measure;
use super::subject::{Kind, Setup, Subject};
use crate::bed::{Bed, Hung, Vendor};
use crate::process::{Progress, last_lines, sh_words};
use crate::watch::Patience;

/// What starts a run's part of the output.
const MARK: &str = "BENCH-RUN ";
/// Exits of a short and of a long storm.
const STORM: (u32, u32) = (5_000, 105_000);
/// How long one run may take, in seconds of the bed's clock.
const LIMIT: u32 = 60;
/// When the bed has hung: twice what [`LIMIT`] takes in counted time, so that a subject that hangs is ended in the bed.
const PATIENCE: Patience = Patience::of_work(600);

/// What is measured in the bed.
#[derive(Debug)]
pub struct InBed<'a> {
    /// The stopwatch.
    pub probe: &'a Path,
    /// For images and initial RAM disks; they have the same paths in the bed.
    pub directory: PathBuf,
    /// What is compared.
    pub subjects: &'a [Subject],
    /// Rounds in the bed.
    pub rounds: usize,
    /// Whether the bed's clocks count instructions.
    pub counted: bool,
}

/// What one run is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Purpose {
    Start,
    /// Start with so many MiB.
    Grown(u32),
    /// So many exits, or few.
    Storm {
        work: Work,
        is_long: bool,
    },
    Boot(Boot),
    Timeline,
}

struct Job {
    purpose: Purpose,
    subject: usize,
    words: Vec<String>,
}

impl InBed<'_> {
    /// Runs the bed once; measures whose name contains `only`, and what there is to say of them.
    pub fn measure(&self, only: &str) -> Result<(Vec<Measure>, Option<String>)> {
        let mut bed = Bed::new(Vendor::Amd);
        bed.counted = self.counted;
        bed.timeout = None;
        bed.patience = Some(PATIENCE);
        bed.require()?;
        bed.add(self.probe, "/bin/bench-probe");
        let inside: Vec<Subject> = self
            .subjects
            .iter()
            .enumerate()
            .map(|(place, subject)| {
                let program = format!("/bin/subject-{place}");
                if subject.kind == Kind::Floor {
                    return subject.clone();
                }
                bed.add(&subject.program, &program);
                for (file, place) in subject.firmware() {
                    bed.add(&file, &place);
                }
                Subject {
                    program: program.into(),
                    ..subject.clone()
                }
            })
            .collect();
        let jobs = self.jobs(&inside, only)?;
        let files = std::fs::read_dir(&self.directory)?;
        for file in files.flatten() {
            let path = file.path();
            bed.add(&path, &path.to_string_lossy());
        }
        let mut output = Vec::new();
        let mut progress = None;
        let mut runs = 0;
        let status = bed.run(&script(&jobs, self.rounds), &mut |bytes| {
            let before = output.len().saturating_sub(MARK.len() - 1);
            output.extend_from_slice(bytes);
            let new = String::from_utf8_lossy(&output[before..])
                .matches(MARK)
                .count();
            if new > 0 {
                runs += new;
                // The old one says how long it took before the new one starts.
                progress = None;
                progress = Some(Progress::start(&format!("run {runs} in the AMD bed")));
            }
        });
        drop(progress);
        let mut output = String::from_utf8_lossy(&output).replace('\r', "");
        let mut note = None;
        match status {
            Ok(0) => {}
            Ok(status) => bail!(
                "the bed's job failed ({status}):\n{}",
                last_lines(&output, 20)
            ),
            // QEMU's counted time stands still now and then. What was measured until then is as good as ever.
            Err(error) if error.is::<Hung>() && runs > 1 => {
                let job = cut_last_run(&mut output).and_then(|number| jobs.get(number));
                let words = job.map_or_else(String::new, |job| sh_words(&job.words));
                note = Some(format!(
                    "the bed stood still in run {runs} ({words}): there are the runs before it only"
                ));
            }
            Err(error) => return Err(error),
        }
        let measures = self.evaluate(&jobs, &output)?;
        match note {
            Some(note) if measures.is_empty() => bail!(note),
            note => Ok((measures, note)),
        }
    }

    /// One run of each kind per subject, in the order of a round; the timeline last.
    fn jobs(&self, inside: &[Subject], only: &str) -> Result<Vec<Job>> {
        let wanted = |name: &str| name.contains(only);
        let mut jobs = Vec::new();
        let mut guests = Vec::new();
        if wanted("start") {
            guests.push((Purpose::Start, Work::Nothing));
        }
        if wanted("growth") {
            let sizes = [32, 512, 4096, 16384];
            guests.extend(sizes.map(|memory| (Purpose::Grown(memory), Work::Nothing)));
        }
        for storm in [Work::Port, Work::Mmio, Work::Msr, Work::Hypercall] {
            for (count, is_long) in [(STORM.0, false), (STORM.1, true)] {
                let work = storm(count);
                if wanted(storm_id(work)) {
                    guests.push((Purpose::Storm { work, is_long }, work));
                }
            }
        }
        for (purpose, work) in guests {
            let mut setup = Setup::of(work);
            if let Purpose::Grown(memory) = purpose {
                setup.memory = memory;
            }
            for (place, subject) in inside.iter().enumerate().filter(|(_, s)| s.can(&setup)) {
                let mut words = subject.words(&setup, &self.directory)?;
                if subject.kind == Kind::Floor {
                    words[0] = "/bin/bench-probe".to_owned();
                }
                jobs.push(Job {
                    purpose,
                    subject: place,
                    words,
                });
            }
        }
        if wanted("boot") {
            for (boot, subject, words) in boots::runs(inside, &self.directory)? {
                jobs.push(Job {
                    purpose: boot.map_or(Purpose::Timeline, Purpose::Boot),
                    subject,
                    words,
                });
            }
        }
        Ok(jobs)
    }

    fn evaluate(&self, jobs: &[Job], output: &str) -> Result<Vec<Measure>> {
        let unit = if self.counted { "ms, counted" } else { "ms" };
        let rate = if self.counted {
            "exits/s, counted"
        } else {
            "exits/s"
        };
        let new = |id: &str, title: &str, unit: &str| Measure::new(id, title, unit, None);
        let mut start = new("start-wall", "exec to exit", unit);
        let mut growth = Measure::new("memory-wall", "exec to exit by memory", unit, Some("MiB"));
        let mut boots = Boots::new(unit);
        let mut storms: Vec<Measure> = Vec::new();
        let mut short = None;
        for (job, text) in parse_runs(jobs, output)? {
            let name = &self.subjects[job.subject].name;
            let sample = parse_sample(text).filter(|sample| sample.wall > 0.0);
            let Some(Sample { wall, .. }) = sample else {
                bail!(
                    "{} failed in the bed:\n{}",
                    sh_words(&job.words),
                    last_lines(text, 5)
                );
            };
            match job.purpose {
                Purpose::Start => start.push(None, name, wall / 1e6),
                Purpose::Grown(memory) => {
                    growth.push(Some(f64::from(memory)), name, wall / 1e6);
                }
                Purpose::Boot(boot) => {
                    boots.add(boot, &self.subjects[job.subject], wall, text)?;
                }
                Purpose::Timeline => boots.add_timeline(wall, text),
                Purpose::Storm { work, is_long } => {
                    let id = storm_id(work);
                    let at = match storms.iter().position(|measure| measure.id == id) {
                        Some(at) => at,
                        None => {
                            let title = id.replace("exits-", "exits by ");
                            storms.push(new(id, &title, rate));
                            storms.len() - 1
                        }
                    };
                    // Short and long storms come in turn, each for all subjects.
                    if !is_long {
                        short.get_or_insert_with(Vec::new).push((job.subject, wall));
                    } else if let Some(shorts) = &mut short
                        && let Some(index) = shorts.iter().position(|(s, _)| *s == job.subject)
                    {
                        let (_, shorter) = shorts.remove(index);
                        let seconds = (wall - shorter).max(1.0) / 1e9;
                        storms[at].push(None, name, f64::from(STORM.1 - STORM.0) / seconds);
                    }
                }
            }
        }
        let mut all = vec![start, growth];
        all.extend(storms);
        all.extend(boots.into_measures());
        all.retain(|measure| !measure.points.is_empty());
        Ok(all)
    }
}

fn storm_id(work: Work) -> &'static str {
    match work {
        Work::Mmio(_) => "exits-mmio",
        Work::Msr(_) => "exits-msr",
        Work::Hypercall(_) => "exits-hypercall",
        _ => "exits-port",
    }
}

/// All jobs in turn, `rounds` times; timelines once.
fn script(jobs: &[Job], rounds: usize) -> String {
    let mut script = "cd /tmp\n".to_owned();
    let line = |number: usize, job: &Job| {
        let words = sh_words(&job.words);
        format!(
            "echo {MARK}{number}; timeout -s KILL {LIMIT} bench-probe lines {words} 2>/tmp/stderr \\\n\
             || tail -n 5 /tmp/stderr\n"
        )
    };
    let is_once = |job: &&Job| job.purpose == Purpose::Timeline;
    let turns: Vec<(usize, &Job)> = jobs.iter().enumerate().collect();
    for round in 0..rounds {
        for group in turns.chunk_by(|(_, a), (_, b)| a.purpose == b.purpose) {
            let mut group = group.to_vec();
            order::of_round(&mut group, round);
            for (number, job) in group.iter().filter(|(_, job)| !is_once(job)) {
                script.push_str(&line(*number, job));
            }
        }
    }
    for (number, job) in jobs.iter().enumerate().filter(|(_, job)| is_once(job)) {
        script.push_str(&line(number, job));
    }
    script.push_str(&format!("echo {MARK}end\n"));
    script
}

/// Takes away a run that has no end, and returns its job's number.
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
        Job {
            purpose,
            subject,
            words: vec!["x y".to_owned()],
        }
    }

    fn subject(name: &str, kind: Kind) -> Subject {
        Subject {
            name: name.to_owned(),
            kind,
            program: "/x".into(),
        }
    }

    #[test]
    fn scripts_run_in_rounds_and_timelines_once() {
        let boot = Purpose::Boot(Boot::Elf);
        let jobs = [job(boot, 0), job(boot, 1), job(Purpose::Timeline, 0)];
        let script = script(&jobs, 5);
        let runs = |number| {
            let run = format!("{MARK}{number}; timeout -s KILL 60 bench-probe lines 'x y'");
            script.matches(&run).count()
        };
        assert_eq!([runs(0), runs(1), runs(2)], [5, 5, 1]);
        assert!(script.rfind(&format!("{MARK}2")) > script.rfind(&format!("{MARK}1")));
    }

    #[test]
    fn runs_become_samples_of_their_subjects() {
        let subjects = [
            subject("mini-vmm", Kind::MiniVmm),
            subject("floor", Kind::Floor),
        ];
        let bed = InBed {
            probe: Path::new("/p"),
            directory: "/d".into(),
            subjects: &subjects,
            rounds: 1,
            counted: true,
        };
        let storm = |is_long| Purpose::Storm {
            work: Work::Port(0),
            is_long,
        };
        let jobs = [
            job(Purpose::Start, 1),
            job(storm(false), 0),
            job(storm(true), 0),
            job(Purpose::Boot(Boot::Elf), 0),
        ];
        let output = "noise\nBENCH-RUN 0\n7000000 0 0 0 0\nBENCH-RUN 1\n1000000 0 0 0 0\n\
            BENCH-RUN 2\n2001000000 0 0 0 0\nBENCH-RUN 3\n400000000 BENCH-INIT\n\
            900000000 400000000 0 0 0\nBENCH-RUN end\n";
        let measures = bed.evaluate(&jobs, output).unwrap();
        let found = |id: &str, name: &str| {
            let measure = measures.iter().find(|measure| measure.id == id).unwrap();
            measure.point().unwrap().samples(name).unwrap().to_vec()
        };
        assert_eq!(found("start-wall", "floor"), [7.0]);
        let exits = f64::from(STORM.1 - STORM.0);
        assert_eq!(found("exits-port", "mini-vmm"), [exits / 2.0]);
        assert_eq!(found("boot", "mini-vmm"), [900.0]);
        assert_eq!(found("boot-init", "mini-vmm"), [400.0]);
        let cut = output.replace("BENCH-RUN end\n", "");
        assert!(bed.evaluate(&jobs, &cut).is_err());
        let failed = output.replace("7000000 0 0 0 0", "bench-probe: no such file");
        let error = bed.evaluate(&jobs, &failed).unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
        let mut stood_still = output[..output.find("900000000 4").unwrap()].to_owned();
        assert_eq!(cut_last_run(&mut stood_still), Some(3));
        let measures = bed.evaluate(&jobs, &stood_still).unwrap();
        let ids: Vec<&str> = measures.iter().map(|measure| measure.id.as_str()).collect();
        assert_eq!(ids, ["start-wall", "exits-port"]);
    }
}
