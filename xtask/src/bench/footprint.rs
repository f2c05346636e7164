// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Footprint of machines: memory of an idle one, many at once, and what resets leave behind.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use procfs::process::{MemoryMap, MemoryMaps, Process, VmFlags};

use super::guest::{SIGN, Work};
use super::host::{Found, Host};
use super::subject::{Kind, Setup, Subject};

/// The limit for a machine's first byte.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a machine is idle before its memory is measured.
pub const SETTLE: Duration = Duration::from_millis(200);

/// A process that is killed when this is dropped.
pub struct Living(Child);

impl Living {
    /// Starts a machine.
    pub fn start(host: &Host, subject: &Subject, setup: &Setup) -> Result<Living> {
        Living::run(subject.words(setup, &host.directory)?)
    }

    /// Starts a command line.
    pub fn run<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Result<Living> {
        let mut words = words.into_iter();
        let program = words.next().context("an empty command line")?;
        let mut command = Command::new(&program);
        command.args(words).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn();
        let child = child.with_context(|| format!("can't start {}", program.as_ref().display()))?;
        Ok(Living(child))
    }

    /// Waits for the guest's byte.
    pub fn await_byte(&mut self) -> Result<()> {
        while self.read_bytes()? == 0 {}
        Ok(())
    }

    /// Waits until the guest, which prints its byte after each turn, has made a whole turn from now on.
    pub fn await_turn(&mut self) -> Result<()> {
        // What it printed before.
        self.read_bytes()?;
        // The turn that it is in has an end, too.
        let mut turns = 0;
        while turns < 2 {
            turns += self.read_bytes()?;
        }
        Ok(())
    }

    /// Waits for output, takes all that there is, and returns how many of the guest's bytes are in it.
    fn read_bytes(&mut self) -> Result<usize> {
        let Some(output) = &mut self.0.stdout else {
            bail!("the machine has no output");
        };
        // As large as a pipe.
        let mut buffer = vec![0; 64 << 10];
        match output.read(&mut buffer)? {
            0 => bail!("the machine ended before its guest ran"),
            count => Ok(buffer[..count].iter().filter(|byte| **byte == SIGN).count()),
        }
    }

    pub fn process(&self) -> Result<Process> {
        Ok(Process::new(self.0.id().try_into()?)?)
    }

    fn footprint(&self, setup: &Setup) -> Result<Footprint> {
        let maps = self.process()?.smaps()?;
        Ok(without_guest(&maps, u64::from(setup.memory) << 20))
    }

    /// The numbers of its descriptors, threads and mappings.
    fn holds(&self) -> Result<[usize; 3]> {
        let process = self.process()?;
        let (threads, maps) = (process.tasks()?, process.maps()?);
        Ok([process.fd_count()?, threads.count(), maps.len()])
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        // It may already have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Footprint {
    /// All of it.
    resident: u64,
    /// Private and dirty.
    private_dirty: u64,
}

/// Adds up mappings without the guest's memory, which is adjacent mappings of one kind with a total of at least `guest`
/// bytes. The kernel splits a mapping if its owner calls madvise for a part.
fn without_guest(all: &MemoryMaps, guest: u64) -> Footprint {
    // madvise flags of huge pages don't make another kind.
    let advised = VmFlags::HG | VmFlags::NH;
    let kind = |map: &MemoryMap| (map.perms, map.extension.vm_flags - advised);
    let goes_on = |a: &MemoryMap, b: &MemoryMap| a.address.1 == b.address.0 && kind(a) == kind(b);
    let size = |map: &MemoryMap| map.address.1 - map.address.0;
    let mut sum = Footprint::default();
    for run in all.0.chunk_by(goes_on) {
        let is_guest = run.iter().map(size).sum::<u64>() >= guest;
        for map in run.iter().filter(|_| !is_guest) {
            let bytes = |name| map.extension.map.get(name).copied().unwrap_or_default();
            sum.resident += bytes("Rss");
            sum.private_dirty += bytes("Private_Dirty");
        }
    }
    sum
}

/// Megabytes.
pub fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Whether it is a VMM that can run an idle machine; the floor can't.
fn is_vmm(subject: &Subject) -> bool {
    subject.can(&Setup::of(Work::Idle))
}

impl Host<'_> {
    /// The footprint of a machine that halted.
    pub fn idle(&mut self) {
        let (rounds, setup) = (1..=self.effort.growth_rounds, Setup::of(Work::Idle));
        self.turns("idle", rounds, None, is_vmm, |host, subject| {
            // The pages of a newly built program count as dirty until they are on disk.
            fs::File::open(&subject.program)?.sync_all()?;
            let mut machine = Living::start(host, subject, &setup)?;
            machine.await_byte()?;
            thread::sleep(SETTLE);
            let found = machine.footprint(&setup)?;
            let dirty = ("idle-dirty", mb(found.private_dirty));
            Ok(vec![("idle-rss", mb(found.resident)), dirty])
        });
    }

