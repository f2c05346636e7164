// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counts what a process does in user space while its guest works, with ptrace: instructions, one by one, or system
//! calls. Both are exact, and need no performance counters.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::Error;
use super::guest::SIGN;
use super::sys::{self, Go, Stop};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Instructions in user space.
    Instructions,
    /// System calls.
    Calls,
}

/// The guest's signs so far.
static SIGNS: AtomicU32 = AtomicU32::new(0);

/// Runs a program. Its guest makes a sign, waits, makes another sign, works, and makes a third one. Counts between the
/// last two, prints the count, and ends the program.
pub fn main(watch: Watch, program: &str, arguments: &[&str]) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut output = child.stdout.take().ok_or("no output")?;
    let mut buffer = [0; 4096];
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            return Err("the program ended before its guest made a sign".into());
        }
        if note_signs(&buffer[..count]) > 0 {
            break;
        }
    }
    // The program must not wait for a full pipe.
    thread::spawn(move || {
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            note_signs(&buffer[..count]);
        }
    });
    let counted = Observed::begin(watch, &child).and_then(Observed::count);
    // It may have ended.
    let _ = child.kill();
    println!("{}", counted?);
    Ok(())
}

fn note_signs(bytes: &[u8]) -> u32 {
    let new = bytes.iter().filter(|byte| **byte == SIGN).count() as u32;
    SIGNS.fetch_add(new, Ordering::SeqCst) + new
}

struct Observed {
    watch: Watch,
    process: i32,
    count: u64,
}

impl Observed {
    /// Attaches to all threads. New ones are attached by the kernel.
    fn begin(watch: Watch, child: &Child) -> Result<Observed, Error> {
        let process = child.id() as i32;
        let mut known = BTreeSet::new();
        loop {
            let before = known.len();
            for entry in fs::read_dir(format!("/proc/{process}/task"))? {
                let thread: i32 = entry?.file_name().to_string_lossy().parse()?;
                // One that an attached thread has created is attached already.
                if known.insert(thread) && sys::attach(thread).is_ok() {
                    sys::interrupt(thread)?;
                }
            }
            if known.len() == before {
                break;
            }
        }
        if SIGNS.load(Ordering::SeqCst) > 1 {
            return Err(
                "the guest began its work before all threads were observed; try again".into(),
            );
        }
        let count = 0;
        Ok(Observed {
            watch,
            process,
            count,
        })
    }

    /// A system call stops its thread twice.
    fn total(&self) -> u64 {
        match self.watch {
            Watch::Instructions => self.count,
            Watch::Calls => self.count.div_ceil(2),
        }
    }

    /// Counts between the second sign and the third.
    fn count(mut self) -> Result<u64, Error> {
        let step = match self.watch {
            Watch::Instructions => Go::Step,
            Watch::Calls => Go::ToCall,
        };
        loop {
            let (thread, stop) = sys::wait_for_stop()?;
            let signs = SIGNS.load(Ordering::SeqCst);
            if signs > 2 {
                return Ok(self.total());
            }
            let signal = match stop {
                Stop::Ended(code) if thread == self.process => {
                    return Err(format!("the program ended during the work, with {code}").into());
                }
                Stop::Ended(_) => continue,
                Stop::Step => {
                    self.count += u64::from(signs == 2);
                    0
                }
                Stop::Event => 0,
                Stop::Signal(signal) => signal,
            };
            sys::go(thread, step, signal)?;
        }
    }
}
