// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Distinguishes a process that hangs from a slow one.
//!
//! Time alone is no criterion, because on a busy machine everything takes longer. A process hangs if it neither prints
//! nor uses its CPU nor waits for one, or if it uses very much CPU time without printing. Both are the same on a busy
//! machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// What counts as a hang.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The maximum CPU time without output.
    pub work: Duration,
    /// The maximum time without output and nearly idle.
    pub still: Duration,
}

impl Patience {
    /// The usual limits, for a process that may use `seconds` of CPU time between outputs.
    pub const fn of_work(seconds: u64) -> Patience {
        Patience {
            work: Duration::from_secs(seconds),
            still: Duration::from_secs(120),
        }
    }

    /// With `factor` times as much CPU time.
    pub fn times(self, factor: u32) -> Patience {
        Patience {
            work: self.work * factor,
            ..self
        }
    }
}

/// Why a process counts as hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// It used this much CPU time without output.
    Busy(Duration),
    /// It did nothing for this long.
    Idle(Duration),
}

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hang::Busy(time) => {
                let seconds = time.as_secs();
                write!(f, "hung: {seconds} s of CPU time without output")
            }
            Hang::Idle(time) => write!(f, "hung: idle for {} s without output", time.as_secs()),
        }
    }
}

/// Watches a process and its descendants.
#[derive(Debug)]
pub struct Watch {
    process: u32,
    patience: Patience,
    output: u64,
    /// CPU time at the last output.
    cpu: Duration,
    /// When the process last did something, and its CPU time then.
    alive: (Instant, Duration),
    looked: Instant,
}

/// A process that uses less than 1 / this of a CPU's time is idle.
const LEAST_SHARE: u32 = 20;

impl Watch {
    /// Starts to watch `process`.
    pub fn new(process: u32, patience: Patience) -> Watch {
        let (now, cpu) = (Instant::now(), cpu_time(process));
        Watch {
            process,
            patience,
            output: 0,
            cpu,
            alive: (now, cpu),
            looked: now,
        }
    }

    /// Whether the process hangs. `output` is a number that grows with its output. Call it often; it checks once a
    /// second.
    pub fn hang(&mut self, output: u64) -> Option<Hang> {
        let now = Instant::now();
        let pause = Duration::from_secs(1).min(self.patience.still / 2);
        if now - self.looked < pause {
            return None;
        }
        self.looked = now;
        let process = self.process;
        self.judge(now, cpu_time(process), output, || wants_cpu(process))
    }

    fn judge(
        &mut self,
        now: Instant,
        cpu: Duration,
        output: u64,
        wants_cpu: impl FnOnce() -> bool,
    ) -> Option<Hang> {
        if output != self.output {
            (self.output, self.cpu, self.alive) = (output, cpu, (now, cpu));
            return None;
        }
        let work = cpu.saturating_sub(self.cpu);
        if work > self.patience.work {
            return Some(Hang::Busy(work));
        }
        let (since, before) = self.alive;
        let still = now - since;
        if still < self.patience.still {
            return None;
        }
        // On a busy machine it may get less than it wants.
        if cpu.saturating_sub(before) < still / LEAST_SHARE && !wants_cpu() {
            return Some(Hang::Idle(still));
        }
        self.alive = (now, cpu);
        None
    }
}

/// The CPU time of a process, its descendants, and its process group.
fn cpu_time(process: u32) -> Duration {
    family(process).values().map(|stat| stat.cpu).sum()
}

/// Whether a thread of these runs or waits for a CPU.
fn wants_cpu(process: u32) -> bool {
    family(process).keys().any(|id| {
        let threads = fs::read_dir(format!("/proc/{id}/task"));
        threads.into_iter().flatten().flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat"));
            stat.is_ok_and(|text| fields(&text).and_then(|mut fields| fields.next()) == Some("R"))
        })
    })
}

/// A process, its descendants, and its process group.
fn family(process: u32) -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: BTreeMap<u32, Stat> = entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((id, Stat::parse(&text)?))
        })
        .collect();
    let is_within = |mut id: u32| {
        // A process may end before its child; parents can't form a cycle.
        while let Some(stat) = all.get(&id) {
            if id == process || stat.group == process {
                return true;
            }
            id = stat.parent;
        }
        false
    };
    let within = all.iter().filter(|(id, _)| is_within(**id));
    within.map(|(id, stat)| (*id, *stat)).collect()
}

