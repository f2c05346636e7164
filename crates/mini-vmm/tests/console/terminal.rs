// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Terminals: raw while the console exists, restored however the process ends, shared with a shell.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};

use crate::{CHILD, PATIENCE, child_command, shell, wait};

/// A terminal operated by the test.
struct Terminal {
    user: File,
    program: OwnedFd,
    seen: String,
}

impl Terminal {
    /// A new terminal, unless the test system has none (a minimal initramfs).
    fn new(test: &str) -> Option<Terminal> {
        if !crate::has_terminals(test) {
            return None;
        }
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        Some(Terminal {
            user: user.into(),
            program: rustix::fs::open(&name, flags, Mode::empty()).unwrap(),
            seen: String::new(),
        })
    }

    fn stdio(&self) -> Stdio {
        self.program.try_clone().unwrap().into()
    }

    fn spawn(&self, mut command: Command) -> Child {
        command
            .stdin(self.stdio())
            .stdout(self.stdio())
            .stderr(self.stdio())
            .spawn()
            .unwrap()
    }

    fn is_raw(&self) -> bool {
        let mode = tcgetattr(&self.program).unwrap();
        !mode
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn mode(&self) -> String {
        format!("{:?}", tcgetattr(&self.program).unwrap())
    }

    /// Reads the program's output until it contains `text`.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen);
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let mut fds = [PollFd::new(&self.user, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let count = self.user.read(&mut buffer).unwrap();
                self.seen += &String::from_utf8_lossy(&buffer[..count]);
            }
        }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.user.write_all(keys).unwrap();
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Terminal) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "never: {what}; {:?}", self.seen);
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn terminal_is_raw_while_the_console_lives() {
    let Some(mut terminal) = Terminal::new("terminal_is_raw_while_the_console_lives") else {
        return;
    };
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("echo"));
    terminal.expect("Ctrl-A x quits");
    terminal.expect("ready");
    assert!(terminal.is_raw());
    let mode = tcgetattr(&terminal.program).unwrap();
    assert!(!mode.output_modes.contains(OutputModes::OPOST));
    // Keys that a cooked terminal would handle.
    terminal.type_keys(b"\x03\x1a\x04\x11\r\x01aok");
    terminal.expect("\x03\x1a\x04\x11\r\x01ok");
    terminal.type_keys(b"\x01h");
    terminal.expect("show this help");
    terminal.type_keys(b"\x01x");
    terminal.expect("quit");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn our_lines_start_at_the_left_margin() {
    let Some(mut terminal) = Terminal::new("our_lines_start_at_the_left_margin") else {
        return;
    };
    let mut child = terminal.spawn(child_command("say"));
    terminal.expect("unfinished");
    terminal.type_keys(b"\x01hx");
    terminal.expect("second\r\n");
    let help = "unfinished\r\nmini-vmm: Ctrl-A x  quit the virtual machine\r\nmini-vmm: Ctrl-A a";
    assert!(terminal.seen.contains(help), "{:?}", terminal.seen);
    let warnings = "show this help\r\nmini-vmm: warning: first\r\nmini-vmm: warning: second\r\n";
    assert!(terminal.seen.contains(warnings), "{:?}", terminal.seen);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn long_paste_arrives_whole() {
    let Some(mut terminal) = Terminal::new("long_paste_arrives_whole") else {
        return;
    };
    let mut child = terminal.spawn(child_command("echo"));
    terminal.expect("ready");
    let line = "0123456789abcdef".repeat(4);
    let mut user = terminal.user.try_clone().unwrap();
    let text: String = (0..2000).map(|i| format!("{i:05} {line}\r")).collect();
    let typed = format!("{text}!");
    let typist = thread::spawn(move || user.write_all(typed.as_bytes()).unwrap());
    terminal.expect("!");
    typist.join().unwrap();
    assert!(terminal.seen.contains(&text));
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn terminal_is_given_back_at_the_end() {
    let Some(mut terminal) = Terminal::new("terminal_is_given_back_at_the_end") else {
        return;
    };
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("drop"));
    terminal.expect("ready");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn terminal_is_given_back_on_a_panic() {
    let Some(mut terminal) = Terminal::new("terminal_is_given_back_on_a_panic") else {
        return;
    };
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("panic"));
    // The message comes after the terminal is cooked again, so its lines end properly.
    terminal.expect("on purpose\r\n");
    assert_eq!(wait(&mut child).code(), Some(3));
    assert_eq!(terminal.mode(), before);
}

/// Whether this process, and so its children, ignores a signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:\t"))
        .map(|mask| u64::from_str_radix(mask, 16).unwrap())
        .unwrap();
    mask >> (signal - 1) & 1 == 1
}

