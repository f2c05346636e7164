// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the API, as simple as curl.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::Running;

/// A connection that is kept.
#[derive(Debug)]
pub struct Client(UnixStream);

/// An answer: its status, and its JSON if it has some.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub json: Value,
}

impl Client {
    /// Connects as soon as `running` serves at `path`.
    pub fn connect(running: &mut Running, path: &Path) -> Client {
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Client(stream),
                Err(error) => assert!(running.is_alive(), "{error}: {running:?}"),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Describes a machine with the test's kernel.
    pub fn describe(&mut self) {
        self.done(
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 32}"#,
        );
        self.done(
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": "kernel", "boot_args": ""}"#,
        );
    }

    /// Sends bytes, whatever they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends a request and waits for its answer. `None` if the process has ended.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Option<Answer> {
        self.0.write_all(&request(method, path, body)).ok()?;
        self.answer()
    }

    /// Sends a request. Its answer comes later.
    pub fn begin(&mut self, method: &str, path: &str, body: &str) {
        self.send(&request(method, path, body));
    }

    /// Reads an answer. `None` if the process has ended.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let length = lines.find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).ok()?;
        Some(Answer {
            status: status.parse().unwrap(),
            json: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    /// A request that must succeed without data.
    #[track_caller]
    pub fn done(&mut self, method: &str, path: &str, body: &str) {
        let answer = self.ask(method, path, body).unwrap();
        assert_eq!(answer.status, 204, "{method} {path}: {answer:?}");
    }

    /// The data of a path.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Value {
        let answer = self.ask("GET", path, "").unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json
    }

    /// A request that must be refused with a message that contains `why`.
    #[track_caller]
    pub fn refused(&mut self, method: &str, path: &str, body: &str, why: &str) {
        self.begin(method, path, body);
        self.is_refused(why);
    }

    /// The next answer must be a refusal with a message that contains `why`.
    #[track_caller]
    pub fn is_refused(&mut self, why: &str) {
        let answer = self.answer().unwrap();
        let message = answer.json["fault_message"].as_str().unwrap_or_default();
        assert!(answer.status == 400 && message.contains(why), "{answer:?}");
    }

    pub fn act(&mut self, action: &str) {
        self.done(
            "PUT",
            "/actions",
            &format!(r#"{{"action_type": "{action}"}}"#),
        );
    }

    pub fn set_state(&mut self, state: &str) {
        self.done("PATCH", "/vm", &format!(r#"{{"state": "{state}"}}"#));
    }

    pub fn state(&mut self) -> String {
        self.get("/")["state"].as_str().unwrap().to_owned()
    }

    /// The number of the guest's exits so far.
    pub fn exits(&mut self) -> u64 {
        let exits = &self.get("/vm")["exits"];
        exits
            .as_array()
            .unwrap()
            .iter()
            .map(|count| count.as_u64().unwrap())
            .sum()
    }

    /// Waits until the guest has made some more exits.
    pub fn let_it_run(&mut self) {
        let before = self.exits();
        while self.exits() < before + 10 {
            thread::yield_now();
        }
    }
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}
