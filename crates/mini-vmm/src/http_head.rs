// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the heads of HTTP requests say, for all servers here.

use httparse::Header;

/// Why the end of a request is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// The body has a transfer encoding.
    Encoding,
    /// Its length is not a number.
    Length,
    /// It is longer than is possible.
    Size,
}

/// The size of a request's body in bytes, at most `max`: RFC 9112, section 6.3, without chunks.
///
/// # Errors
/// [`BodyError`].
pub(crate) fn body_size(headers: &[Header<'_>], max: usize) -> Result<usize, BodyError> {
    if values(headers, "transfer-encoding").next().is_some() {
        return Err(BodyError::Encoding);
    }
    let mut lengths = values(headers, "content-length");
    let Some(length) = lengths.next() else {
        return Ok(0);
    };
    let digits = length.trim_ascii();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if !is_number || lengths.any(|other| other.trim_ascii() != digits) {
        return Err(BodyError::Length);
    }
    // Too many digits are also too many bytes.
    let size = str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok());
    size.filter(|size| *size <= max).ok_or(BodyError::Size)
}

/// The values of all headers `name`, which is in lower case.
pub(crate) fn values<'a>(
    headers: &'a [Header<'a>],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    let named = headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| header.value)
}

/// Whether a header has `word` in its list.
pub(crate) fn is_in(headers: &[Header<'_>], name: &str, word: &str) -> bool {
    let mut words = values(headers, name).flat_map(|value| value.split(|byte| *byte == b','));
    words.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// The path of a request's target, which may be a whole URL.
pub(crate) fn path(target: &str) -> &str {
    let Some(rest) = target.strip_prefix("http://") else {
        return target;
    };
    rest.find('/').map_or("/", |start| &rest[start..])
}