#[test]
fn terminal_is_given_back_on_fatal_signals() {
    use rustix::process::Signal;
    for (number, fatal) in [
        (libc::SIGTERM, Signal::TERM),
        (libc::SIGINT, Signal::INT),
        (libc::SIGHUP, Signal::HUP),
        (libc::SIGQUIT, Signal::QUIT),
        (libc::SIGABRT, Signal::ABORT),
        (libc::SIGSEGV, Signal::SEGV),
        (libc::SIGBUS, Signal::BUS),
        (libc::SIGILL, Signal::ILL),
        (libc::SIGSYS, Signal::SYS),
        (libc::SIGVTALRM, Signal::VTALARM),
        (libc::SIGPROF, Signal::PROF),
        (libc::SIGTRAP, Signal::TRAP),
        (libc::SIGIO, Signal::IO),
        (libc::SIGPWR, Signal::POWER),
        (libc::SIGSTKFLT, Signal::STKFLT),
    ] {
        // Under nohup, a hang-up ends no process.
        if is_ignored(number) {
            continue;
        }
        let Some(mut terminal) = Terminal::new("terminal_is_given_back_on_fatal_signals") else {
            return;
        };
        let before = terminal.mode();
        let mut child = terminal.spawn(child_command("sleep"));
        terminal.expect("ready");
        assert!(terminal.is_raw());
        signal(&child, fatal);
        let status = wait(&mut child);
        assert_eq!(
            status.signal(),
            Some(number),
            "{status}: the signal still kills"
        );
        assert_eq!(terminal.mode(), before, "signal {number}");
    }
}

#[test]
fn terminal_is_given_back_on_a_stack_overflow() {
    let Some(mut terminal) = Terminal::new("terminal_is_given_back_on_a_stack_overflow") else {
        return;
    };
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("overflow"));
    terminal.expect("has overflowed its stack");
    assert_eq!(wait(&mut child).signal(), Some(libc::SIGABRT));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn terminal_without_a_reader_does_not_hold_up_the_end() {
    let Some(terminal) = Terminal::new("terminal_without_a_reader_does_not_hold_up_the_end") else {
        return;
    };
    let mut child = terminal.spawn(child_command("flood"));
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(!terminal.is_raw());
}

/// Whether a new session with a controlling terminal can be created here.
fn has_setsid(test: &str) -> bool {
    // Busybox's version doesn't wait.
    let found = Command::new("setsid").args(["--wait", "true"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIP: {test}: no setsid program that waits");
    }
    found
}

/// Runs the child under a shell with job control, on a controlling terminal.
fn job_shell(script: &str, mode: &str) -> Command {
    let inner = shell(&format!("set -m; {script}"), mode);
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(inner.get_program());
    command.args(inner.get_args()).env(CHILD, mode);
    command
}

#[test]
fn background_job_leaves_the_terminal_alone_until_it_is_in_the_foreground() {
    if !has_setsid("background_job_leaves_the_terminal_alone_until_it_is_in_the_foreground") {
        return;
    }
    let Some(mut terminal) =
        Terminal::new("background_job_leaves_the_terminal_alone_until_it_is_in_the_foreground")
    else {
        return;
    };
    let before = terminal.mode();
    let script = r#""$@" & read line; echo got-$line; fg; echo status-$?"#;
    let mut child = terminal.spawn(job_shell(script, "echo"));
    terminal.expect("ready");
    assert!(!terminal.is_raw());
    thread::sleep(Duration::from_millis(700));
    assert_eq!(terminal.mode(), before, "still the shell's");
    terminal.type_keys(b"hello\n");
    terminal.expect("got-hello");
    terminal.wait_until("raw in the foreground", Terminal::is_raw);
    terminal.type_keys(b"guest");
    terminal.expect("guest");
    terminal.type_keys(b"\x01x");
    terminal.expect("status-0");
    wait(&mut child);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn background_job_ends_without_touching_the_terminal() {
    if !has_setsid("background_job_ends_without_touching_the_terminal") {
        return;
    }
    let Some(mut terminal) = Terminal::new("background_job_ends_without_touching_the_terminal")
    else {
        return;
    };
    let before = terminal.mode();
    let mut child = terminal.spawn(job_shell(r#""$@" & wait $!; echo status-$?"#, "drop"));
    terminal.expect("status-0");
    wait(&mut child);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn stopped_job_is_raw_again_when_it_goes_on() {
    if !has_setsid("stopped_job_is_raw_again_when_it_goes_on") {
        return;
    }
    let Some(mut terminal) = Terminal::new("stopped_job_is_raw_again_when_it_goes_on") else {
        return;
    };
    let before = terminal.mode();
    // When its job stops, the shell gets the terminal, sets its own mode, and later returns it.
    let script = r#""$@"; stty icanon echo isig opost; echo stopped; fg; echo status-$?"#;
    let mut child = terminal.spawn(job_shell(script, "echo"));
    terminal.expect("ready");
    terminal.wait_until("raw", Terminal::is_raw);
    let group = rustix::termios::tcgetpgrp(&terminal.user).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::STOP).unwrap();
    terminal.expect("stopped");
    terminal.wait_until("raw again", Terminal::is_raw);
    terminal.type_keys(b"guest");
    terminal.expect("guest");
    terminal.type_keys(b"\x01x");
    terminal.expect("status-0");
    wait(&mut child);
    assert_eq!(terminal.mode(), before);
}
