// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measurements on this host: one process per sample, the subjects in turn.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::guest::Work;
use super::order;
use super::results::Report;
use super::subject::{Kind, Setup, Subject};
use crate::process::{Watched, capture_watched, last_lines, step};
use crate::watch::Patience;

/// The limits of one process.
const PATIENCE: Patience = Patience::of_work(60);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of the single measures.
    pub rounds: usize,
    /// Rounds at each position of a growth measure.
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

/// The full suite.
pub const FULL: Effort = Effort {
    rounds: 40,
    growth_rounds: 15,
    exits: 60_000,
    memory: &[32, 128, 512, 2048, 8192, 16384],
    cpus: &[1, 2, 4, 8, 16, 32, 64],
    machines: &[1, 10, 50, 100],
};

/// The quick suite.
pub const QUICK: Effort = Effort {
    rounds: 7,
    growth_rounds: 3,
    exits: 10_000,
    memory: &[32, 2048, 16384],
    cpus: &[1, 4],
    machines: &[1, 10],
};

/// The sample of one process, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// From before fork and exec until its end was known.
    pub wall: f64,
    /// Until the guest's first byte; none if there was none.
    pub first: Option<f64>,
    /// CPU time of all its threads, in user mode and in the kernel.
    pub cpu: f64,
    /// Its exit code.
    pub code: i32,
}

/// Parses the probe's last line.
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

/// The host's measurements.
#[derive(Debug)]
pub struct Host<'a> {
    /// The stopwatch.
    pub probe: &'a Path,
    /// For guests' images.
    pub directory: PathBuf,
    /// The compared programs.
    pub subjects: &'a [Subject],
    /// How much.
    pub effort: Effort,
    /// The results, and notes about failures.
    pub report: Report,
}

/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

