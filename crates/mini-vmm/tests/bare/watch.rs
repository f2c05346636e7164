// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Distinguishes a process that hangs from a slow one, by its output and its CPU time.

use std::fs;
use std::time::{Duration, Instant};

/// This long without output and nearly idle means that it hangs.
const STILL: Duration = Duration::from_secs(60);
/// This much CPU time without output means that it hangs.
const WORK: Duration = Duration::from_secs(300);

/// Watches a process.
#[derive(Debug)]
pub struct Watch {
    process: u32,
    output: usize,
    /// CPU time at the last output.
    cpu: Duration,
    /// When the process was last known to make progress, and its CPU time then.
    alive: (Instant, Duration),
    looked: Instant,
}

impl Watch {
    pub fn new(process: u32) -> Watch {
        let now = Instant::now();
        Watch {
            process,
            output: 0,
            cpu: Duration::ZERO,
            alive: (now, Duration::ZERO),
            looked: now,
        }
    }

    /// Whether it hangs. `output` is the number of bytes printed so far. Call it often; it checks once a second.
    pub fn is_hung(&mut self, output: usize) -> bool {
        let now = Instant::now();
        if now - self.looked < Duration::from_secs(1) {
            return false;
        }
        self.looked = now;
        let cpu = cpu_time(self.process);
        if output != self.output {
            (self.output, self.cpu, self.alive) = (output, cpu, (now, cpu));
        }
        let (since, before) = self.alive;
        if now - since >= STILL {
            if cpu.saturating_sub(before) < STILL / 20 {
                return true;
            }
            self.alive = (now, cpu);
        }
        cpu.saturating_sub(self.cpu) > WORK
    }
}

/// The CPU time of a process and of its waited-for children (proc_pid_stat(5)). `None` if the process is gone.
fn cpu_time(process: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may contain spaces.
    let (_, fields) = text.rsplit_once(')').unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    // In hundredths of a second on x86.
    Duration::from_millis(ticks * 10)
}
