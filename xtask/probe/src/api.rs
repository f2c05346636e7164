// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to the APIs of VMMs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::Error;

/// How long to wait before a socket is looked for again.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Runs `api SOCKET METHOD PATH JSON`. Another answer than success is an error.
pub fn main(words: &[&str]) -> Result<(), Error> {
    let [socket, method, path, body] = words else {
        return Err("say api SOCKET METHOD PATH JSON".into());
    };
    ask(UnixStream::connect(socket)?, method, path, body)
}

/// Connects as soon as someone listens. The caller's own limit ends it.
pub fn connect(socket: &str) -> UnixStream {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

/// Sends a request, which must succeed.
pub fn ask(mut stream: UnixStream, method: &str, path: &str, body: &str) -> Result<(), Error> {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status)?;
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        _ => Err(format!("the answer to {method} {path} is {status:?}").into()),
    }
}
