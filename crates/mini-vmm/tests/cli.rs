// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `mini-vmm` command from a user's view. Nothing here needs /dev/kvm.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::process::{Command, Output, Stdio};

fn mini_vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
    command.env_remove("MINI_VMM_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    mini_vmm().args(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with `code` and print nothing on stdout. Returns its stderr.
fn failure(args: &[&str], code: i32) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The single line of a start-up or configuration error.
fn sentence(args: &[&str]) -> String {
    let text = failure(args, 1);
    assert!(text.starts_with("mini-vmm: error: "), "{args:?}: {text}");
    assert!(
        text.ends_with('\n') && text.lines().count() == 1,
        "{args:?}: {text}"
    );
    text
}

#[test]
fn usage_errors_are_exit_code_2() {
    let cases: [&[&str]; 13] = [
        &[],
        &["--no-such-flag"],
        &["-m", "512"],
        &["vmlinux"],
        &["--kernel"],
        &["--kernel", "k", "--memory", "lots"],
        &["completions", "tcsh"],
        &["--kernel", "k", "--hypercall", "vmcall"],
        &["--kernel", "k", "--hypercall", "pio=0x70"],
        &["--kernel", "k", "--hypercall", "pio=0x1f5"],
        &["--kernel", "k", "--hypercall-abi", "xen"],
        &["--kernel", "k", "--para", "maybe"],
        &["--kernel", "k", "--msr-policy", "deny"],
    ];
    for args in cases {
        let text = failure(args, 2);
        assert!(text.starts_with("mini-vmm: error: "), "{args:?}: {text}");
        assert!(text.contains("--help"), "{args:?}: {text}");
    }
}

#[test]
fn impossible_machines_are_exit_code_1() {
    let cases = [
        ("--cpus", "0", "give it 1 to 64"),
        ("--cpus", "65", "65 vCPUs are too many"),
        ("--cpus", "4294967297", "4294967297 vCPUs are too many"),
        ("--memory", "0", "0 bytes of memory is less than the 32M"),
        ("--memory", "512", "did you mean 512M?"),
        ("--memory", "99999T", "more than a machine can have"),
        ("--memory", "536870913", "the nearest size is 512M"),
        ("--timeout", "0", "a timeout of 0"),
        (
            "--debug-exit=0x60",
            "--print-config",
            "takes the ports 0x60 to 0x63, where the keyboard controller is",
        ),
        (
            "--debug-exit=0x6f",
            "--print-config",
            "takes the ports 0x6f to 0x72, where the real-time clock is",
        ),
        (
            "--debug-exit=0xfffe",
            "--print-config",
            "would go beyond the last port, 0xffff",
        ),
        (
            "--hypercall=pio=0xf7",
            "--debug-exit",
            "one of the debug-exit device's, 0xf4 to 0xf7",
        ),
        (
            "--hypercall=vendor",
            "--para=off",
            "--hypercall vendor asks for hypercalls that --para off takes away",
        ),
        (
            "--hypercall=vendor",
            "--hypercall-abi=2007",
            "use --hypercall pio or forward",
        ),
    ];
    for (flag, value, part) in cases {
        let text = sentence(&["--kernel", "k", flag, value]);
        assert!(text.contains(part), "{flag} {value}: {text}");
    }
}

#[test]
fn a_missing_kernel_is_exit_code_1() {
    sentence(&["--kernel", "/nonexistent/vmlinux", "--serial", "off"]);
}

#[test]
fn help_is_grouped_and_complete() {
    let (short, long) = (stdout(&["-h"]), stdout(&["--help"]));
    for heading in [
        "Boot:",
        "Machine:",
        "Devices:",
        "Hypercalls:",
        "Policy:",
        "Configuration:",
        "API:",
        "Output:",
    ] {
        assert!(short.contains(&format!("\n{heading}\n")), "{short}");
        assert!(long.contains(&format!("\n{heading}\n")), "{long}");
    }
    assert!(
        long.contains("\nExamples:\n") && long.contains("\nExit codes:\n"),
        "{long}"
    );
    assert!(short.lines().count() <= 80, "{short}");
    assert!(!short.contains("\nExamples:\n"), "{short}");
    assert_eq!(
        stdout(&["--version"]),
        concat!("mini-vmm ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn logging_is_asked_for() {
    let stderr = |flag: &str, variable: Option<&str>| {
        let mut command = mini_vmm();
        command.args(["--kernel", "k", "--print-config"]);
        command.args((!flag.is_empty()).then_some(flag));
        command.envs(variable.map(|value| ("MINI_VMM_LOG", value)));
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let line = "mini-vmm: debug: mini_vmm: VmSpec {";
    assert!(stderr("-vv", None).starts_with(line));
    assert!(stderr("", Some("mini_vmm=debug")).starts_with(line));
    assert_eq!(stderr("", None), "");
    assert_eq!(stderr("-v", None), "");
    assert_eq!(stderr("-vvv", Some("off")), "");
}

#[test]
fn completions_know_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        for word in ["mini-vmm", "boot-protocol", "on-reboot", "check", "ctl"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
        // clap completes no values of arguments without a flag for fish.
        assert!(
            shell == "fish" || script.contains("power-button"),
            "{shell}"
        );
    }
}

#[test]
fn printed_config_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    let path = file.to_str().unwrap();
    let lines: [&[&str]; 3] = [
        &["--kernel", "vmlinux"],
        &[
            "--kernel",
            "k",
            "--initrd",
            "a b",
            "--cpus",
            "64",
            "--memory",
            "5G",
            "--timeout",
            "90",
        ],
        &[
            "--kernel",
            "k",
            "--serial",
            "file=x,y",
            "--debug-exit",
            "--cpu-features=+x2apic,-avx2",
        ],
    ];
    for line in lines {
        let json = stdout(&[line, &["--print-config"]].concat());
        fs::write(&file, &json).unwrap();
        assert_eq!(
            stdout(&["--config", path, "--print-config"]),
            json,
            "{line:?}"
        );
    }
    // Flags override the file.
    let json = stdout(&[
        "--config",
        path,
        "--cpus",
        "7",
        "--debug-exit=off",
        "--print-config",
    ]);
    assert!(
        json.contains("\"cpus\": 7") && json.contains("\"debug-exit\": \"off\""),
        "{json}"
    );
    assert!(json.contains("\"serial\": \"file=x,y\""), "{json}");
}

#[test]
fn bad_configs_are_one_sentence_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    let path = file.to_str().unwrap();
    let cases: [(&[u8], &str); 8] = [
        (b"", "line 1"),
        (b"{", "line 1"),
        (b"{\n\"kernel\": \"k\",\n\"mem\": 1}", "unknown key \"mem\""),
        (b"{\n\"a\\nb\": 1}", "a\\nb"),
        (
            b"{\"kernel\": 5}",
            "line 1, column 12: invalid type: integer `5`, expected path",
        ),
        (b"{\"kernel\": \"\xff\"}", "not UTF-8 at line 1, column 13"),
        (b"{\"cpus\": 1}", "no kernel is named"),
        (b"{\"kernel\": \"k\", \"cpus\": 0}", "give it 1 to 64"),
    ];
    for (json, part) in cases {
        fs::write(&file, json).unwrap();
        let text = sentence(&["--config", path, "--print-config"]);
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    fs::write(&file, vec![b' '; 2 << 20]).unwrap();
    assert!(sentence(&["--config", path]).contains("more than 1048576 bytes"));
    assert!(sentence(&["--config", dir.path().to_str().unwrap()]).contains("is a directory"));
    assert!(sentence(&["--config", "/nonexistent"]).contains("No such file"));
    assert!(sentence(&["--config", "/dev/zero"]).contains("more than 1048576 bytes"));
}

#[test]
fn the_serial_output_overwrites_no_input() {
    let dir = tempfile::tempdir().unwrap();
    let name = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (input, link) = (name("input"), name("link"));
    let json = format!("{{\"serial\": \"file={link}\"}}");
    fs::write(&input, &json).unwrap();
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let serial = format!("--serial=file={link}");
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for args in [
        ["--kernel", &input, &serial].as_slice(),
        &["--kernel", other, "--initrd", &input, &serial],
        &["--kernel", other, "--config", &input],
    ] {
        let text = sentence(args);
        let words = format!("{input}: the serial output would overwrite this file");
        assert!(text.contains(&words), "{text}");
        assert_eq!(fs::read_to_string(&input).unwrap(), json);
    }
}

#[test]
fn a_config_may_come_from_a_pipe() {
    let json = stdout(&["--kernel", "k", "--cpus", "3", "--print-config"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    fs::write(&file, &json).unwrap();
    let mut cat = Command::new("cat")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = mini_vmm()
        .args(["--config", "/dev/stdin", "--print-config"])
        .stdin(cat.stdout.take().unwrap())
        .output()
        .unwrap();
    cat.wait().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), json);
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let lines: [&[&str]; 4] = [
        &["--help"],
        &["--version"],
        &["completions", "bash"],
        &["--kernel", "k", "--print-config"],
    ];
    for args in lines {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = mini_vmm().args(args).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn closed_or_full_outputs_do_not_panic() {
    // Standard error has no reader; the exit code still tells.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = mini_vmm();
    let status = command
        .args(["--kernel", "k", "--cpus", "0"])
        .stderr(writer);
    assert_eq!(status.status().unwrap().code(), Some(1));
    // A full disk is reported.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = mini_vmm()
        .args(["completions", "bash"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("mini-vmm: error: can't write to standard output: No space"),
        "{text}"
    );
}

#[test]
fn errors_are_plain_text_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("err");
    let args = ["--kernel", "k", "--color\u{1b}[31m"];
    let status = mini_vmm()
        .args(args)
        .stderr(File::create(&path).unwrap())
        .status();
    assert_eq!(status.unwrap().code(), Some(2));
    let mut text = String::new();
    File::open(&path)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(
        text.contains("--color") && !text.contains('\u{1b}'),
        "{text:?}"
    );
}