    /// This many machines at once: the time until all guests run, and until all machines are gone.
    pub fn many(&mut self) {
        for &count in self.effort.machines {
            let what = format!("{count} machines");
            self.turns(&what, 1..=1, Some(count), is_vmm, |host, subject| {
                host.at_once(subject, count)
            });
        }
    }

    fn at_once(&self, subject: &Subject, count: u32) -> Result<Found> {
        let setup = Setup {
            memory: 128,
            ..Setup::of(Work::Idle)
        };
        let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let start = |_| Living::start(self, subject, &setup);
        let mut machines = (0..count).map(start).collect::<Result<Vec<_>>>()?;
        for machine in &mut machines {
            machine.await_byte()?;
        }
        let up = milliseconds(started);
        let mut private = 0;
        for machine in &mut machines {
            if let Some(status) = machine.0.try_wait()? {
                bail!("one ended by itself ({status})");
            }
            private += machine.footprint(&setup)?.private_dirty;
        }
        let killed = Instant::now();
        for machine in &mut machines {
            machine.0.kill()?;
        }
        drop(machines);
        let down = milliseconds(killed);
        Ok(vec![
            ("many-up", up),
            ("many-rss", mb(private)),
            ("many-down", down),
        ])
    }

    /// Machines per second in one process whose guest resets at once, and the process's resources after thousands.
    pub fn resets(&mut self) {
        let can = |subject: &Subject| subject.kind == Kind::MiniVmm;
        self.turns("resets", 1..=1, None, can, |host, subject| {
            let (rates, held) = host.resetting(subject)?;
            host.report.notes.push(format!("{}: {held}", subject.name));
            Ok(rates.into_iter().map(|rate| ("resets", rate)).collect())
        });
    }

    /// Each new machine prints a byte: machines per second, and how the process grew meanwhile.
    fn resetting(&self, subject: &Subject) -> Result<(Vec<f64>, String)> {
        let mut machine = Living::start(self, subject, &Setup::of(Work::Reset))?;
        let output = machine.0.stdout.take();
        let mut output = output.context("the machine has no output")?;
        let mut buffer = [0; 1];
        let mut await_machines = |count: usize| -> Result<Duration> {
            let started = Instant::now();
            for _ in 0..count {
                let read = output.read_exact(&mut buffer);
                read.context("the machine ended")?;
                if started.elapsed() > PATIENCE {
                    bail!("{count} resets take longer than {} s", PATIENCE.as_secs());
                }
            }
            Ok(started.elapsed())
        };
        await_machines(10)?;
        // While a machine is created or destroyed, there are more than while it runs, so take the least of many
        // samples.
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
    use procfs::FromRead;

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
        let sum = |smaps: &str, guest| {
            // The kernel ends the lines of unnamed mappings with a space.
            let smaps = smaps.replace("00:00 0\n", "00:00 0 \n");
            without_guest(&MemoryMaps::from_read(smaps.as_bytes()).unwrap(), guest)
        };
        let expected = Footprint {
            resident: 28 << 10,
            private_dirty: 20 << 10,
        };
        assert_eq!(sum(smaps, 256 << 20), expected);
        assert_eq!(sum(smaps, 1 << 40).private_dirty, 100_020 << 10);
        assert_eq!(sum("", 1), Footprint::default());
    }
}
