// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measures on this host: one process per sample, the subjects in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::guest::Work;
use super::order;
use super::results::Measure;
use super::subject::{Kind, Setup, Subject};
use crate::process::{capture_watched, last_lines, step};
use crate::watch::Patience;

/// When one process has hung.
const PATIENCE: Patience = Patience::of_work(60);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of the single measures.
    pub rounds: usize,
    /// Rounds at each place of a growth.
    pub growth_rounds: usize,
    /// Exits in a storm.
    pub exits: u32,
    /// Sizes of memory, in MiB.
    pub memory: &'static [u32],
    /// Numbers of vCPUs.
    pub cpus: &'static [u32],
    /// Numbers of machines at once.
    pub machines: &'static [u32],
}

/// What a night is not too short for.
pub const FULL: Effort = Effort {
    rounds: 40,
    growth_rounds: 15,
    exits: 60_000,
    memory: &[32, 128, 512, 2048, 8192, 16384],
    cpus: &[1, 2, 4, 8, 16, 32, 64],
    machines: &[1, 10, 50, 100],
};

/// A look.
pub const QUICK: Effort = Effort {
    rounds: 7,
    growth_rounds: 3,
    exits: 10_000,
    memory: &[32, 2048, 16384],
    cpus: &[1, 4],
    machines: &[1, 10],
};

/// The end of one process, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// From before fork and exec to when its end was known.
    pub wall: f64,
    /// Until its guest's sign came; none if it never did.
    pub first: Option<f64>,
    /// Of CPU, in user mode and in the kernel, of all its threads.
    pub cpu: f64,
    /// Its exit code.
    pub code: i32,
}

/// Reads the line that the probe ends with.
pub fn parse_sample(text: &str) -> Option<Sample> {
    let mut words = text.trim_end().lines().last()?.split(' ');
    let mut next = || words.next()?.parse::<f64>().ok();
    let (wall, first, user, system) = (next()?, next()?, next()?, next()?);
    Some(Sample {
        wall,
        first: (first > 0.0).then_some(first),
        cpu: user + system,
        code: words.next()?.parse().ok()?,
    })
}

/// Where and how the measures are taken.
#[derive(Debug)]
pub struct Host<'a> {
    /// The stopwatch.
    pub probe: &'a Path,
    /// For guests' images.
    pub directory: PathBuf,
    /// What is compared.
    pub subjects: &'a [Subject],
    /// How much.
    pub effort: Effort,
    /// What went wrong, once each.
    pub notes: Vec<String>,
}

/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

