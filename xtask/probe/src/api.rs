// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request to mini-vmm's API.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use crate::Error;

/// Runs `api SOCKET METHOD PATH JSON`. Another answer than success is an error.
pub fn main(words: &[&str]) -> Result<(), Error> {
    let [socket, method, path, body] = words else {
        return Err("say api SOCKET METHOD PATH JSON".into());
    };
    let mut stream = UnixStream::connect(socket)?;
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
