// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress lines and child processes.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::watch::{Hang, Patience, Watch};

/// Steps shorter than this stay silent.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// Shows a step and its duration on stderr once it takes over two seconds, until this is dropped.
#[derive(Debug)]
pub struct Progress {
    done: Option<Sender<()>>,
    reporter: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts the clock of `what`.
    pub fn start(what: &str) -> Progress {
        let (done, is_done) = channel();
        let what = what.to_owned();
        Progress {
            done: Some(done),
            reporter: Some(thread::spawn(move || report(&what, &is_done))),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done = None;
        // The reporter only prints; should it panic, nothing is lost.
        let _ = self.reporter.take().map(JoinHandle::join);
    }
}

fn report(what: &str, is_done: &Receiver<()>) {
    let started = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut wait = QUIET_FOR;
    while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let seconds = started.elapsed().as_secs();
        if terminal {
            eprint!("\rxtask: {what}: {seconds} s ");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("xtask: {what}: {seconds} s");
        }
        wait = Duration::from_secs(if terminal { 1 } else { 30 });
    }
    if started.elapsed() >= QUIET_FOR {
        let lead = if terminal { "\r" } else { "" };
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{lead}xtask: {what}: done in {seconds:.0} s");
    }
}

/// Runs `work` as one step that shows its [`Progress`].
pub fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let _progress = Progress::start(what);
    work()
}

/// Runs `command` to its end without input, and returns its output.
pub fn capture(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {}", show(command)))
}

/// Like [`capture`], but a failure is an error with the command's last lines.
pub fn capture_ok(command: &mut Command) -> Result<Vec<u8>> {
    let output = capture(command)?;
    if !output.status.success() {
        // Most programs report failures on stderr; others, such as test executables, on stdout.
        let said = [&output.stderr, &output.stdout]
            .into_iter()
            .find(|text| !text.is_empty());
        let text = String::from_utf8_lossy(said.unwrap_or(&output.stderr));
        bail!(
            "{} failed ({}):\n{}",
            show(command),
            output.status,
            last_lines(&text, 60)
        );
    }
    Ok(output.stdout)
}

/// Like [`capture_ok`], as text without the white space around it.
pub fn capture_text(command: &mut Command) -> Result<String> {
    let output = capture_ok(command)?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// The result of a watched command.
#[derive(Debug)]
pub struct Watched {
    /// Its status, or how it (or a process that it left behind) hung and was killed.
    pub end: Result<ExitStatus, Hang>,
    /// Its stdout, then its stderr.
    pub text: String,
}

/// Like [`capture`], but in a separate process group, which is killed if it hangs. The command is also ended with
/// xtask, because a terminal's Ctrl-C reaches only xtask's group.
pub fn capture_watched(command: &Command, patience: Patience) -> Result<Watched> {
    let mut group = tied(command);
    group.stdin(Stdio::null()).process_group(0);
    group.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = group
        .spawn()
        .with_context(|| format!("can't run {}", show(command)))?;
    let mut watch = Watch::new(child.id(), patience);
    let (open, closed) = channel();
    let pipes = [
        collect(child.stdout.take(), open.clone()),
        collect(child.stderr.take(), open),
    ];
    let texts = || {
        let lock = |pipe: &Arc<Mutex<Vec<u8>>>| {
            let bytes = pipe.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        pipes.each_ref().map(lock)
    };
    let end = loop {
        // Nothing is ever sent: the readers drop their senders when both pipes have no more writers.
        if closed.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Disconnected) {
            if let Some(status) = child.try_wait()? {
                break Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let printed = pipes
            .iter()
            .map(|pipe| pipe.lock().map_or(0, |text| text.len()));
        if let Some(hang) = watch.hang(printed.sum::<usize>() as u64) {
            break Err(hang);
        }
    };
    if end.is_err() {
        // The standard library can kill one process only.
        let kill = format!("kill -KILL -{}", child.id());
        capture(Command::new("sh").args(["-c", &kill]))?;
        child.wait()?;
        // The readers get a moment to read the rest; a process outside the group may keep a pipe open.
        let _ = closed.recv_timeout(Duration::from_secs(1));
    }
    Ok(Watched {
        end,
        text: texts().join("\n"),
    })
}

/// Reads `pipe` to its end in a thread, which then drops `open`.
fn collect(pipe: Option<impl Read + Send + 'static>, open: Sender<()>) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let text = Arc::clone(&all);
    thread::spawn(move || {
        let _open = open;
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
            text.extend_from_slice(&buffer[..count]);
        }
    });
    all
}

/// `command`, which ends when xtask does if util-linux is installed.
pub fn tied(command: &Command) -> Command {
    let mut tied = match has_program("setpriv") {
        true => Command::new("setpriv"),
        false => Command::new(command.get_program()),
    };
    if has_program("setpriv") {
        tied.args(["--pdeathsig", "TERM"])
            .arg(command.get_program());
    }
    tied.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        tied.current_dir(directory);
    }
    tied
}

/// The command as typed in a shell, cut if it is too long to read.
pub fn show(command: &Command) -> String {
    const MOST: usize = 400;
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    let line = words.join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
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

/// Whether `program` is on the search path, or in a directory that is only on root's path.
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory: std::path::PathBuf| directory.join(program).is_file())
}

/// Passes `bytes` on to stdout, at once.
pub fn print(bytes: &[u8]) {
    let mut stdout = std::io::stdout();
    // If the reader is gone, only the output is lost, not the status.
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

/// Reads a file, naming it in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

/// Copies a file, naming it in the error.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = std::fs::copy(from, to);
    copied.with_context(|| format!("can't copy {}", from.display()))?;
    Ok(())
}

/// Creates a directory and those above it if they are missing, naming it in the error.
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))
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
    fn a_hang_ends_the_whole_group_and_keeps_the_output() {
        let run = |script: &str, still| {
            let patience = Patience {
                work: Duration::from_secs(60),
                still: Duration::from_millis(still),
            };
            let mut shell = Command::new("sh");
            capture_watched(shell.args(["-c", script]), patience).unwrap()
        };
        let hung = run("echo out; echo err >&2; sleep 60000 & wait", 300);
        assert!(matches!(hung.end, Err(Hang::Idle(_))), "{hung:?}");
        assert_eq!(hung.text, "out\n\nerr\n");
        // The process that the shell leaves behind keeps the pipes open, and is in the group.
        assert!(run("sleep 60000 & echo left", 300).end.is_err());
        let ended = run("echo $$; exit 3", 30_000);
        assert_eq!(ended.end.unwrap().code(), Some(3));
    }

    #[test]
    fn what_uses_its_cpu_without_a_word_is_ended_too() {
        let patience = Patience {
            work: Duration::from_millis(100),
            // However little of a CPU it gets.
            still: Duration::from_secs(3600),
        };
        let mut shell = Command::new("sh");
        let watched = capture_watched(shell.args(["-c", "while :; do :; done"]), patience);
        assert!(matches!(watched.unwrap().end, Err(Hang::Busy(_))));
    }

    #[test]
    fn a_step_returns_what_its_work_returns() {
        assert_eq!(step("nothing", || 7), 7);
    }
}
