// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines that live: what an idle one takes of the host, how many run at once, what resets leave behind.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::guest::{SIGN, Work};
use super::host::Host;
use super::results::Measure;
use super::subject::{Kind, Setup, Subject};
use crate::process::step;

/// How long a machine may take to its first byte.
const PATIENCE: Duration = Duration::from_secs(60);
/// What an idle machine is left alone for before it is looked at.
const SETTLE: Duration = Duration::from_millis(200);

/// A process that is killed when this is dropped.
struct Living(Child);

impl Living {
    /// Starts a machine.
    fn start(host: &Host, subject: &Subject, setup: &Setup) -> Result<Living> {
        let words = subject.words(setup, &host.directory)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn();
        Ok(Living(
            child.with_context(|| format!("can't start {}", words[0]))?,
        ))
    }

    /// Waits until the guest's byte is there.
    fn await_byte(&mut self) -> Result<()> {
        let Some(output) = &mut self.0.stdout else {
            bail!("the machine has no output");
        };
        let mut buffer = [0; 256];
        loop {
            match output.read(&mut buffer)? {
                0 => bail!("the machine ended before its guest ran"),
                count if buffer[..count].contains(&SIGN) => return Ok(()),
                _ => {}
            }
        }
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }

    /// What it has open, its threads and its mappings.
    fn holds(&self) -> Result<[usize; 3]> {
        let entries = |name| -> Result<usize> { Ok(fs::read_dir(self.proc(name))?.count()) };
        let maps = fs::read_to_string(self.proc("maps"))?;
        Ok([entries("fd")?, entries("task")?, maps.lines().count()])
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Footprint {
    /// All of it.
    pub resident: u64,
    /// What is this process's alone, and written to.
    pub private_dirty: u64,
}

/// One line of `/proc/PID/maps` with what smaps says of it.
#[derive(Debug, Default)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    permissions: &'a str,
    /// `VmFlags`, without what madvise says of huge pages.
    flags: Vec<&'a str>,
    footprint: Footprint,
}

/// Reads `/proc/PID/smaps` (proc_pid_smaps(5)).
fn mappings(text: &str) -> Vec<Mapping<'_>> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(' ') else {
            continue;
        };
        if let Some((start, end)) = name.split_once('-') {
            let at = |hex| u64::from_str_radix(hex, 16).unwrap_or_default();
            all.push(Mapping {
                start: at(start),
                end: at(end),
                permissions: rest.split(' ').next().unwrap_or_default(),
                ..Mapping::default()
            });
        }
        let Some(mapping) = all.last_mut() else {
            continue;
        };
        let kibibytes = rest.trim().trim_end_matches(" kB").parse().unwrap_or(0u64);
        match name {
            "Rss:" => mapping.footprint.resident = kibibytes * 1024,
            "Private_Dirty:" => mapping.footprint.private_dirty = kibibytes * 1024,
            "VmFlags:" => {
                let flags = rest.split_whitespace();
                mapping.flags = flags.filter(|flag| !["hg", "nh"].contains(flag)).collect();
            }
            _ => {}
        }
    }
    all
}

/// Adds up mappings without the guest's memory: those that adjoin, are of one kind, and have `guest` bytes or more
/// together. The kernel splits a mapping where its owner advises about a part.
pub fn parse_smaps(text: &str, guest: u64) -> Footprint {
    let all = mappings(text);
    let goes_on = |a: &Mapping, b: &Mapping| {
        a.end == b.start && a.permissions == b.permissions && a.flags == b.flags
    };
    let mut sum = Footprint::default();
    for run in all.chunk_by(goes_on) {
        let size: u64 = run.iter().map(|mapping| mapping.end - mapping.start).sum();
        for mapping in run.iter().filter(|_| size < guest) {
            sum.resident += mapping.footprint.resident;
            sum.private_dirty += mapping.footprint.private_dirty;
        }
    }
    sum
}

