// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the boots' scripts and verdicts, without beds.

use super::super::cases::{LINUX, tests::all_beds};
use super::super::{small, snapshots};
use super::*;
use crate::bed::Vendor;

#[test]
fn long_cases_are_left_out_and_counted_unless_wanted() {
    let long = Case {
        name: "long",
        long: true,
        ..LINUX
    };
    for (wants_long, expected) in [(false, (1, 1)), (true, (2, 0))] {
        let run = Run {
            long: wants_long,
            ..Run::default()
        };
        let mut tally = Tally::default();
        let wanted = wanted(&run, &[&LINUX, &long], &mut tally);
        assert_eq!((wanted.len(), tally.left), expected);
    }
}

fn boot() -> Boot {
    let amd = cases::of(&Bed::new(Vendor::Amd)).0;
    let case = amd.into_iter().find(|case| case.name == "reboot-resets");
    Boot {
        case: case.unwrap(),
        release: Some("6.1.0".to_owned()),
        image: "/guest/k".to_owned(),
        initrd: vec!["/guest/i".to_owned()],
        root_disk: None,
        job_disk: None,
    }
}

#[test]
fn a_run_is_judged_by_code_and_output() {
    let good = "release=6.1.0 cpus=2.\r\nREADY\r\n";
    assert_eq!(boot().judge(0, good), Tally::pass());
    assert_eq!(boot().judge(1, good).failures.len(), 1);
    let tally = boot().judge(0, "release=6.1.0 cpus=1.");
    assert!(
        tally.failures[0].contains("lacks 'release=6.1.0 cpus=2.'"),
        "{tally:?}"
    );
}

#[test]
fn scripts_are_valid_shell() {
    let check = |script: &str| {
        let mut shell = std::process::Command::new("sh");
        crate::process::capture_ok(shell.args(["-n", "-c", script])).unwrap();
    };
    let mut boot = boot();
    let script = boot.script();
    assert!(script.contains("--cpus 2") && script.contains("--on-reboot reset"));
    check(&script);
    let mut small = small::CASES.iter();
    boot.case = small.find(|case| case.firecracker.is_some()).unwrap();
    check(&boot.script());
    check(&framed(snapshots::MOVED_ON, "go_on", "", ""));
    let moved = [&snapshots::MOVED];
    let cases = all_beds().into_iter().flat_map(|bed| cases::of(&bed).0);
    for case in cases.chain(moved) {
        check(&guest_job(case));
        check(case.drive);
        check(case.before);
        check(case.after);
        check(&networks::isolated(case.before));
    }
}
