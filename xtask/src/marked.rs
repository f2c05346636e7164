// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A command's output within a console log, between two marks that are unique to this run.

use crate::process::sh_words;

/// Finds the command's output and its status in a guest's console output.
#[derive(Debug)]
pub struct Marked {
    begin: Vec<u8>,
    end: Vec<u8>,
    state: State,
    pending: Vec<u8>,
    log: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Within,
    /// The end mark was seen; its status is being read.
    AtStatus,
    After(u8),
}

/// How much of the end of a console's log is kept.
const LOG_LIMIT: usize = 1 << 20;

impl Marked {
    /// Looks for marks made of `nonce`.
    pub fn new(nonce: &str) -> Marked {
        Marked {
            begin: format!("@{nonce} begin\n").into_bytes(),
            end: format!("@{nonce} end ").into_bytes(),
            state: State::Before,
            pending: Vec::new(),
            log: Vec::new(),
        }
    }

    /// A shell script that runs `words` on /dev/ttyS0, byte for byte, between the marks of `nonce`.
    pub fn script(nonce: &str, words: &[String]) -> String {
        format!(
            "stty -F /dev/ttyS0 raw -echo\n\
             echo '@{nonce} begin' >/dev/ttyS0\n\
             ( {} ) </dev/null >/dev/ttyS0 2>&1\n\
             echo \"@{nonce} end $?\" >/dev/ttyS0\n",
            sh_words(words)
        )
    }

    /// Takes the console's next output, and writes the command's part to `output`.
    pub fn feed(&mut self, bytes: &[u8], mut output: impl FnMut(&[u8])) {
        self.log.extend_from_slice(bytes);
        // Cut rarely, because each cut moves the rest.
        if self.log.len() > 2 * LOG_LIMIT {
            self.log.drain(..self.log.len() - LOG_LIMIT);
        }
        self.pending.extend_from_slice(bytes);
        loop {
            match self.state {
                State::Before => match find(&self.pending, &self.begin) {
                    Some(at) => {
                        self.pending.drain(..at + self.begin.len());
                        self.state = State::Within;
                    }
                    None => {
                        self.pass(self.begin.len(), |_| ());
                        return;
                    }
                },
                State::Within => match find(&self.pending, &self.end) {
                    Some(at) => {
                        output(&self.pending[..at]);
                        self.pending.drain(..at + self.end.len());
                        self.state = State::AtStatus;
                    }
                    None => {
                        self.pass(self.end.len(), output);
                        return;
                    }
                },
                State::AtStatus => {
                    let Some(at) = find(&self.pending, b"\n") else {
                        return;
                    };
                    let status = std::str::from_utf8(&self.pending[..at])
                        .ok()
                        .and_then(|text| text.trim().parse().ok());
                    // The guest's shell writes a number; anything else means a broken console.
                    self.state = State::After(status.unwrap_or(u8::MAX));
                    self.pending.clear();
                }
                State::After(_) => {
                    self.pending.clear();
                    return;
                }
            }
        }
    }

    /// Passes on everything that can't be the start of a mark of `mark` bytes.
    fn pass(&mut self, mark: usize, mut output: impl FnMut(&[u8])) {
        let sure = self.pending.len().saturating_sub(mark - 1);
        if sure > 0 {
            output(&self.pending[..sure]);
            self.pending.drain(..sure);
        }
    }

    /// The command's status, once it ended.
    pub fn status(&self) -> Option<u8> {
        match self.state {
            State::After(status) => Some(status),
            _ => None,
        }
    }

    /// The end of the console's output.
    pub fn log(&self) -> String {
        let start = self.log.len().saturating_sub(LOG_LIMIT);
        String::from_utf8_lossy(&self.log[start..]).into_owned()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(console: &[u8], piece: usize) -> (Vec<u8>, Option<u8>) {
        let mut marked = Marked::new("n1");
        let mut output = Vec::new();
        for bytes in console.chunks(piece) {
            marked.feed(bytes, |bytes| output.extend_from_slice(bytes));
        }
        assert_eq!(marked.log().as_bytes(), console);
        (output, marked.status())
    }

    #[test]
    fn output_is_exact_however_it_is_cut() {
        let console =
            b"[ 0.1] booting @n2 begin\r\n@n1 begin\n6.1.0\n@n1 en@n1 end 42\nreboot: Power down\n";
        for piece in 1..=console.len() {
            let (output, status) = read(console, piece);
            assert_eq!(output, b"6.1.0\n@n1 en", "pieces of {piece}");
            assert_eq!(status, Some(42));
        }
    }

    #[test]
    fn output_needs_no_newline_and_may_be_empty() {
        assert_eq!(
            read(b"@n1 begin\nab@n1 end 0\n", 4),
            (b"ab".to_vec(), Some(0))
        );
        assert_eq!(read(b"@n1 begin\n@n1 end 1\r\n", 4), (vec![], Some(1)));
    }

    #[test]
    fn a_console_that_stops_has_no_status() {
        assert_eq!(read(b"panic", 2), (vec![], None));
        assert_eq!(read(b"@n1 begin\nab", 2).1, None);
        assert_eq!(read(b"@n1 begin\n@n1 end 1", 2).1, None);
        assert_eq!(read(b"@n1 begin\n@n1 end x\n", 2).1, Some(255));
    }

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let mut marked = Marked::new("n1");
        for _ in 0..(LOG_LIMIT / 1024 * 3 + 5) {
            marked.feed(&[b'x'; 1024], |_| ());
        }
        marked.feed(b"panic", |_| ());
        assert_eq!(marked.log().len(), LOG_LIMIT);
        assert!(marked.log().ends_with("xpanic") && marked.log.len() <= 2 * LOG_LIMIT);
        assert!(marked.pending.len() < 1024);
    }
}