impl Host<'_> {
    /// Those whose machines live in a process of their own, all but the floor.
    fn vmms(&self) -> Vec<Subject> {
        let is_vmm = |subject: &&Subject| subject.can(&Setup::of(Work::Idle));
        self.subjects.iter().filter(is_vmm).cloned().collect()
    }

    /// The footprint of a machine that halted.
    pub fn idle(&mut self) -> Vec<Measure> {
        let mut resident = Measure::new("idle-rss", "idle VM, resident without guest", "MB", None);
        let mut dirty = Measure::new("idle-dirty", "idle VM, private and dirty", "MB", None);
        let setup = Setup::of(Work::Idle);
        for _ in 0..self.effort.growth_rounds {
            for subject in self.vmms() {
                match self.footprint(&subject, &setup) {
                    Ok(footprint) => {
                        resident.push(None, &subject.name, footprint.resident as f64 / 1e6);
                        dirty.push(None, &subject.name, footprint.private_dirty as f64 / 1e6);
                    }
                    Err(error) => self.notes.push(format!("idle {}: {error:#}", subject.name)),
                }
            }
        }
        vec![resident, dirty]
    }

    fn footprint(&self, subject: &Subject, setup: &Setup) -> Result<Footprint> {
        // A program that was just built is in pages that count as dirty until they are on disk.
        fs::File::open(&subject.program)?.sync_all()?;
        let mut machine = Living::start(self, subject, setup)?;
        machine.await_byte()?;
        thread::sleep(SETTLE);
        let smaps = fs::read_to_string(machine.proc("smaps"))?;
        Ok(parse_smaps(&smaps, u64::from(setup.memory) << 20))
    }

    /// So many machines at once: until all guests run, and until all are gone.
    pub fn many(&mut self) -> Vec<Measure> {
        let axis = Some("machines");
        let mut up = Measure::new(
            "many-up",
            "machines at once until all guests run",
            "ms",
            axis,
        );
        let mut memory = Measure::new(
            "many-rss",
            "machines at once, memory without guests",
            "MB",
            axis,
        );
        let mut down = Measure::new(
            "many-down",
            "machines at once until all are killed",
            "ms",
            axis,
        );
        for &count in self.effort.machines {
            for subject in self.vmms() {
                let what = format!("{count} machines of {}", subject.name);
                match step(&what, || self.at_once(&subject, count)) {
                    Ok([start, resident, end]) => {
                        let x = Some(f64::from(count));
                        up.push(x, &subject.name, start);
                        memory.push(x, &subject.name, resident);
                        down.push(x, &subject.name, end);
                    }
                    Err(error) => self.notes.push(format!("{what}: {error:#}")),
                }
            }
        }
        vec![up, memory, down]
    }

    fn at_once(&self, subject: &Subject, count: u32) -> Result<[f64; 3]> {
        let setup = Setup {
            memory: 128,
            ..Setup::of(Work::Idle)
        };
        let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let mut machines = Vec::new();
        for _ in 0..count {
            machines.push(Living::start(self, subject, &setup)?);
        }
        for machine in &mut machines {
            machine.await_byte()?;
        }
        let up = milliseconds(started);
        let mut private = 0;
        for machine in &mut machines {
            if let Some(status) = machine.0.try_wait()? {
                bail!("one ended by itself ({status})");
            }
            let smaps = fs::read_to_string(machine.proc("smaps"))?;
            private += parse_smaps(&smaps, u64::from(setup.memory) << 20).private_dirty;
        }
        let killed = Instant::now();
        for machine in &mut machines {
            machine.0.kill()?;
        }
        drop(machines);
        Ok([up, private as f64 / 1e6, milliseconds(killed)])
    }

    /// Machines per second in one process whose guest resets at once, and what it holds after thousands.
    pub fn resets(&mut self) -> Vec<Measure> {
        let mut measure = Measure::new(
            "resets",
            "machines per second in one process, by resets",
            "1/s",
            None,
        );
        for subject in self.vmms().iter().filter(|s| s.kind == Kind::MiniVmm) {
            match step("resets", || self.resetting(subject)) {
                Ok((rates, held)) => {
                    for rate in rates {
                        measure.push(None, &subject.name, rate);
                    }
                    self.notes.push(format!("{}: {held}", subject.name));
                }
                Err(error) => self
                    .notes
                    .push(format!("resets of {}: {error:#}", subject.name)),
            }
        }
        vec![measure]
    }

    /// Each new machine prints a byte: machines per second, and how the process grew meanwhile.
    fn resetting(&self, subject: &Subject) -> Result<(Vec<f64>, String)> {
        let mut machine = Living::start(self, subject, &Setup::of(Work::Reset))?;
        let mut output = machine
            .0
            .stdout
            .take()
            .context("the machine has no output")?;
        let mut buffer = [0; 1];
        let mut await_machines = |count: usize| -> Result<Duration> {
            let started = Instant::now();
            for _ in 0..count {
                output
                    .read_exact(&mut buffer)
                    .context("the machine ended")?;
                if started.elapsed() > PATIENCE {
                    bail!("{count} resets take longer than {} s", PATIENCE.as_secs());
                }
            }
            Ok(started.elapsed())
        };
        await_machines(10)?;
        // A machine that is being made or ended holds more than one that runs: the least of many looks.
        let least = || -> Result<[usize; 3]> {
            let mut least = [usize::MAX; 3];
            for _ in 0..200 {
                let now = machine.holds()?;
                least = std::array::from_fn(|which| least[which].min(now[which]));
            }
            Ok(least)
        };
        let before = least()?;
        let batch = self.effort.exits as usize / 300;
        let mut rates = Vec::new();
        for _ in 0..self.effort.growth_rounds {
            rates.push(batch as f64 / await_machines(batch)?.as_secs_f64());
        }
        let after = least()?;
        let [fds, threads, maps] =
            std::array::from_fn(|which| format!("{} then {}", before[which], after[which]));
        let held = format!(
            "across {} resets in one process, descriptors: {fds}, threads: {threads}, mappings: {maps}",
            batch * rates.len()
        );
        Ok((rates, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_counted() {
        let smaps = "\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  16 kB
Private_Clean:         0 kB
Private_Dirty:        12 kB
VmFlags: rd wr mr mw me ac sd
7effffe00000-7f0000000000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                   8 kB
Private_Dirty:         8 kB
VmFlags: rd wr mr mw me ac nh
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                  40 kB
Private_Dirty:        40 kB
VmFlags: rd wr mr mw me nr nh
7f0000200000-7f0010000000 rw-p 00000000 00:00 0
Size:             260096 kB
Rss:               99960 kB
Private_Dirty:     99960 kB
VmFlags: rd wr mr mw me nr hg
7f0020000000-7f0020001000 r-xp 00000000 fe:00 1                          /usr/bin/x
Rss:                   4 kB
Private_Dirty:         0 kB
";
        let expected = Footprint {
            resident: 28 << 10,
            private_dirty: 20 << 10,
        };
        assert_eq!(parse_smaps(smaps, 256 << 20), expected);
        assert_eq!(parse_smaps(smaps, 1 << 40).private_dirty, 100_020 << 10);
        assert_eq!(parse_smaps("", 1), Footprint::default());
    }
}
