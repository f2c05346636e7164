// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's requests and the answers, as bytes.

use httparse::{EMPTY_HEADER, Header, Status};

use crate::http_head::{BodyError, body_size, is_in, path};

/// The most bytes of a request.
pub(super) const MAX_REQUEST: usize = 4096;
/// The most headers of a request.
const MAX_HEADERS: usize = 32;

/// A request. Bodies are not looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    /// The path, without a scheme, a host and a query.
    pub path: &'a str,
    pub headers: &'a [Header<'a>],
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub is_json: bool,
    pub body: String,
    /// One more header.
    pub header: Option<(&'static str, String)>,
}

impl Answer {
    /// Plain text.
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Answer {
            status,
            body: body.into(),
            ..Answer::default()
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// The answer.
    pub bytes: Vec<u8>,
    /// The number of bytes of the request.
    pub used: usize,
    /// Whether the guest may send another request.
    pub stays: bool,
}

/// Answers the request at the start of `input`. `None` if it is not complete; then it has less than [`MAX_REQUEST`]
/// bytes.
pub(super) fn serve(input: &[u8], answer: impl FnOnce(Request<'_>) -> Answer) -> Option<Served> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let parsed = head.parse(input);
    let bad = |status, why: &str| {
        let answer = Answer::text(status, why);
        let (bytes, used) = (write(&answer, false), input.len());
        let stays = false;
        Some(Served { bytes, used, stays })
    };
    let start = match parsed {
        Ok(Status::Complete(start)) => start,
        Ok(Status::Partial) if input.len() < MAX_REQUEST => return None,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return bad(431, "The request has too many or too long headers.");
        }
        Err(httparse::Error::Version) => {
            return bad(505, "Only HTTP/1.0 and HTTP/1.1 are possible.");
        }
        Err(_) => return bad(400, "This is not an HTTP request."),
    };
    let size = match body_size(head.headers, MAX_REQUEST.saturating_sub(start)) {
        Ok(body) => start + body,
        Err(BodyError::Encoding) => return bad(501, "Transfer encodings are not possible."),
        Err(BodyError::Length) => return bad(400, "Content-Length is not a number of bytes."),
        Err(BodyError::Size) => return bad(413, "The request is too long."),
    };
    if input.len() < size {
        return None;
    }
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return bad(400, "This is not an HTTP request.");
    };
    let is_in = |word| is_in(head.headers, "connection", word);
    let stays = !is_in("close") && (head.version == Some(1) || is_in("keep-alive"));
    let answer = answer(Request {
        method,
        path: path(target).split('?').next().unwrap_or_default(),
        headers: head.headers,
    });
    let mut bytes = write(&answer, stays);
    if method == "HEAD" {
        // Its answer never has a body (RFC 9110, section 9.3.2).
        bytes.truncate(bytes.len() - answer.body.len());
    }
    Some(Served {
        bytes,
        used: size,
        stays,
    })
}

fn write(answer: &Answer, stays: bool) -> Vec<u8> {
    let kind = match answer.is_json {
        true => "application/json",
        false => "text/plain",
    };
    let connection = if stays { "keep-alive" } else { "close" };
    let more = match &answer.header {
        Some((name, value)) => format!("{name}: {value}\r\n"),
        None => String::new(),
    };
    let (status, body) = (answer.status, &answer.body);
    format!(
        "HTTP/1.1 {status} {}\r\nServer: mini-vmm MMDS\r\nConnection: {connection}\r\n{more}\
         Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        reason(status),
        body.len()
    )
    .into_bytes()
}

/// The reason phrase of a status that the service uses.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
