// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console of a whole process: standard streams of every kind, and the terminal restored however the process ends.
//! The processes are this test binary again, running [`child::child`].

// The helpers below are outside of test functions, so clippy can't know that they are tests.
#![allow(clippy::unwrap_used)]

mod child;
mod terminal;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use child::Machine;
use mini_vmm::config::SerialSpec;
use mini_vmm::console::Console;
use mini_vmm::devices::SerialDevice;
use mini_vmm::irq::IrqLine;
use mini_vmm::outcome::OutcomeLatch;
use vcpu_loop::bus::BusDevice;

/// The child's action.
const CHILD: &str = "MINI_VMM_TEST_CHILD";
/// A generous limit, only to end a hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether pseudo-terminals can be created here. If not, prints a line for the summary.
fn has_terminals(test: &str) -> bool {
    let found = File::options().read(true).write(true).open("/dev/ptmx");
    if let Err(error) = &found {
        eprintln!("SKIP: {test}: no pseudo-terminals: {error}");
    }
    found.is_ok()
}

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child::child", "--nocapture", "--test-threads=1"]);
    command
}

fn child_command(mode: &str) -> Command {
    let mut command = this_program();
    command.env(CHILD, mode);
    command
}

/// A shell that runs the child with `script`. `"$@"` is the child's command line.
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

fn echo_from(stdin: Stdio) -> String {
    let output = child_command("echo").stdin(stdin).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

/// The content of a file once it contains `text`.
fn read_with(path: &Path, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let read = fs::read_to_string(path).unwrap();
        if read.contains(text) {
            return read;
        }
        assert!(Instant::now() < deadline, "no {text:?} in {read:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn our_lines_start_anew_where_the_guests_are() {
    let dir = tempfile::tempdir().unwrap();
    let [together, apart] = ["together", "apart"].map(|name| dir.path().join(name));
    for (errors, expected) in [
        (&together, "unfinished\nmini-vmm: warning: first\n"),
        (&apart, "mini-vmm: warning: first\n"),
    ] {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            Stdio::from(file.unwrap())
        };
        fs::write(&together, "").unwrap();
        let mut command = child_command("say");
        command.stdin(Stdio::piped()).stdout(open(&together));
        let mut child = command.stderr(open(errors)).spawn().unwrap();
        read_with(&together, "unfinished");
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        assert_eq!(wait(&mut child).code(), Some(0));
        let read = read_with(errors, "second\n");
        let (_, end) = read.split_at(read.find(&expected[..8]).unwrap());
        assert!(end.starts_with(expected), "{read:?}");
    }
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
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
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
        // The pipe's reader leaves early, or stays without reading.
        r#"{ "$@" </dev/null; echo $? >&2; } 2>&3 | grep -q ready"#,
        r#"{ "$@" </dev/null; echo $? >&2; } 2>&3 | sleep 6"#,
    ] {
        let mut command = shell(&format!("exec 3>&1 >/dev/null; {script}"), "flood");
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{script}");
        if script.contains("echo") {
            assert!(output.stdout.ends_with(b"0\n"), "{script}");
        }
    }
}

#[test]
fn limit_on_file_sizes_only_costs_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut command = shell(r#"ulimit -f 8; exec "$@" </dev/null"#, "flood");
    let mut child = command
        .stdout(File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let status = wait(&mut child);
    assert_eq!(status.code(), Some(0), "{status}");
    let size = fs::metadata(&path).unwrap().len();
    assert!(size == 8 * 512 || size == 8 * 1024, "{size}");
}

#[test]
fn file_gets_the_output_and_is_emptied_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "old text that is longer").unwrap();
    let console = Console::open(&SerialSpec::File(path.clone())).unwrap();
    let outcome = OutcomeLatch::new().unwrap();
    let serial =
        Arc::new(SerialDevice::new(console.output().unwrap(), IrqLine::unconnected()).unwrap());
    assert!(console.attach_input(serial, outcome).is_none());
    console.output().unwrap().write_all(b"new").unwrap();
    console.close();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn end_that_was_asked_for_does_not_wait_for_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    make_fifo(&fifo);
    // A FIFO opened for reading and writing doesn't wait for the other side. Nothing is read.
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let console = Console::open(&SerialSpec::File(fifo)).unwrap();
    console
        .output()
        .unwrap()
        .write_all(&[b'x'; 500_000])
        .unwrap();
    console.close_soon();
    drop(reader);
}

fn make_fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
}

#[test]
fn bad_files_are_errors_with_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    make_fifo(&fifo);
    for path in [dir.path(), Path::new("/nonexistent/log"), &fifo] {
        let text = Console::open(&SerialSpec::File(path.to_owned()))
            .unwrap_err()
            .to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains("; "), "{text}");
    }
}

#[test]
fn sockets_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let refused = || Console::open(&SerialSpec::File(path.clone())).unwrap_err();
    let text = refused().to_string();
    assert!(text.contains("say `--serial socket=PATH`"), "{text}");
    // The socket no longer has a listener.
    drop(listener);
    assert_eq!(refused().to_string(), text);
}

#[test]
fn console_outlives_a_machine() {
    if !has_terminals("console_outlives_a_machine") {
        return;
    }
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
            while child::is_drained(&*machine.serial) {
                machine.manager.run_with_timeout(1000).unwrap();
            }
            let mut taken = [0];
            let _ = machine.serial.read(child::DATA, &mut taken);
            let _ = machine.serial.write(child::DATA, &taken);
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
