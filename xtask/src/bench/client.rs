// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the measured API, and a storm of many.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The connections of a storm.
const CONNECTIONS: usize = 64;
/// The threads of a storm. Each has as many connections as others.
const THREADS: usize = 8;
/// How long to wait before a socket is looked for again.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Requests of a storm's clients.
const REQUESTS: [(&str, &str, &str); 5] = [
    ("GET", "/", ""),
    ("GET", "/vm", ""),
    ("GET", "/metrics", ""),
    ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
    (
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 64}"#,
    ),
];
/// What others send. After it the server closes the connection.
const GARBAGE: [&[u8]; 4] = [
    b"\0\xff\0\xff\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PUT /actions HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
    b"PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
];

/// A connection.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects as soon as someone listens at `socket`, within `patience`.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Client> {
        let until = Instant::now() + patience;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(Client(BufReader::new(stream))),
                Err(error) if Instant::now() > until => {
                    return Err(error).context("nobody serves the API");
                }
                Err(_) => thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Sends a request, and returns the status and the body of its answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                bail!("the API closed a connection");
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse()?;
            }
            status = status.or_else(|| line.split(' ').nth(1)?.parse().ok());
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status.context("an answer without a status")?, body))
    }

    /// A request that must succeed. Returns the JSON of its answer.
    pub fn done(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        match self.ask(method, path, body)? {
            (200 | 204, body) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
            (status, body) => {
                bail!(
                    "{method} {path}: {status}: {}",
                    String::from_utf8_lossy(&body)
                )
            }
        }
    }
}

/// Many connections at once for `time`: one half sends requests, the other half garbage. Returns how many answers came.
pub fn storm(socket: &Path, time: Duration) -> Result<u64> {
    let until = Instant::now() + time;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| gust(socket, until)))
            .collect();
        let answers = threads.into_iter().map(|thread| match thread.join() {
            Ok(answers) => answers,
            Err(_) => bail!("a client panicked"),
        });
        answers.sum()
    })
}

/// The connections of one thread.
fn gust(socket: &Path, until: Instant) -> Result<u64> {
    let connect = || Client::connect(socket, Duration::from_secs(10));
    let mut clients = (0..CONNECTIONS / THREADS)
        .map(|_| connect())
        .collect::<Result<Vec<_>>>()?;
    let mut answers = 0;
    for turn in 0.. {
        if Instant::now() > until {
            break;
        }
        for (index, client) in clients.iter_mut().enumerate() {
            if index % 2 == 0 {
                let (method, path, body) = REQUESTS[(turn + index) % REQUESTS.len()];
                if client.ask(method, path, body).is_err() {
                    // It had to make room.
                    *client = connect()?;
                }
            } else {
                let garbage = GARBAGE[(turn + index) % GARBAGE.len()];
                // The server may be quicker to close it.
                let _ = client.0.get_mut().write_all(garbage);
                let _ = client.answer();
                *client = connect()?;
            }
            answers += 1;
        }
    }
    Ok(answers)
}
