// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm ctl`: a client of the API, for people and scripts.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use httparse::{EMPTY_HEADER, Response, Status};
use serde_json::Value;

/// The most bytes of an answer. The largest of ours is a description with all its paths.
const MAX_ANSWER: u64 = 16 << 20;
/// The most headers of an answer.
const MAX_HEADERS: usize = 32;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing serves the API there.
    #[error("{}: no machine answers there ({source}); give the path of its --api-sock", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the machine did not answer ({0}); it may have ended")]
    Io(#[from] io::Error),
    /// The answer is not one of this API.
    #[error("the answer is not one of this API; give the path of a machine's --api-sock")]
    Answer,
    /// The machine refused the command.
    #[error("{0}")]
    Refused(String),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Show the machine's state and counters.
    Info,
    /// Show its description.
    Config,
    /// Start it.
    Start,
    /// Pause it.
    Pause,
    /// Resume it.
    Resume,
    /// Press its power button.
    PowerButton,
    /// End it.
    Stop,
}

impl Action {
    /// All actions by name.
    pub const NAMES: [(&str, Action); 7] = [
        ("info", Action::Info),
        ("config", Action::Config),
        ("start", Action::Start),
        ("pause", Action::Pause),
        ("resume", Action::Resume),
        ("power-button", Action::PowerButton),
        ("stop", Action::Stop),
    ];

    /// The request, if it is one that returns no data.
    fn request(self) -> Option<(&'static str, &'static str, &'static str)> {
        Some(match self {
            Action::Info | Action::Config => return None,
            Action::Start => ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
            Action::Pause => ("PATCH", "/vm", r#"{"state": "Paused"}"#),
            Action::Resume => ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
            Action::PowerButton => ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
            Action::Stop => ("PUT", "/actions", r#"{"action_type": "Stop"}"#),
        })
    }
}

/// Does `action` with the machine whose API is at `socket`. Returns what to print. `tell` gets a line before a wait.
///
/// # Errors
/// [`Error`] says what failed.
pub fn run(
    socket: &Path,
    action: Action,
    json: bool,
    tell: &mut dyn FnMut(&str),
) -> Result<String, Error> {
    let stream = UnixStream::connect(socket).map_err(|source| Error::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let mut client = Client(stream);
    if action == Action::Start {
        tell("waiting until the machine's images are loaded");
    }
    let Some((method, path, body)) = action.request() else {
        let data = match action {
            Action::Config => client.ask("GET", "/vm/config", "")?,
            _ => client.info()?,
        };
        return Ok(match json || action == Action::Config {
            true => format!("{data:#}\n"),
            false => lines(&data),
        });
    };
    client.ask(method, path, body)?;
    if action == Action::Stop {
        tell("waiting until the machine's process closes the connection");
        io::copy(&mut client.0, &mut io::sink())?;
    }
    Ok(match json {
        true => "{}\n".to_owned(),
        false => String::new(),
    })
}

struct Client(UnixStream);

impl Client {
    /// Sends a request, and waits for its answer. Without data that is `null`.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Value, Error> {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes())?;
        let mut input = Vec::new();
        loop {
            if let Some((status, body)) = parse(&input)? {
                return read(status, body);
            }
            let mut piece = [0; 4096];
            let count = self.0.read(&mut piece)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            input.extend(&piece[..count]);
            if input.len() as u64 > MAX_ANSWER {
                return Err(Error::Answer);
            }
        }
    }

    /// The state, and counters once there is a machine.
    fn info(&mut self) -> Result<Value, Error> {
        let mut info = self.ask("GET", "/", "")?;
        if info["state"] != "Not started"
            && let Value::Object(more) = self.ask("GET", "/vm", "")?
            && let Value::Object(info) = &mut info
        {
            info.extend(more);
        }
        Ok(info)
    }
}

/// The status and the body of an answer, if it is complete.
fn parse(input: &[u8]) -> Result<Option<(u16, &[u8])>, Error> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut answer = Response::new(&mut headers);
    let head = match answer.parse(input) {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Error::Answer),
    };
    let mut lengths = answer
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().map_or(Ok(0), |header| {
        let digits = str::from_utf8(header.value).map_err(|_| Error::Answer)?;
        digits.parse::<usize>().map_err(|_| Error::Answer)
    })?;
    let end = head.checked_add(length).ok_or(Error::Answer)?;
    let status = answer.code.ok_or(Error::Answer)?;
    Ok(input.get(head..end).map(|body| (status, body)))
}

/// What an answer means.
fn read(status: u16, body: &[u8]) -> Result<Value, Error> {
    let data = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(|_| Error::Answer)?,
    };
    if (200..300).contains(&status) {
        return Ok(data);
    }
    let message = data["fault_message"].as_str().ok_or(Error::Answer)?;
    Err(Error::Refused(message.to_owned()))
}

/// One line for each entry of an object.
fn lines(data: &Value) -> String {
    let mut text = String::new();
    for (name, value) in data.as_object().into_iter().flatten() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        // Writing to a string never fails.
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What `action` prints if the other end says `answers`, one for each request.
    fn with(action: Action, answers: &[&str]) -> Result<String, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).unwrap();
                for byte in answer.as_bytes() {
                    let _ = stream.write_all(&[*byte]);
                }
            }
        });
        let result = run(&path, action, false, &mut |_| {});
        server.join().unwrap();
        result
    }

    #[test]
    fn answers_are_read_whole_and_faults_are_errors() {
        let info =
            "HTTP/1.1 200 OK\r\ncontent-length: 26\r\n\r\n{\"id\":\"a\",\"state\":\"Paused\"}";
        let info = info.replace("26", "27");
        let vm = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"exits\":[]}".replace("11", "12");
        assert_eq!(
            with(Action::Info, &[&info, &vm]).unwrap(),
            "exits: []\nid: a\nstate: Paused\n"
        );
        assert_eq!(
            with(Action::Pause, &["HTTP/1.1 204 No Content\r\n\r\n"]).unwrap(),
            ""
        );
        assert_eq!(
            with(Action::Stop, &["HTTP/1.1 204 No Content\r\n\r\n"]).unwrap(),
            ""
        );
        let fault = "HTTP/1.1 400 Bad\r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}";
        assert_eq!(
            with(Action::Resume, &[fault]).unwrap_err().to_string(),
            "no"
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for wrong in [
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 400 Bad\r\n\r\n",
        ] {
            assert!(
                matches!(with(Action::Pause, &[wrong]), Err(Error::Answer)),
                "{wrong}"
            );
        }
        assert!(matches!(
            with(Action::Pause, &["HTTP/1.1 2"]),
            Err(Error::Io(_))
        ));
        let nobody = run(Path::new("/no/such"), Action::Info, false, &mut |_| {});
        assert!(nobody.unwrap_err().to_string().contains("--api-sock"));
    }
}
