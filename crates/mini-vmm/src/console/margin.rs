// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the guest's output leaves the cursor: a line of ours starts at the left margin, also after a line that the
//! guest did not finish on the same terminal, file or pipe.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::fstat;
use rustix::stdio;

use super::terminal::line_end;

/// Where the cursor of standard output is, if that is standard error, too.
static CURSOR: AtomicU8 = AtomicU8::new(0);

/// Something stands on the cursor's line.
const WITHIN_LINE: u8 = 1 << 0;
/// There was no carriage return since.
const RIGHT_OF_MARGIN: u8 = 1 << 1;

/// Whether standard output and standard error go to the same place.
pub(super) fn is_shared() -> bool {
    match (fstat(stdio::stdout()), fstat(stdio::stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

/// Takes note of what is about to be written to standard output.
pub(super) fn note(bytes: &[u8]) {
    CURSOR.store(
        cursor_after(CURSOR.load(Ordering::Relaxed), bytes),
        Ordering::Relaxed,
    );
}

fn cursor_after(cursor: u8, bytes: &[u8]) -> u8 {
    bytes.iter().fold(cursor, |cursor, byte| match byte {
        b'\n' => cursor & !WITHIN_LINE,
        b'\r' => cursor & !RIGHT_OF_MARGIN,
        _ => WITHIN_LINE | RIGHT_OF_MARGIN,
    })
}

/// What brings the cursor to the left margin before a line on standard error. The line must follow, and end by
/// [`line_end`].
pub fn line_start() -> &'static str {
    to_margin(CURSOR.swap(0, Ordering::Relaxed), line_end())
}

fn to_margin(cursor: u8, line_end: &'static str) -> &'static str {
    if cursor & WITHIN_LINE != 0 {
        line_end
    } else if cursor & RIGHT_OF_MARGIN != 0 && line_end.starts_with('\r') {
        // A raw terminal does not return at a line feed.
        "\r"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unfinished_line_is_ended() {
        // What the guest wrote, and what follows on a cooked terminal (or in a file) and on a raw one.
        for (written, cooked, raw) in [
            ("", "", ""),
            ("login: ", "\n", "\r\n"),
            ("done\n", "", "\r"),
            ("done\r\n", "", ""),
            ("done\n\r", "", ""),
            ("50 %\r", "\n", "\r\n"),
            ("\r\n# ", "\n", "\r\n"),
        ] {
            let cursor = cursor_after(0, written.as_bytes());
            assert_eq!(to_margin(cursor, "\n"), cooked, "{written:?}");
            assert_eq!(to_margin(cursor, "\r\n"), raw, "{written:?}");
            let (first, second) = written.split_at(written.len() / 2);
            let in_parts = cursor_after(cursor_after(0, first.as_bytes()), second.as_bytes());
            assert_eq!(in_parts, cursor, "{written:?}");
        }
    }
}
