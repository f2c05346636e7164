// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress lines and child processes.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Steps shorter than this stay silent.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// Runs `work`; says on stderr what it is and how long it takes, once that is over two seconds.
pub fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = channel::<()>();
    let started = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    thread::scope(|scope| {
        let reporter = scope.spawn(move || {
            let mut shown = false;
            let mut wait = QUIET_FOR;
            while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let seconds = started.elapsed().as_secs();
                if terminal {
                    eprint!("\rxtask: {what}: {seconds} s ");
                    let _ = std::io::stderr().flush();
                } else {
                    eprintln!("xtask: {what}: {seconds} s");
                }
                shown = true;
                wait = Duration::from_secs(if terminal { 1 } else { 30 });
            }
            if shown {
                let lead = if terminal { "\r" } else { "" };
                eprintln!(
                    "{lead}xtask: {what}: done in {:.0} s",
                    started.elapsed().as_secs_f64()
                );
            }
        });
        let result = work();
        drop(done);
        // The reporter only prints; should it panic, the work's result still stands.
        let _ = reporter.join();
        result
    })
}

/// Runs `command` to its end without input; its output is kept.
pub fn capture(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {}", show(command)))
}

/// As [`capture`], but a failure is an error that carries the command's last lines.
pub fn capture_ok(command: &mut Command) -> Result<Vec<u8>> {
    let output = capture(command)?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!(
            "{} failed ({}):\n{}",
            show(command),
            output.status,
            last_lines(&text, 60)
        );
    }
    Ok(output.stdout)
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// `word` quoted for a POSIX shell.
pub fn sh_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `words` as one shell command line.
pub fn sh_words(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| sh_quote(word)).collect();
    quoted.join(" ")
}

/// Whether `program` is on the search path, or in a directory that only root's path has.
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory: std::path::PathBuf| directory.join(program).is_file())
}

/// Reads a file, naming it in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

/// Writes a file, naming it in the error.
pub fn write(path: &Path, data: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, data).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let words = ["a b", "it's", "", "$HOME", "plain-1.0", "new\nline"];
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let line = format!("printf '%s|' {}", sh_words(&words));
        let output = capture_ok(Command::new("sh").args(["-c", &line])).unwrap();
        assert_eq!(output, b"a b|it's||$HOME|plain-1.0|new\nline|");
    }

    #[test]
    fn failures_carry_the_last_lines() {
        let error = capture_ok(Command::new("sh").args(["-c", "echo why >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("why") && text.contains("exit status: 3"),
            "{text}"
        );
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }

    #[test]
    fn a_step_returns_what_its_work_returns() {
        assert_eq!(step("nothing", || 7), 7);
    }
}
