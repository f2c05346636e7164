// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What virtiofsd says.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::process::ChildStderr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sync::lock;
use crate::sys::threads::block_all_signals;
use crate::text::{one_line, shorten};

/// The most bytes of a line.
const MAX_LINE: u64 = 4096;
/// The most characters of it in a message.
const MAX_SAID: usize = 300;
/// The most lines that are passed on. A guest may be the reason for any of them.
const MAX_LINES: usize = 100;
/// Its last lines that tell why it ended.
const REASONS: usize = 2;
/// How long to wait for the last lines of a process that has ended.
const WAIT: Duration = Duration::from_secs(5);

/// The lines of a process, which a thread passes on until the process ends.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    is_over: bool,
}

impl Said {
    /// Passes on what comes from `from`.
    pub fn read(from: ChildStderr) -> io::Result<Self> {
        let said = Said::default();
        let lines = said.clone();
        thread::Builder::new()
            .name("virtiofsd".to_owned())
            .spawn(move || {
                block_all_signals();
                lines.pass_on(&mut BufReader::new(from));
                let (lines, over) = &*lines.0;
                lock(lines).is_over = true;
                over.notify_all();
            })?;
        Ok(said)
    }

    fn pass_on(&self, from: &mut impl BufRead) {
        for count in 0.. {
            let mut line = Vec::new();
            match from.take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(1..) => {}
                _ => return,
            }
            let line = String::from_utf8_lossy(&line);
            let line = shorten(&one_line(line.trim()), MAX_SAID);
            match count {
                ..MAX_LINES => log::warn!("virtiofsd: {line}"),
                MAX_LINES => log::warn!("virtiofsd says more, which is not shown"),
                _ => {}
            }
            let mut lines = lock(&self.0.0);
            lines.last.push_back(line);
            if lines.last.len() > REASONS {
                lines.last.pop_front();
            }
        }
    }

    /// The last lines of a process that has ended, if it said something.
    pub fn last_words(&self) -> Option<String> {
        let (lines, over) = &*self.0;
        let lines = over.wait_timeout_while(lock(lines), WAIT, |lines| !lines.is_over);
        let (lines, _) = lines.unwrap_or_else(PoisonError::into_inner);
        let last: Vec<&str> = lines.last.iter().map(String::as_str).collect();
        (!last.is_empty()).then(|| last.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_the_last_ones_are_kept() {
        let said = Said::default();
        let long = "x".repeat(3 * MAX_LINE as usize);
        let text = format!("{}{long}\nlast but one\n\x1b[1mlast", "a\n".repeat(1000));
        said.pass_on(&mut text.as_bytes());
        lock(&said.0.0).is_over = true;
        let last = said.last_words().unwrap();
        assert!(
            last.starts_with("last but one, ") && last.ends_with("last"),
            "{last}"
        );
        assert!(!last.contains('\x1b'), "{last}");
    }
}
