// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console of a whole process: standard streams of every kind, and the terminal given back
//! however the process ends. The processes are this test binary again, running [`child`].

// The tools below are outside of test functions, where clippy can not know that they are tests.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use mini_vmm::console::{Console, line_end};
use mini_vmm::devices::{SerialDevice, Suspend};
use mini_vmm::layout::SERIAL;
use mini_vmm::outcome::{Outcome, OutcomeLatch};
use mini_vmm::spec::SerialSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};
use vm_device::DevicePio;
use vm_device::bus::PioAddress;

const CHILD: &str = "MINI_VMM_TEST_CHILD";
const PATIENCE: Duration = Duration::from_secs(20);

// ---- The child ---------------------------------------------------------------------------------

/// What the processes under test do; nothing when run as a test of its own.
#[test]
fn child() {
    let Ok(mode) = std::env::var(CHILD) else {
        return;
    };
    let console = Console::open(&SerialSpec::Stdio).unwrap();
    let mut output = console.output().unwrap();
    output.write_all(b"ready\r\n").unwrap();
    match mode.as_str() {
        "drop" => {}
        "sleep" => thread::sleep(PATIENCE),
        "panic" => {
            let panicked = thread::spawn(|| panic!("on purpose")).join();
            assert!(panicked.is_err());
            // Neither dropped nor closed: the panic alone gives the terminal back.
            thread::sleep(Duration::from_millis(100));
            process::exit(3);
        }
        "overflow" => {
            let overflow = thread::spawn(|| overflow_stack(&[0; 64]));
            let _ = overflow.join();
        }
        "echo" => echo(&console),
        "idle" => idle(&console),
        "flood" => {
            // The first bytes are also the first to be dropped.
            thread::sleep(Duration::from_millis(200));
            for _ in 0..40_000 {
                output.write_all(&[b'x'; 100]).unwrap();
            }
        }
        other => panic!("unknown mode {other}"),
    }
    drop(console);
    process::exit(0);
}

/// Recurses 2^60 times.
fn overflow_stack(depth: &[u64; 64]) -> u64 {
    let next = std::hint::black_box([depth[0] + 1; 64]);
    if next[0] == 1 << 60 {
        return 0;
    }
    overflow_stack(&next) + depth[1]
}

type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber>>>;

struct Machine {
    serial: Arc<SerialDevice<mini_vmm::console::ConsoleOutput>>,
    outcome: OutcomeLatch,
    manager: Manager,
}

impl Machine {
    fn new(console: &Console) -> Machine {
        let serial = Arc::new(SerialDevice::new(console.output().unwrap()).unwrap());
        let outcome = OutcomeLatch::new().unwrap();
        let mut manager = Manager::new().unwrap();
        let input = console
            .attach_input(Arc::clone(&serial) as _, outcome.clone())
            .unwrap();
        manager.add_subscriber(Arc::new(Mutex::new(input)));
        Machine {
            serial,
            outcome,
            manager,
        }
    }
}

/// A guest that echoes its input, until `!` or the escape sequence.
fn echo(console: &Console) {
    let mut machine = Machine::new(console);
    let mut byte = [0];
    while byte != *b"!" {
        machine.manager.run_with_timeout(1000).unwrap();
        if machine.outcome.get() == Some(Outcome::ConsoleQuit) {
            console.output().unwrap().write_all(b"quit").unwrap();
            return;
        }
        while byte != *b"!" && !machine.serial.save().in_buffer.is_empty() {
            machine.serial.pio_read(PioAddress(SERIAL), 0, &mut byte);
            machine.serial.pio_write(PioAddress(SERIAL), 0, &byte);
        }
    }
}

/// A guest that does nothing: neither may the console.
fn idle(console: &Console) {
    let mut machine = Machine::new(console);
    let before = cpu_ticks();
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut events = 0;
    while Instant::now() < deadline {
        events += machine.manager.run_with_timeout(100).unwrap();
    }
    assert!(events < 3, "{events} events without input");
    // Ticks are 10 ms.
    assert!(cpu_ticks() - before < 10, "the console spins");
    assert_eq!(line_end(), "\n");
}

fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

// ---- The parent's tools --------------------------------------------------------------------------

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command
}

fn child_command(mode: &str) -> Command {
    let mut command = this_program();
    command.env(CHILD, mode);
    command
}

