// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tracks the cursor after the guest's output. A line of ours starts at the left margin, even if the guest did not end
//! its last line on the same terminal, file or pipe.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::fstat;
use rustix::stdio;

use super::terminal::line_end;

/// The cursor of standard output. Tracked only if standard error goes to the same place.
static CURSOR: AtomicU8 = AtomicU8::new(0);

/// The cursor's line is not empty.
const WITHIN_LINE: u8 = 1 << 0;
/// There was no carriage return since the last character.
const RIGHT_OF_MARGIN: u8 = 1 << 1;

/// Whether standard output and standard error go to the same place.
pub(super) fn is_shared() -> bool {
    match (fstat(stdio::stdout()), fstat(stdio::stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

/// Tracks bytes that are about to be written to standard output.
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

/// The characters that bring the cursor to the left margin before a line on standard error. That line must follow, and
/// end with [`line_end`].
pub fn line_start() -> &'static str {
    to_margin(CURSOR.swap(0, Ordering::Relaxed), line_end())
}

fn to_margin(cursor: u8, line_end: &'static str) -> &'static str {
    if cursor & WITHIN_LINE != 0 {
        line_end
    } else if cursor & RIGHT_OF_MARGIN != 0 && line_end.starts_with('\r') {
        // On a raw terminal a line feed doesn't return to the first column.
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
        // The guest's output, and the characters that follow on a cooked terminal (or in a file) and on a raw one.
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
