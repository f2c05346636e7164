// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm demo` on every route of this host.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the program printed, and its exit code.
struct Shown {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Shown {
    /// The rest of the line that starts with `label`.
    fn line(&self, label: &str) -> &str {
        let mut lines = self.stdout.lines();
        let found = lines.find_map(|line| line.strip_prefix(label));
        let found = found.unwrap_or_else(|| panic!("no {label:?}: {}", self.stdout));
        found.trim_start()
    }

    /// The number at the end of the line, before its unit.
    fn nanoseconds(&self, label: &str) -> u64 {
        let line = self.line(label);
        let (number, _) = line.split_once(' ').unwrap();
        number.parse().unwrap_or_else(|_| panic!("{line}"))
    }
}

/// Runs the demo. `None`, with a note, if no guest can run.
fn demo(test: &str, args: &[&str]) -> Option<Shown> {
    if !bare::has_kvm(test) {
        return None;
    }
    let output = Command::new(bare::program())
        .arg("demo")
        .args(args)
        .env_remove("MINI_VMM_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some(Shown {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    })
}

/// What every route prints before and during the registration.
fn check_registration(shown: &Shown) {
    let before = shown.line("page before");
    assert!(
        before.starts_with("00000001      ffffffff     00001000 ffffffff 00000000010"),
        "{before}"
    );
    assert_eq!(
        shown.line("stub before"),
        "b8 da ff ff ff c3  mov eax, -38; ret  a call returns -38"
    );
    assert_eq!(shown.line("wrmsr"), "87655678 01002000");
    // The host's version and ret, and nothing else.
    let expected = before.replacen(
        "ffffffff     00001000 ffffffff",
        "00000001     00001000 00000000",
        1,
    );
    assert_eq!(shown.line("page after"), expected);
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""));
    assert!(shown.stdout.ends_with(" ns\n"), "{}", shown.stdout);
}

#[test]
fn r9_the_pio_stub_is_written_and_reaches_the_vmm() {
    let test = "r9_the_pio_stub_is_written_and_reaches_the_vmm";
    for (route, port) in [("pio", "f5"), ("pio=0x99", "99")] {
        let Some(shown) = demo(test, &["--hypercall", route]) else {
            return;
        };
        check_registration(&shown);
        assert_eq!(
            shown.line("stub after"),
            format!("e6 {port} c3 cc ff c3  out port, al; ret  a call returns 0")
        );
        let call = shown.nanoseconds("round trip");
        let exit = shown.nanoseconds("bare port exit");
        assert!(exit > 0 && call > exit / 4, "{call} ns, {exit} ns");
    }
}

#[test]
fn r9_the_vendors_stub_is_written_and_reaches_kvm() {
    let test = "r9_the_vendors_stub_is_written_and_reaches_kvm";
    if bare::is_emulated() {
        eprintln!("SKIP: {test}: no svm or vmx in /proc/cpuinfo, VMCALL may not end");
        return;
    }
    let Some(shown) = demo(test, &["--hypercall", "vendor"]) else {
        return;
    };
    check_registration(&shown);
    let answer = "a call returns -1000, for KVM answers here";
    let [vmx, svm] = [
        format!("0f 01 c1 c3 ff c3 vmcall; ret {answer}"),
        format!("0f 01 d9 c3 ff c3 vmmcall; ret {answer}"),
    ];
    let words: Vec<&str> = shown.line("stub after").split_whitespace().collect();
    let stub = words.join(" ");
    assert!(stub == vmx || stub == svm, "{stub}");
    assert!(shown.nanoseconds("round trip") > 0);
}

#[test]
fn without_a_route_one_that_works_is_found() {
    let Some(shown) = demo("without_a_route_one_that_works_is_found", &[]) else {
        return;
    };
    check_registration(&shown);
    let stub = shown.line("stub after");
    // The route that `check` reports.
    let output = Command::new(bare::program())
        .args(["check", "--json"])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let routes = &report["routes"];
    assert_eq!(routes["msr_filter"], true);
    let by_kvm = " a call returns -1000, for KVM answers here";
    match routes["auto"].as_str().unwrap() {
        "pio" => assert!(stub.starts_with("e6 f5 c3 cc ff c3 "), "{stub}"),
        "vendor" => assert!(
            stub.starts_with("0f 01 ") && stub.ends_with(by_kvm),
            "{stub}"
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn a_route_that_can_not_be_had_is_one_sentence() {
    let test = "a_route_that_can_not_be_had_is_one_sentence";
    let Some(shown) = demo(test, &["--hypercall", "forward"]) else {
        return;
    };
    if shown.code == Some(0) {
        check_registration(&shown);
        assert!(shown.line("stub after").ends_with(" a call returns 0"));
        return;
    }
    assert_eq!((shown.code, shown.stdout.as_str()), (Some(1), ""));
    assert!(shown.stderr.starts_with("mini-vmm: error: "));
    assert_eq!(shown.stderr.lines().count(), 1, "{}", shown.stderr);
    assert!(shown.stderr.contains("--hypercall pio"), "{}", shown.stderr);
}

/// A transcript without the times in its last two lines.
fn timeless(transcript: &str) -> Vec<String> {
    let is_time = |line: &str| line.starts_with("round trip") || line.starts_with("bare port exit");
    let lines = transcript.lines().map(|line| match is_time(line) {
        true => line.chars().filter(|c| !c.is_ascii_digit()).collect(),
        false => line.to_owned(),
    });
    lines.collect()
}

#[test]
fn docs_show_what_there_is_to_see() {
    let test = "docs_show_what_there_is_to_see";
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/start.md");
    if !page.exists() {
        eprintln!("SKIP: {test}: this is a package, without the pages of docs/");
        return;
    }
    // It was recorded on a host where auto is pio.
    let Some(shown) = demo(test, &["--hypercall", "pio"]) else {
        return;
    };
    let page = fs::read_to_string(page).unwrap();
    let (_, transcript) = page.split_once("mini-vmm demo\n  ").unwrap();
    let (transcript, _) = transcript.split_once("```").unwrap();
    let transcript = timeless(&format!("  {transcript}"));
    assert_eq!(timeless(&shown.stdout), transcript);
}

#[test]
fn a_guest_that_got_stuck_leaves_whole_lines() {
    let test = "a_guest_that_got_stuck_leaves_whole_lines";
    if !bare::is_emulated() {
        eprintln!("SKIP: {test}: this KVM completes VMCALL");
        return;
    }
    let Some(shown) = demo(test, &["--hypercall", "vendor"]) else {
        return;
    };
    if shown.code == Some(0) {
        eprintln!("SKIP: {test}: this KVM completes VMCALL");
        return;
    }
    assert!(
        shown.stdout.ends_with(" a call returns \n"),
        "{}",
        shown.stdout
    );
    assert!(shown.stderr.contains("--hypercall pio"), "{}", shown.stderr);
}
