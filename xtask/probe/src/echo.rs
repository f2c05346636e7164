// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feeds a guest that sends everything back, through each kind of console, and checks each byte that returns.
//!
//! The guest prints a line GO once its terminal is raw. From then on all bytes count, in and out at the same time.
//! There is no time limit here: the caller kills a run that hangs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::Error;

/// The guest prints this when it is ready.
const GO: &[u8] = b"\nGO\n";
/// mini-vmm's message with the name of its pseudo-terminal.
const PTY: &str = "the serial console is on ";
/// Ctrl-A, which must be typed twice on a terminal.
const ESCAPE: u8 = 1;

/// Runs `echo WAY BYTES PROGRAM [ARGUMENT...]`; returns the program's exit code.
pub fn main(words: &[&str]) -> Result<i32, Error> {
    let [way, bytes, program, arguments @ ..] = words else {
        return Err("say echo pipe|pty|socket|terminal BYTES PROGRAM [ARGUMENT...]".into());
    };
    let data = noise(bytes.parse()?);
    let mut command = Command::new(program);
    command.args(arguments);
    let (mut child, mut to, mut from) = start(way, &mut command)?;
    // The command still owns the other ends of the pipes or of the terminal.
    drop(command);
    let typed = match *way {
        "terminal" => escaped(&data),
        _ => data.clone(),
    };
    let (go, wait) = mpsc::channel::<()>();
    let sender = thread::spawn(move || {
        // Without GO, nothing is sent. The pipe stays open until the guest has ended.
        if wait.recv().is_ok() {
            let _ = to.write_all(&typed);
        }
        let _ = wait.recv();
    });
    let result = check(&mut from, &data, &|| {
        // An error means that the sender has ended.
        let _ = go.send(());
    });
    if result.is_err() {
        let _ = child.kill();
    }
    drop(go);
    let status = child.wait()?;
    result?;
    // The sender has ended, because the guest took everything.
    let _ = sender.join();
    println!("ECHOED {}", data.len());
    Ok(status.code().unwrap_or(128))
}

/// Pseudo-random bytes, with all values.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn escaped(data: &[u8]) -> Vec<u8> {
    let twice = |&byte: &u8| std::iter::repeat_n(byte, if byte == ESCAPE { 2 } else { 1 });
    data.iter().flat_map(twice).collect()
}

/// Starts the program with the console that `way` names. Returns the program, and the ends to write to and to read from.
fn start(way: &str, command: &mut Command) -> Result<(Child, File, File), Error> {
    match way {
        "pipe" => {
            command.args(["--serial", "stdio"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let (to, from) = (child.stdin.take(), child.stdout.take());
            let to = OwnedFd::from(to.ok_or("no standard input")?);
            let from = OwnedFd::from(from.ok_or("no standard output")?);
            Ok((child, to.into(), from.into()))
        }
        "terminal" => {
            let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&user)?;
            unlockpt(&user)?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let terminal = rustix::fs::open(ptsname(&user, Vec::new())?, flags, Mode::empty())?;
            command.args(["--serial", "stdio"]);
            command.stdin(terminal.try_clone()?);
            command.stdout(terminal.try_clone()?).stderr(terminal);
            Ok((command.spawn()?, user.try_clone()?.into(), user.into()))
        }
        "pty" => {
            command.args(["--serial", "pty"]).stdin(Stdio::null());
            let mut child = command.stderr(Stdio::piped()).spawn()?;
            let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
            let path = loop {
                let line = lines.next().ok_or("no pseudo-terminal was named")??;
                if let Some((_, path)) = line.split_once(PTY) {
                    break path.to_owned();
                }
                eprintln!("{line}");
            };
            thread::spawn(move || {
                lines
                    .map_while(Result::ok)
                    .for_each(|line| eprintln!("{line}"))
            });
            let terminal = File::options().read(true).write(true).open(path)?;
            Ok((child, terminal.try_clone()?, terminal))
        }
        "socket" => {
            let path = std::env::temp_dir().join(format!("echo-{}", std::process::id()));
            let option = format!("socket={}", path.display());
            let mut child = command
                .args(["--serial", &option])
                .stdin(Stdio::null())
                .spawn()?;
            let stream = loop {
                match UnixStream::connect(&path) {
                    Ok(stream) => break OwnedFd::from(stream),
                    Err(error) if child.try_wait()?.is_some() => return Err(error.into()),
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            };
            Ok((child, stream.try_clone()?.into(), stream.into()))
        }
        other => Err(format!("there is no way {other}").into()),
    }
}

/// Reads to the end: text until GO, then `data`, then text again. Text is printed.
fn check(from: &mut File, data: &[u8], go: &dyn Fn()) -> Result<(), Error> {
    let (mut text, mut echoed) = (Vec::new(), None);
    while let Some(bytes) = read_some(from)? {
        let mut new = bytes.as_slice();
        let found;
        if echoed.is_none() {
            text.extend(new);
            let Some(at) = text.windows(GO.len()).position(|part| part == GO) else {
                continue;
            };
            found = text.split_off(at + GO.len());
            new = &found;
            print_text(&std::mem::take(&mut text));
            echoed = Some(0);
            go();
        }
        let before = echoed.unwrap_or_default();
        let count = new.len().min(data.len() - before);
        let (back, rest) = new.split_at(count);
        if let Some(wrong) = back.iter().zip(&data[before..]).position(|(a, b)| a != b) {
            return Err(format!("byte {} came back wrong", before + wrong).into());
        }
        echoed = Some(before + count);
        text.extend(rest);
    }
    print_text(&text);
    match echoed {
        Some(count) if count == data.len() => Ok(()),
        Some(count) => Err(format!("{count} of {} bytes came back", data.len()).into()),
        None => Err("the guest never said GO".into()),
    }
}

fn print_text(text: &[u8]) {
    println!("{}", String::from_utf8_lossy(text));
}

/// The next bytes to read; `None` at the end. For a terminal, the end shows as an error.
fn read_some(from: &mut File) -> Result<Option<Vec<u8>>, Error> {
    let mut buffer = vec![0; 4096];
    match from.read(&mut buffer) {
        Ok(0) => Ok(None),
        Ok(count) => {
            buffer.truncate(count);
            Ok(Some(buffer))
        }
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