/// A shell that runs the child by `script`, in which `"$@"` is the child's command line.
fn shell(script: &str, mode: &str) -> Command {
    let program = this_program();
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(program.get_program());
    command.args(program.get_args()).env(CHILD, mode);
    command
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the process did not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A terminal whose user is the test.
struct Terminal {
    user: File,
    program: OwnedFd,
    seen: String,
}

impl Terminal {
    fn new() -> Terminal {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        Terminal {
            user: user.into(),
            program: rustix::fs::open(&name, flags, Mode::empty()).unwrap(),
            seen: String::new(),
        }
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

    /// Reads what the program writes until `text` is in it.
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

// ---- Terminals ------------------------------------------------------------------------------------

#[test]
fn terminal_is_raw_while_the_console_lives() {
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("echo"));
    terminal.expect("Ctrl-A x quits");
    terminal.expect("ready");
    assert!(terminal.is_raw());
    let mode = tcgetattr(&terminal.program).unwrap();
    assert!(!mode.output_modes.contains(OutputModes::OPOST));
    // Keys that a cooked terminal would act on.
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
fn long_paste_arrives_whole() {
    let mut terminal = Terminal::new();
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
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("drop"));
    terminal.expect("ready");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn terminal_is_given_back_on_a_panic() {
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("panic"));
    // The message comes after the terminal is cooked again: its lines end properly.
    terminal.expect("on purpose\r\n");
    assert_eq!(wait(&mut child).code(), Some(3));
    assert_eq!(terminal.mode(), before);
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
    ] {
        let mut terminal = Terminal::new();
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
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let mut child = terminal.spawn(child_command("overflow"));
    terminal.expect("has overflowed its stack");
    assert_eq!(wait(&mut child).signal(), Some(libc::SIGABRT));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn terminal_without_a_reader_does_not_hold_up_the_end() {
    let terminal = Terminal::new();
    let mut child = terminal.spawn(child_command("flood"));
    let start = Instant::now();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(!terminal.is_raw());
}

/// Whether a new session with a controlling terminal can be made here.
fn has_setsid(test: &str) -> bool {
    let found = Command::new("setsid").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIP: {test}: no setsid program");
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
    if !has_setsid("background_job") {
        return;
    }
    let mut terminal = Terminal::new();
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
    if !has_setsid("background_end") {
        return;
    }
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    let mut child = terminal.spawn(job_shell(r#""$@" & wait $!; echo status-$?"#, "drop"));
    terminal.expect("status-0");
    wait(&mut child);
    assert_eq!(terminal.mode(), before);
}

#[test]
fn stopped_job_is_raw_again_when_it_goes_on() {
    if !has_setsid("stopped_job") {
        return;
    }
    let mut terminal = Terminal::new();
    let before = terminal.mode();
    // The shell gets the terminal when its job stops, sets its own mode, and gives it back.
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

// ---- Everything else -------------------------------------------------------------------------------

fn echo_from(stdin: Stdio) -> String {
    let output = child_command("echo").stdin(stdin).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn regular_file_is_input() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    let text: String = (0..20_000).map(|i| format!("{i:07}\n")).collect();
    fs::write(&path, format!("{text}\x01x!")).unwrap();
    let echoed = echo_from(File::open(&path).unwrap().into());
    assert!(echoed.contains(&text));
    assert!(
        echoed.ends_with("\x01x!"),
        "no escape sequences in piped input"
    );
}

#[test]
fn pipe_is_input() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let text: String = (0..20_000).map(|i| format!("{i:07}\n")).collect();
    let typed = format!("{text}!");
    let writer = thread::spawn(move || File::from(writer).write_all(typed.as_bytes()).unwrap());
    assert!(echo_from(reader.into()).contains(&text));
    writer.join().unwrap();
}

#[test]
fn console_without_input_is_idle() {
    for redirection in [
        "</dev/null",
        "<&-",
        "<&- >&-",
        "</dev/null >/dev/null",
        "</dev/zero",
    ] {
        let script = format!(r#"exec "$@" {redirection}"#);
        let mut command = shell(&script, "idle");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(wait(&mut child).code(), Some(0), "{redirection}");
        let text = reader.join().unwrap();
        assert_eq!(
            text.contains("ready"),
            !redirection.contains('>'),
            "{redirection}"
        );
    }
}

#[test]
fn output_without_a_reader_ends_well() {
    for script in [
        r#"exec "$@" </dev/null >&-"#,
        // The reader of the pipe goes early, or reads nothing and stays.
        r#"{ "$@" </dev/null; echo $? >&2; } 2>&3 | grep -q ready"#,
        r#"{ "$@" </dev/null; echo $? >&2; } 2>&3 | sleep 6"#,
    ] {
        let mut command = shell(&format!("exec 3>&1 >/dev/null; {script}"), "flood");
        let start = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{script}");
        if script.contains("echo") {
            assert!(output.stdout.ends_with(b"0\n"), "{script}");
        }
        assert!(start.elapsed() < PATIENCE, "{script}");
    }
}

#[test]
fn file_gets_the_output_and_is_emptied_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "old text that is longer").unwrap();
    let console = Console::open(&SerialSpec::File(path.clone())).unwrap();
    let outcome = OutcomeLatch::new().unwrap();
    let serial = Arc::new(SerialDevice::new(console.output().unwrap()).unwrap());
    assert!(console.attach_input(serial, outcome).is_none());
    console.output().unwrap().write_all(b"new").unwrap();
    console.close();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn bad_files_are_errors_with_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    for path in [dir.path(), Path::new("/nonexistent/log"), &fifo] {
        let text = Console::open(&SerialSpec::File(path.to_owned()))
            .unwrap_err()
            .to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains("; "), "{text}");
    }
}

#[test]
fn console_outlives_a_machine() {
    let console = Console::open(&SerialSpec::Pty).unwrap();
    let mut user = File::options()
        .read(true)
        .write(true)
        .open(console.pty_path().unwrap())
        .unwrap();
    for round in [b"first", b"again"] {
        let mut machine = Machine::new(&console);
        user.write_all(round).unwrap();
        let mut echoed = [0; 5];
        for byte in &mut echoed {
            while machine.serial.save().in_buffer.is_empty() {
                machine.manager.run_with_timeout(1000).unwrap();
            }
            let mut taken = [0];
            machine.serial.pio_read(PioAddress(SERIAL), 0, &mut taken);
            machine.serial.pio_write(PioAddress(SERIAL), 0, &taken);
            *byte = taken[0];
        }
        assert_eq!(&echoed, round);
        user.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, round);
    }
}

#[test]
fn no_serial_means_no_output() {
    let console = Console::open(&SerialSpec::Off).unwrap();
    assert!(console.output().is_none());
    assert!(console.pty_path().is_none());
}
