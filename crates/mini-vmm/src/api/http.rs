// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! HTTP/1.0 and 1.1 messages as bytes. Pure functions: `httparse` reads the head, this module the rest.
//!
//! A connection stays open in both versions until one side says `Connection: close`. Clients of Firecracker's API rely
//! on that with 1.0, too.

use httparse::{EMPTY_HEADER, Status};

use crate::http_head::{BodyError, body_size, is_in, path};
use crate::text::{one_line, shorten};

/// The most bytes of a request before its body.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// The most headers of a request.
const MAX_HEADERS: usize = 32;
/// The most characters of a message. It may contain words of the request.
const MAX_MESSAGE: usize = 1000;

/// No answer's size is a multiple of this. firecracker-rs-sdk 0.1.0 reads pieces of that size, and waits for another one
/// until it gets a smaller one.
const PIECE: usize = 64;

/// What to send before the body of a request that asks for it.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request, in the bytes that were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    /// The path, without a scheme and a host.
    pub path: &'a str,
    pub body: &'a [u8],
    /// Whether the client wants another answer on this connection.
    pub stays: bool,
}

/// What the bytes at the start of a connection's input are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A part of a request. The client may wait for [`CONTINUE`].
    Part { awaits_continue: bool },
    /// A request, and its number of bytes.
    Whole(Request<'a>, usize),
    /// Not a request of ours. Where the next one begins is unknown.
    Bad(Fault),
}

/// Why a request failed: the body of its answer is `{"fault_message": …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub status: u16,
    pub message: String,
}

impl Fault {
    /// The request is wrong, or not possible now.
    pub fn new(message: impl Into<String>) -> Self {
        Fault::with_status(400, message)
    }

    /// A fault with an HTTP status of its own.
    pub fn with_status(status: u16, message: impl Into<String>) -> Self {
        let message = shorten(&one_line(&message.into()), MAX_MESSAGE);
        Fault { status, message }
    }
}

/// An answer: data, or nothing but success, or a fault.
pub(crate) type Answer = Result<Option<Data>, Fault>;

/// The data of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    /// JSON.
    Json(serde_json::Value),
    /// Prometheus' text format.
    Metrics(String),
}

/// Reads the request at the start of `input`. Its body may have up to `max_body` bytes.
pub(super) fn parse(input: &[u8], max_body: usize) -> Parsed<'_> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_size = match head.parse(input) {
        Ok(Status::Complete(size)) if size <= MAX_HEAD => size,
        Ok(Status::Partial) if input.len() <= MAX_HEAD => {
            return Parsed::Part {
                awaits_continue: false,
            };
        }
        Ok(_) => {
            return bad(
                431,
                format!("the request's head has more than {MAX_HEAD} bytes; shorten it"),
            );
        }
        Err(httparse::Error::TooManyHeaders) => {
            return bad(
                431,
                format!("the request has more than {MAX_HEADERS} headers; send fewer"),
            );
        }
        Err(httparse::Error::Version) => {
            return bad(
                505,
                "this is not HTTP/1.0 or HTTP/1.1; use one of them".into(),
            );
        }
        Err(error) => {
            return bad(
                400,
                format!("this is not an HTTP request ({error}); send one"),
            );
        }
    };
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return bad(400, "the request has no method or path; send both".into());
    };
    let body = match body_size(head.headers, max_body) {
        Ok(size) => size,
        Err(error) => return Parsed::Bad(no_body(error, max_body)),
    };
    // More than the limit of a body is refused above, but the limit may be any number.
    let size = head_size.saturating_add(body);
    if input.len() < size {
        return Parsed::Part {
            awaits_continue: head.version == Some(1)
                && is_in(head.headers, "expect", "100-continue"),
        };
    }
    let request = Request {
        method,
        path: path(target),
        body: &input[head_size..size],
        stays: !is_in(head.headers, "connection", "close"),
    };
    Parsed::Whole(request, size)
}

fn bad<'a>(status: u16, message: String) -> Parsed<'a> {
    Parsed::Bad(Fault::with_status(status, message))
}

/// Why the body's end is unknown, as a fault.
fn no_body(error: BodyError, max: usize) -> Fault {
    match error {
        BodyError::Encoding => Fault::new(
            "Transfer-Encoding is not possible here; send the body with its Content-Length",
        ),
        BodyError::Length => Fault::new("Content-Length is not one number of bytes; correct it"),
        BodyError::Size => Fault::with_status(
            413,
            format!(
                "the request's body has more than {max} bytes; shorten it, or raise --http-api-max-payload-size"
            ),
        ),
    }
}

/// Appends `answer` to `output`.
pub(super) fn write(output: &mut Vec<u8>, answer: &Answer, stays: bool) {
    let (status, body) = match answer {
        Ok(None) => (204, None),
        Ok(Some(Data::Json(value))) => (200, Some(value.to_string())),
        Ok(Some(Data::Metrics(text))) => (200, Some(text.clone())),
        Err(fault) => {
            let body = serde_json::json!({ "fault_message": fault.message });
            (fault.status, Some(body.to_string()))
        }
    };
    let kind = match answer {
        Ok(Some(Data::Metrics(_))) => "text/plain; version=0.0.4; charset=utf-8",
        _ => "application/json",
    };
    let connection = if stays { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nServer: mini-vmm API\r\nConnection: {connection}\r\n",
        reason(status)
    );
    // RFC 9110, section 8.6: 204 has no Content-Length. Some clients read a body if there is one.
    if let Some(mut body) = body {
        let head_of =
            |length: usize| format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
        if (head.len() + head_of(body.len()).len() + body.len()).is_multiple_of(PIECE) {
            body.push('\n');
        }
        output.extend(head.bytes());
        output.extend(head_of(body.len()).bytes());
        output.extend(body.bytes());
    } else {
        output.extend(head.bytes());
        output.extend(b"\r\n");
    }
}