impl Host<'_> {
    /// One process of `subject`.
    fn sample(&self, subject: &Subject, setup: &Setup) -> Result<Sample> {
        let mut command = Command::new(self.probe);
        command
            .arg("run")
            .args(subject.words(setup, &self.directory)?);
        let end = capture_watched(&command, PATIENCE)?;
        let sample = end
            .end
            .ok()
            .filter(|status| status.success())
            .and_then(|_| parse_sample(end.text.split("\n\n").next().unwrap_or_default()));
        match sample {
            // kvmtool and QEMU have codes of their own for an end by reset.
            Some(sample) if sample.code == 0 || subject.kind == Kind::Qemu => Ok(sample),
            Some(sample) => bail!(
                "{} ended with code {}: {}",
                subject.name,
                sample.code,
                last_lines(&end.text, 5)
            ),
            None => bail!("{}: {}", subject.name, last_lines(&end.text, 5)),
        }
    }

    /// All subjects that can, in turn, so often; `take` sees each sample. One that fails is left out, with a note.
    fn rounds(&mut self, rounds: usize, setup: Setup, take: &mut dyn FnMut(&Subject, Sample)) {
        let mut able = self.able(&setup);
        let what = format!("{setup:?}");
        // The first round only fills the host's caches; the first one that counts has the order of the tables.
        for round in 0..=rounds {
            self.turns(
                &mut able,
                round.saturating_sub(1),
                &what,
                &mut |host, subject| {
                    let sample = host.sample(subject, &setup)?;
                    if round > 0 {
                        take(subject, sample);
                    }
                    Ok(())
                },
            );
        }
    }

    /// One turn of each of `able` in the order of a round. Who fails is not able any more, and a note says why.
    fn turns(
        &mut self,
        able: &mut Vec<Subject>,
        round: usize,
        what: &str,
        turn: &mut dyn FnMut(&Self, &Subject) -> Result<()>,
    ) {
        let mut order: Vec<usize> = (0..able.len()).collect();
        order::of_round(&mut order, round);
        let mut failed = Vec::new();
        for place in order {
            let subject = &able[place];
            if let Err(error) = turn(self, subject) {
                self.notes.push(format!("{what}: {error:#}"));
                failed.push(subject.name.clone());
            }
        }
        able.retain(|subject| !failed.contains(&subject.name));
    }

    /// From exec to the end of the process, with a guest that only ends.
    pub fn start(&mut self) -> Vec<Measure> {
        let mut wall = Measure::new("start-wall", "exec to exit, wall", "ms", None);
        let mut cpu = Measure::new("start-cpu", "exec to exit, CPU", "ms", None);
        let setup = Setup::of(Work::Nothing);
        step("exec to exit", || {
            self.rounds(self.effort.rounds, setup, &mut |subject, sample| {
                wall.push(None, &subject.name, sample.wall / MS);
                cpu.push(None, &subject.name, sample.cpu / MS);
            });
        });
        vec![wall, cpu]
    }

    /// From exec to the guest's first byte on the console, and from there to the end.
    pub fn first_output(&mut self) -> Vec<Measure> {
        let mut first = Measure::new("first-byte", "exec to the guest's first byte", "ms", None);
        let mut end = Measure::new("tear-down", "the guest's first byte to exit", "ms", None);
        step("exec to first byte", || {
            let setup = Setup::of(Work::Say);
            self.rounds(self.effort.rounds, setup, &mut |subject, sample| {
                if let Some(time) = sample.first {
                    first.push(None, &subject.name, time / MS);
                    end.push(None, &subject.name, (sample.wall - time) / MS);
                }
            });
        });
        vec![first, end]
    }

    /// The same start with more memory, and with more vCPUs.
    pub fn growth(&mut self) -> Vec<Measure> {
        let (title, more) = ("exec to exit by memory", "exec to exit by vCPUs");
        let mut all = vec![
            Measure::new("memory-wall", &format!("{title}, wall"), "ms", Some("MiB")),
            Measure::new("memory-cpu", &format!("{title}, CPU"), "ms", Some("MiB")),
            Measure::new("vcpus-wall", &format!("{more}, wall"), "ms", Some("vCPUs")),
            Measure::new("vcpus-cpu", &format!("{more}, CPU"), "ms", Some("vCPUs")),
        ];
        let usual = Setup::of(Work::Nothing);
        let sizes = self
            .effort
            .memory
            .iter()
            .map(|&memory| Setup { memory, ..usual });
        let counts = self.effort.cpus.iter().map(|&cpus| Setup { cpus, ..usual });
        let sizes: Vec<(usize, f64, Setup)> = sizes
            .map(|setup| (0, f64::from(setup.memory), setup))
            .chain(counts.map(|setup| (2, f64::from(setup.cpus), setup)))
            .collect();
        for (at, x, setup) in sizes {
            step(&format!("{setup:?}"), || {
                self.rounds(self.effort.growth_rounds, setup, &mut |subject, sample| {
                    all[at].push(Some(x), &subject.name, sample.wall / MS);
                    all[at + 1].push(Some(x), &subject.name, sample.cpu / MS);
                });
            });
        }
        all
    }

    /// Exits per second of a guest that does nothing else: what many cost more than none.
    pub fn exits(&mut self) -> Vec<Measure> {
        type Storm = fn(u32) -> Work;
        let kinds: [(&str, &str, Storm); 4] = [
            ("exits-port", "port writes to a device", Work::Port),
            ("exits-mmio", "MMIO writes to no device", Work::Mmio),
            ("exits-msr", "registrations by MSR", Work::Msr),
            ("exits-hypercall", "hypercalls by port", Work::Hypercall),
        ];
        let mut all = Vec::new();
        for (id, title, work) in kinds {
            let mut measure = Measure::new(id, title, "exits/s", None);
            step(title, || self.storm(work, &mut measure));
            all.push(measure);
        }
        all
    }

    fn storm(&mut self, work: fn(u32) -> Work, measure: &mut Measure) {
        let (few, many) = (self.effort.exits / 20, self.effort.exits);
        let mut able = self.able(&Setup::of(work(few)));
        let title = measure.title.clone();
        for round in 0..self.effort.rounds.min(20) {
            self.turns(&mut able, round, &title, &mut |host, subject| {
                let time = |count| host.sample(subject, &Setup::of(work(count)));
                let (short, long) = (time(few)?, time(many)?);
                // At least a nanosecond: a short run that was held up is no reason for infinity.
                let seconds = (long.wall - short.wall).max(1.0) / 1e9;
                measure.push(None, &subject.name, f64::from(many - few) / seconds);
                Ok(())
            });
        }
    }

    fn able(&self, setup: &Setup) -> Vec<Subject> {
        let can = |subject: &&Subject| subject.can(setup);
        self.subjects.iter().filter(can).cloned().collect()
    }

    /// The sizes of the programs' files.
    pub fn sizes(&self) -> Result<Measure> {
        let mut measure = Measure::new("size", "size of the program's file", "MB", None);
        for subject in self.subjects.iter().filter(|s| s.kind != Kind::Floor) {
            let metadata = fs::metadata(&subject.program)
                .with_context(|| format!("can't look at {}", subject.program.display()))?;
            measure.push(None, &subject.name, metadata.len() as f64 / 1e6);
        }
        Ok(measure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_says_five_numbers() {
        let sample = parse_sample("12 guest's line\n5000 700 30 12 3\n").unwrap();
        assert_eq!((sample.wall, sample.first), (5000.0, Some(700.0)));
        assert_eq!((sample.cpu, sample.code), (42.0, 3));
        assert_eq!(parse_sample("5000 0 30 12 0").unwrap().first, None);
        for broken in ["", "5000 700 30 12", "a b c d e"] {
            assert_eq!(parse_sample(broken), None, "{broken}");
        }
    }
}