/// The contents of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    group: u32,
    /// Its own and that of the children that it waited for, in user space and in the kernel.
    cpu: Duration,
}

/// The fields of a stat line from the third on, which is the state. The second is the program's name in parentheses,
/// which may contain spaces and parentheses.
fn fields(text: &str) -> Option<impl Iterator<Item = &str>> {
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace())
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        let fields: Vec<&str> = fields(text)?.collect();
        let ticks = fields.get(11..15)?.iter();
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            // Hundredths of a second, on every x86.
            cpu: Duration::from_millis(ticks * 10),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        work: Duration::from_secs(600),
        still: Duration::from_secs(100),
    };

    /// A watch's results for a history of (seconds, CPU seconds, output), of a process that waits for no CPU.
    fn judge(history: &[(u64, u64, u64)]) -> Option<Hang> {
        judge_with(history, false)
    }

    fn judge_with(history: &[(u64, u64, u64)], wants_cpu: bool) -> Option<Hang> {
        let start = Instant::now();
        let mut watch = Watch {
            process: 0,
            patience: PATIENCE,
            output: 0,
            cpu: Duration::ZERO,
            alive: (start, Duration::ZERO),
            looked: start,
        };
        history.iter().find_map(|&(now, cpu, output)| {
            let (now, cpu) = (Duration::from_secs(now), Duration::from_secs(cpu));
            watch.judge(start + now, cpu, output, || wants_cpu)
        })
    }

    #[test]
    fn what_works_or_prints_does_not_hang_however_long_it_takes() {
        // On an idle machine, and with a tenth of a CPU.
        assert_eq!(judge(&[(90, 90, 0), (200, 200, 0), (590, 590, 0)]), None);
        let slow: Vec<_> = (1..59).map(|i| (100 * i, 10 * i, 0)).collect();
        assert_eq!(judge(&slow), None);
        // Idle with some output, and busy with some output.
        let asleep: Vec<_> = (1..99).map(|i| (99 * i, 0, i)).collect();
        assert_eq!(judge(&asleep), None);
        let at_work: Vec<_> = (1..99).map(|i| (500 * i, 500 * i, i)).collect();
        assert_eq!(judge(&at_work), None);
    }

    #[test]
    fn what_does_nothing_or_only_turns_hangs() {
        let second = Duration::from_secs(1);
        let idle = Some(Hang::Idle(100 * second));
        assert_eq!(judge(&[(10, 5, 7), (60, 5, 7), (110, 6, 7)]), idle);
        // A hang after work is also noticed.
        assert_eq!(judge(&[(100, 90, 0), (200, 91, 0)]), idle);
        let busy = Some(Hang::Busy(601 * second));
        assert_eq!(judge(&[(10, 5, 7), (400, 390, 7), (700, 606, 7)]), busy);
    }

    #[test]
    fn what_waits_for_a_cpu_is_not_idle() {
        let starved = [(100, 0, 0), (200, 1, 0), (5000, 2, 0)];
        assert!(judge(&starved).is_some());
        assert_eq!(judge_with(&starved, true), None);
        assert!(judge_with(&[(9000, 601, 0)], true).is_some());
    }

    #[test]
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let text = "7 (a) b (c)) S 3 5 5 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 99 0";
        let stat = Stat {
            parent: 3,
            group: 5,
            cpu: Duration::from_secs(1),
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 3"), None);
    }

    #[test]
    fn descendants_count() {
        let script = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done' & wait";
        let mut shell = std::process::Command::new("sh");
        let mut child = shell.args(["-c", script]).spawn().unwrap();
        let (mut used, mut wanted) = (Duration::ZERO, false);
        while child.try_wait().unwrap().is_none() {
            used = used.max(cpu_time(child.id()));
            wanted |= wants_cpu(child.id());
        }
        assert!(used > Duration::ZERO && wanted);
        let mut asleep = std::process::Command::new("sleep");
        let mut asleep = asleep.arg("60000").spawn().unwrap();
        // Not while it starts.
        while wants_cpu(asleep.id()) {}
        asleep.kill().unwrap();
        asleep.wait().unwrap();
    }
}
