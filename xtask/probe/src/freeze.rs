// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saves a VMM's machine, and measures how long a saved one takes to go on.

use std::fs;
use std::io::Read;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::guest::SIGN;
use crate::{Error, api};

/// Runs `freeze DIRECTORY SOCKET PATH JSON... -- PROGRAM [ARGUMENT...]`.
pub fn freeze(words: &[&str]) -> Result<(), Error> {
    let usage = "say freeze DIRECTORY SOCKET PATH JSON... -- PROGRAM [ARGUMENT...]";
    let end = words.iter().position(|word| *word == "--");
    let (requests, command) = words.split_at(end.ok_or(usage)?);
    let ([directory, socket, requests @ ..], [_, program, arguments @ ..]) = (requests, command)
    else {
        return Err(usage.into());
    };
    fs::create_dir_all(directory)?;
    let (mut child, mut output) = start(program, arguments)?;
    let saved = await_sign(&mut output).and_then(|()| {
        // The program must not wait for a full pipe.
        thread::spawn(move || drop(std::io::copy(&mut output, &mut std::io::sink())));
        for request in requests.chunks(2) {
            let &[path, body] = request else {
                return Err(usage.into());
            };
            // Firecracker's word for a pause is the only one that is no PUT.
            let method = if path == "/vm" { "PATCH" } else { "PUT" };
            api::ask(api::connect(socket), method, path, body)?;
        }
        Ok(())
    });
    // It may have ended.
    let _ = child.kill();
    child.wait()?;
    saved
}

/// Runs `first [--load SOCKET JSON] PROGRAM [ARGUMENT...]`.
pub fn first(words: &[&str]) -> Result<(), Error> {
    let (load, command) = match words {
        ["--load", socket, body, command @ ..] => (Some((*socket, *body)), command),
        command => (None, command),
    };
    let [program, arguments @ ..] = command else {
        return Err("say first [--load SOCKET JSON] PROGRAM [ARGUMENT...]".into());
    };
    if let Some((socket, _)) = load {
        // Of the last run. There may be none.
        let _ = fs::remove_file(socket);
    }
    let started = Instant::now();
    let (mut child, mut output) = start(program, arguments)?;
    let first = thread::scope(|scope| {
        let process = child.id();
        let watch = scope.spawn(move || {
            let sign = await_sign(&mut output).map_err(|error| error.to_string());
            // The output stays open: some programs fail if nobody reads.
            sign.map(|()| (started.elapsed().as_nanos(), cpu(process), output))
        });
        if let Some((socket, body)) = load
            && let Err(error) = api::ask(api::connect(socket), "PUT", "/snapshot/load", body)
        {
            let _ = child.kill();
            return Err(error);
        }
        let watched = watch.join().map_err(|_| "the watch panicked")?;
        Ok(watched?)
    });
    let _ = child.kill();
    child.wait()?;
    let (first, cpu, _) = first?;
    println!("{first} {first} {cpu} 0 0");
    Ok(())
}

/// The CPU time of a process's threads until now, in nanoseconds. Its guest doesn't rest after its sign, so the time at
/// the end says less.
fn cpu(process: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let times = tasks.into_iter().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}

fn start(program: &str, arguments: &[&str]) -> Result<(Child, ChildStdout), Error> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    Ok((child, output))
}

/// Waits for the guest's first sign.
fn await_sign(output: &mut ChildStdout) -> Result<(), Error> {
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer)? {
            0 => return Err("the program ended before its guest made a sign".into()),
            count if buffer[..count].contains(&SIGN) => return Ok(()),
            _ => {}
        }
    }
}
