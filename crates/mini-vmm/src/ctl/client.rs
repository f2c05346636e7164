// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the API: one request after another, on one connection.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response, Status};

use super::Error;

/// How long to wait in silence.
const SILENCE: Duration = Duration::from_secs(1);
/// The most bytes of an answer before its body.
const MAX_HEAD: usize = 16 << 10;
/// The most bytes of an answer's body.
const MAX_BODY: usize = 4 << 20;
/// The most headers of an answer.
const MAX_HEADERS: usize = 64;

/// An answer that was read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A connection to the API.
#[derive(Debug)]
pub(super) struct Client<'a> {
    path: &'a Path,
    stream: UnixStream,
}

/// What the bytes of an answer are so far.
enum Parsed {
    Part,
    Whole(Answer),
    Bad,
}

impl<'a> Client<'a> {
    /// Connects to the socket at `path`.
    pub fn connect(path: &'a Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(SILENCE))?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => Ok(Client { path, stream }),
            Err(source) => Err(Error::Connect {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The process that serves the API. `None` if it has no number here.
    pub fn process(&self) -> Option<i32> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        Some(peer.pid.as_raw_nonzero().get())
    }

    /// Sends a request and reads its answer. Calls `wait` each time that nothing came for a second.
    pub fn ask(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
        wait: &mut dyn FnMut(),
    ) -> Result<Answer, Error> {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // A server that has refused to listen may still have said why.
        let sent = self.stream.write_all(request.as_bytes());
        let mut input = Vec::new();
        loop {
            match parse(&input) {
                Parsed::Part => {}
                Parsed::Whole(answer) => return Ok(answer),
                Parsed::Bad => return Err(Error::NotHttp(self.path.to_owned())),
            }
            if self.read(&mut input, wait)? == 0 {
                let path = self.path.to_owned();
                return Err(match sent {
                    Err(source) if input.is_empty() => Error::Connection { path, source },
                    _ => Error::Closed(path),
                });
            }
        }
    }

    /// Waits until the server ends the connection. Calls `wait` each time that nothing came for a second.
    pub fn until_closed(&mut self, wait: &mut dyn FnMut()) -> Result<(), Error> {
        let mut ignored = Vec::new();
        while self.read(&mut ignored, wait)? > 0 {
            ignored.clear();
        }
        Ok(())
    }

    /// Reads more. 0 bytes are the end.
    fn read(&mut self, input: &mut Vec<u8>, wait: &mut dyn FnMut()) -> Result<usize, Error> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    input.extend_from_slice(&buffer[..count]);
                    return Ok(count);
                }
                Err(error) if is_silence(&error) => wait(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The process ended with our bytes unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
                Err(source) => {
                    let path = self.path.to_owned();
                    return Err(Error::Connection { path, source });
                }
            }
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Reads the answer at the start of `input`. Only one request is under way, so nothing may follow it.
fn parse(input: &[u8]) -> Parsed {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = Response::new(&mut headers);
    let (size, status) = match (head.parse(input), head.code) {
        (Ok(Status::Complete(size)), Some(status)) if size <= MAX_HEAD => (size, status),
        (Ok(Status::Partial), _) if input.len() <= MAX_HEAD => return Parsed::Part,
        _ => return Parsed::Bad,
    };
    let named = |name: &str| {
        let mut headers = head.headers.iter();
        headers.find(|header| header.name.eq_ignore_ascii_case(name))
    };
    let length = match named("content-length").map(|header| str::from_utf8(header.value)) {
        None => Some(0),
        Some(Ok(digits)) => digits.trim().parse().ok(),
        Some(Err(_)) => None,
    };
    let is_chunked = named("transfer-encoding").is_some();
    let Some(length) = length.filter(|length| *length <= MAX_BODY && !is_chunked) else {
        return Parsed::Bad;
    };
    let body = &input[size..];
    match body.len() {
        have if have < length => Parsed::Part,
        have if have > length => Parsed::Bad,
        _ => Parsed::Whole(Answer {
            status,
            body: body.to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let input = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        for end in 0..input.len() {
            assert!(matches!(parse(&input[..end]), Parsed::Part), "{end}");
        }
        let Parsed::Whole(answer) = parse(input) else {
            panic!("not whole");
        };
        assert_eq!((answer.status, &*answer.body), (200, &b"{}"[..]));
        let none = parse(b"HTTP/1.0 204 No Content\r\n\r\n");
        assert!(matches!(none, Parsed::Whole(answer) if answer.status == 204));
    }

    #[test]
    fn what_is_no_answer_of_ours_is_refused_without_an_end() {
        for bad in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\nmore",
            &[b'\n'; MAX_HEAD + 1],
            &[b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &[b'a'; MAX_HEAD]].concat(),
            &[
                b"HTTP/1.1 200 OK\r\n".as_slice(),
                &b"A: b\r\n".repeat(MAX_HEADERS + 1),
            ]
            .concat(),
        ] {
            assert!(
                matches!(parse(bad), Parsed::Bad),
                "{:?}",
                bad.escape_ascii().to_string()
            );
        }
    }
}