/// The reason phrase of a status that this API uses.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(input: &[u8]) -> (Request<'_>, usize) {
        match parse(input, 100) {
            Parsed::Whole(request, size) => (request, size),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(input: &[u8], status: u16, why: &str) {
        match parse(input, 100) {
            Parsed::Bad(fault) => {
                assert_eq!(fault.status, status, "{fault:?}");
                assert!(fault.message.contains(why), "{fault:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_ends_where_the_next_begins() {
        let input = b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n";
        let (first, size) = whole(input);
        assert_eq!(
            (first.method, first.path, first.body),
            ("PUT", "/a", &b"{}"[..])
        );
        let (second, rest) = whole(&input[size..]);
        assert_eq!(
            (second.method, second.path, second.stays),
            ("GET", "/", true)
        );
        assert_eq!(size + rest, input.len());
    }

    /// Whatever the cut, a part is a part.
    #[test]
    fn every_prefix_of_a_request_is_a_part() {
        let input = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        for end in 0..input.len() {
            let part = parse(&input[..end], 100);
            assert!(matches!(part, Parsed::Part { .. }), "{end}: {part:?}");
        }
    }

    #[test]
    fn headers_have_any_case_and_targets_may_be_urls() {
        let input =
            b"GET http://localhost/version HTTP/1.1\r\ncOnnection: Keep-Alive, CLOSE\r\n\r\n";
        let (request, _) = whole(input);
        assert_eq!((request.path, request.stays), ("/version", false));
        assert_eq!(whole(b"GET http://h HTTP/1.1\r\n\r\n").0.path, "/");
    }

    #[test]
    fn a_client_may_wait_before_its_body() {
        let head = b"PUT /a HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
        let awaits_continue = true;
        assert_eq!(parse(head, 100), Parsed::Part { awaits_continue });
        // RFC 9110, section 10.1.1.
        let head = b"PUT /a HTTP/1.0\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
        let awaits_continue = false;
        assert_eq!(parse(head, 100), Parsed::Part { awaits_continue });
    }

    #[test]
    fn the_limit_of_a_body_may_be_any_number() {
        let input = format!(
            "PUT /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n{{}}",
            usize::MAX
        );
        let part = parse(input.as_bytes(), usize::MAX);
        assert!(matches!(part, Parsed::Part { .. }), "{part:?}");
    }

    #[test]
    fn what_has_no_certain_end_is_refused() {
        refused(b"\x16\x03\x01\x02\x00\x01", 400, "not an HTTP request");
        refused(b"GET / HTTP/2.0\r\n\r\n", 505, "HTTP/1.1");
        refused(
            b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "Content-Length",
        );
        for wrong in ["-1", "+1", "0x1", "", "1, 1", "1\r\nContent-Length: 2"] {
            let input = format!("PUT /a HTTP/1.1\r\nContent-Length: {wrong}\r\n\r\n");
            refused(input.as_bytes(), 400, "Content-Length");
        }
        for large in ["101", "18446744073709551616", &"9".repeat(100)] {
            let input = format!("PUT /a HTTP/1.1\r\nContent-Length: {large}\r\n\r\n");
            refused(input.as_bytes(), 413, "--http-api-max-payload-size");
        }
        refused(&[b'\n'; MAX_HEAD + 1], 431, "head");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD));
        refused(long.as_bytes(), 431, "head");
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        refused(many.as_bytes(), 431, "headers");
    }

    #[test]
    fn only_answers_with_a_body_have_a_length() {
        let text = |answer: Answer, stays| {
            let mut output = Vec::new();
            write(&mut output, &answer, stays);
            String::from_utf8(output).unwrap()
        };
        let done = text(Ok(None), true);
        assert!(done.starts_with("HTTP/1.1 204 No Content\r\n") && done.ends_with("\r\n\r\n"));
        assert!(!done.contains("Content-"), "{done}");
        let data = text(Ok(Some(Data::Json(serde_json::json!({"a": 1})))), false);
        assert!(data.contains("Connection: close\r\n") && data.contains("Content-Length: 7\r\n"));
        assert!(data.ends_with("\r\n\r\n{\"a\":1}"), "{data}");
        for length in 0..2 * PIECE {
            let answer = text(Err(Fault::new("a".repeat(length))), true);
            assert!(!answer.len().is_multiple_of(PIECE), "{answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
        }
        for stays in [false, true] {
            assert!(!text(Ok(None), stays).len().is_multiple_of(PIECE));
        }
        let fault = text(Err(Fault::new("no\r\nX: y")), true);
        assert!(fault.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{fault}");
        assert!(
            fault.ends_with(r#"{"fault_message":"no\\r\\nX: y"}"#),
            "{fault}"
        );
    }
}