/// The samples of a turn, by the measure's id.
pub type Found = Vec<(&'static str, f64)>;

/// Work with this many exits of one kind.
pub type Storm = fn(u32) -> Work;

/// The storms whose rate is measured, by the measure's id.
pub const STORMS: [(&str, Storm); 4] = [
    ("exits-port", Work::Port),
    ("exits-mmio", Work::Mmio),
    ("exits-msr", Work::Msr),
    ("exits-hypercall", Work::Hypercall),
];

impl Host<'_> {
    /// One process of `subject`.
    fn sample(&self, subject: &Subject, setup: &Setup) -> Result<Sample> {
        let mut words = vec!["run".to_owned()];
        words.extend(subject.words(setup, &self.directory)?);
        let text = self.ask_probe(&words)?;
        match parse_sample(&text) {
            // QEMU has its own exit codes after a reset.
            Some(sample) if sample.code == 0 || subject.kind == Kind::Qemu => Ok(sample),
            Some(sample) => bail!("ended with code {}: {text}", sample.code),
            None => bail!("{text}"),
        }
    }

    /// Runs the probe, and returns what it prints.
    pub fn ask_probe(&self, words: &[String]) -> Result<String> {
        let mut command = Command::new(self.probe);
        command.args(words);
        let Watched { end, text } = capture_watched(&command, PATIENCE)?;
        // What it printed and its errors, apart.
        let line = text.split("\n\n").next().unwrap_or_default();
        match end.is_ok_and(|status| status.success()) {
            true => Ok(line.to_owned()),
            false => bail!("{}", last_lines(&text, 5)),
        }
    }

    /// All `able` subjects take turns in each of `rounds`. Their samples are reported at the position `x`, except for
    /// those of round 0. A subject that fails is omitted from then on, with a note.
    pub fn turns(
        &mut self,
        what: &str,
        rounds: RangeInclusive<usize>,
        x: Option<u32>,
        able: impl Fn(&Subject) -> bool,
        mut turn: impl FnMut(&mut Self, &Subject) -> Result<Found>,
    ) {
        let mut able: Vec<&Subject> = self.subjects.iter().filter(|s| able(s)).collect();
        step(what, || {
            for round in rounds {
                // The first round that counts has the tables' order.
                let mut order = able.clone();
                order::of_round(&mut order, round.saturating_sub(1));
                for subject in order {
                    let found = turn(self, subject).unwrap_or_else(|error| {
                        let note = format!("{what}: {}: {error:#}", subject.name);
                        self.report.notes.push(note);
                        able.retain(|other| other.name != subject.name);
                        Found::new()
                    });
                    for (id, sample) in found.into_iter().filter(|_| round > 0) {
                        let x = x.map(f64::from);
                        self.report.push(id, x, &subject.name, sample);
                    }
                }
            }
        });
    }

    /// Turns of one process each, after a round that only fills the host's caches.
    fn samples(
        &mut self,
        rounds: usize,
        x: Option<u32>,
        setup: Setup,
        found: impl Fn(Sample) -> Found,
    ) {
        let (what, can) = (format!("{setup:?}"), |s: &Subject| s.can(&setup));
        self.turns(&what, 0..=rounds, x, can, |host, subject| {
            Ok(found(host.sample(subject, &setup)?))
        });
    }

    /// From exec to exit, wall time and CPU.
    fn times(&mut self, ids: [&'static str; 2], rounds: usize, x: Option<u32>, setup: Setup) {
        self.samples(rounds, x, setup, |sample| {
            vec![(ids[0], sample.wall / MS), (ids[1], sample.cpu / MS)]
        });
    }

    /// From exec to the end of the process, with a guest that ends at once.
    pub fn start(&mut self) {
        let (ids, setup) = (["start-wall", "start-cpu"], Setup::of(Work::Nothing));
        self.times(ids, self.effort.rounds, None, setup);
    }

    /// From exec to the guest's first byte on the console, and from there to the end.
    pub fn first_output(&mut self) {
        let setup = Setup::of(Work::Say);
        self.samples(self.effort.rounds, None, setup, |sample| {
            let Some(first) = sample.first else {
                return Found::new();
            };
            let end = ("tear-down", (sample.wall - first) / MS);
            vec![("first-byte", first / MS), end]
        });
    }

    /// The same start with more memory, and with more vCPUs.
    pub fn growth(&mut self) {
        let (rounds, usual) = (self.effort.growth_rounds, Setup::of(Work::Nothing));
        for &memory in self.effort.memory {
            let setup = Setup { memory, ..usual };
            self.times(["memory-wall", "memory-cpu"], rounds, Some(memory), setup);
        }
        for &cpus in self.effort.cpus {
            let setup = Setup { cpus, ..usual };
            self.times(["vcpus-wall", "vcpus-cpu"], rounds, Some(cpus), setup);
        }
    }

    /// Exits per second of a guest that does nothing else, from the difference between many exits and none.
    pub fn exits(&mut self) {
        let (few, many) = (self.effort.exits / 20, self.effort.exits);
        for (id, work) in STORMS {
            let can = |subject: &Subject| subject.can(&Setup::of(work(few)));
            let rounds = 1..=self.effort.rounds.min(20);
            self.turns(id, rounds, None, can, |host, subject| {
                let time = |count| host.sample(subject, &Setup::of(work(count)));
                let (short, long) = (time(few)?, time(many)?);
                // At least a nanosecond, because a delayed short run would give infinity.
                let seconds = (long.wall - short.wall).max(1.0) / 1e9;
                Ok(vec![(id, f64::from(many - few) / seconds)])
            });
        }
    }

    /// The sizes of the programs' files.
    pub fn sizes(&mut self) {
        let is_vmm = |subject: &Subject| subject.kind != Kind::Floor;
        self.turns("size", 1..=1, None, is_vmm, |_, subject| {
            let metadata = fs::metadata(&subject.program);
            let metadata =
                metadata.with_context(|| format!("can't look at {}", subject.program.display()))?;
            Ok(vec![("size", metadata.len() as f64 / 1e6)])
        });
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

    #[test]
    fn who_fails_takes_no_more_turns_and_the_first_round_is_not_counted() {
        let subject = |name| Subject::new(name, Kind::MiniVmm, Path::new("/x"));
        let mut host = Host {
            probe: Path::new("/p"),
            directory: "/d".into(),
            subjects: &["a", "b", "c"].map(subject),
            effort: QUICK,
            report: Report::default(),
        };
        let mut turns = 0;
        let able = |subject: &Subject| subject.name != "c";
        host.turns("x", 0..=2, Some(7), able, |_, subject| {
            turns += 1;
            match (subject.name.as_str(), turns) {
                ("b", 3..) => bail!("no more"),
                _ => Ok(vec![("size", f64::from(turns))]),
            }
        });
        let point = host.report.find("size").unwrap().point().unwrap();
        assert_eq!((turns, point.x), (5, Some(7.0)));
        assert_eq!(point.samples("a").map(<[f64]>::len), Some(2));
        assert_eq!(point.samples("b"), None);
        assert_eq!(host.report.notes, ["x: b: no more"]);
    }
}
