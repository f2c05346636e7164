// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The part of `cargo xtask bench` and `cargo xtask test` that runs next to the machines, also inside a bed: small,
//! static, without other files.
//!
//! ```text
//! bench-probe run PROGRAM [ARGUMENT...]
//!     Runs a program with its output read and dropped. Prints one line:
//!     WALL FIRST USER SYSTEM STATUS: nanoseconds until the end, until the guest's first sign (0: none), of CPU; the exit code.
//! bench-probe lines PROGRAM [ARGUMENT...]
//!     The same, after each line of the program's output with the nanoseconds at which it was complete.
//! bench-probe floor MIB CPUS [nothing|port|mmio|msr|hypercall COUNT]
//!     The fewest KVM calls that run a guest with interrupt controllers to its end.
//! bench-probe freeze DIRECTORY SOCKET PATH JSON... -- PROGRAM [ARGUMENT...]
//!     Creates the directory, runs a VMM until its guest's first sign, sends these requests to its API, and ends it.
//! bench-probe first [--load SOCKET JSON] PROGRAM [ARGUMENT...]
//!     Like `run`, but only until the guest's first sign. With `--load`, the JSON is sent to Firecracker's API.
//! bench-probe freeze-floor DIRECTORY MIB
//! bench-probe thaw-floor DIRECTORY MIB
//!     The least that saves such a guest, and the fewest KVM calls that let it go on.
//! bench-probe instructions PROGRAM [ARGUMENT...]
//! bench-probe calls PROGRAM [ARGUMENT...]
//!     Counts the program's instructions in user space, or its system calls, between its guest's second sign and its
//!     third. Prints the count.
//! bench-probe echo pipe|pty|socket|terminal BYTES PROGRAM [ARGUMENT...]
//!     Runs mini-vmm with a guest that sends back its input, and checks that. Its exit code is mini-vmm's.
//! bench-probe copy FROM TO
//!     Copies a disk to a file with holes.
//! bench-probe tcp PORT
//!     Takes what guests send to this port, and sends messages from the next two ports: of 64 bytes, and of 64 KiB.
//! bench-probe api SOCKET PUT|PATCH PATH JSON
//!     Sends a request to mini-vmm's API.
//! bench-probe vsock echo PORT COUNT
//! bench-probe unix echo PATH COUNT
//!     Sends back what comes to a port of the guest, or to a Unix socket, on this many connections.
//! bench-probe unix sink PATH
//! bench-probe unix source PATH
//!     Takes what comes to a Unix socket on one connection, or sends zeros there until the other side ends it.
//! bench-probe vsock talk PORT
//! bench-probe unix talk PATH PORT
//!     Connects to a port of the host, or by a Unix socket to one of the guest. Sends its input, and prints what comes.
//! bench-probe unix ask PATH PORT
//!     Says whether a port of the guest answers.
//! bench-probe timers
//!     Sleeps and counts periods in many threads of a guest, and says BAD if a time is wrong.
//! ```

mod api;
mod echo;
mod files;
mod floor;
mod freeze;
mod frozen_floor;
// xtask uses the rest of it.
#[allow(dead_code)]
mod guest;
mod observe;
mod streams;
mod sys;
mod tcp;
mod timers;

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use observe::Watch;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["run", program, arguments @ ..] => run(program, arguments, false),
        ["lines", program, arguments @ ..] => run(program, arguments, true),
        ["instructions", program, arguments @ ..] => {
            observe::main(Watch::Instructions, program, arguments)
        }
        ["calls", program, arguments @ ..] => observe::main(Watch::Calls, program, arguments),
        ["floor", arguments @ ..] => floor::main(arguments),
        ["freeze", arguments @ ..] => freeze::freeze(arguments),
        ["first", arguments @ ..] => freeze::first(arguments),
        ["freeze-floor", arguments @ ..] => frozen_floor::freeze(arguments),
        ["thaw-floor", arguments @ ..] => frozen_floor::thaw(arguments),
        ["api", arguments @ ..] => api::main(arguments),
        ["copy", arguments @ ..] => files::main(arguments),
        ["tcp", arguments @ ..] => tcp::main(arguments),
        ["timers", arguments @ ..] => timers::main(arguments),
        ["unix", arguments @ ..] => streams::host(arguments),
        ["vsock", arguments @ ..] => streams::guest(arguments),
        ["echo", arguments @ ..] => match echo::main(arguments) {
            Ok(code) => return ExitCode::from(code as u8),
            Err(error) => Err(error),
        },
        _ => Err("say one of the words that the source of bench-probe lists".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: &str, arguments: &[&str], lines: bool) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn()?;
    let mut first = 0;
    // Printed after the measurement.
    let mut seen = String::new();
    if let Some(mut output) = child.stdout.take() {
        let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let now = started.elapsed().as_nanos();
            if first == 0 && buffer[..count].contains(&guest::SIGN) {
                first = now;
            }
            for &byte in buffer[..count].iter().filter(|_| lines) {
                match byte {
                    b'\n' => {
                        let text = String::from_utf8_lossy(&line);
                        seen.push_str(&format!("{now} {}\n", text.trim_end()));
                        line.clear();
                    }
                    byte => line.push(byte),
                }
            }
        }
    }
    let end = sys::wait(child)?;
    let wall = started.elapsed().as_nanos();
    print!("{seen}");
    println!("{wall} {first} {} {} {}", end.user, end.system, end.code);
    Ok(())
}
