// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the beds' jobs.

use super::*;

fn jobs(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn jobs_are_told_apart_by_marks() {
    let mut log = JobLog::new("n", jobs(&["a", "b", "c"]));
    let console = "x\n\n@n begin 0\none\n@m end 0 1\n\n@n end 0 0\n\n@n begin 1\ntwo\n\n@n end 1 33\n\n@n begin 2\nlost\n";
    for piece in console.as_bytes().chunks(3) {
        log.feed(piece);
    }
    let seen: Vec<_> = log
        .outcomes
        .iter()
        .map(|outcome| (outcome.status, outcome.output.trim_end()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(0), "one\n@m end 0 1"),
            (Some(33), "two"),
            (None, "lost")
        ]
    );
}

#[test]
fn a_job_that_never_ended_fails_with_the_cause() {
    let job = Job {
        name: "kvm".into(),
        script: String::new(),
        check: Check::Tests("kvm".into()),
    };
    let outcome = Outcome {
        cause: "the bed was ended".into(),
        ..Outcome::default()
    };
    let tally = judge(&job, &outcome);
    assert_eq!(tally.failures, ["kvm: the bed was ended"]);
}

#[test]
fn a_bed_without_kvm_fails() {
    let mut tally = Tally::skip("kick: /dev/kvm can't be used");
    tally.add(Tally::skip("save: MINI_VMM_NO_KVM is set"));
    tally.add(Tally::skip("tsc: no scaling"));
    let tally = with_kvm(tally);
    assert_eq!((tally.failures.len(), tally.skips.len()), (2, 1));
}

#[test]
fn jobs_from_a_hung_one_on_get_another_bed() {
    let mut log = JobLog::new("n", jobs(&["a", "b", "c"]));
    log.feed(b"@n begin 0\n@n end 0 0\n@n begin 1\nhal");
    log.end("no progress");
    assert!(log.outcomes[1].cause.contains("after b began") && log.is_waiting());
    assert!(log.outcomes[2].cause.contains("did not begin"));
    let script = log.script(9);
    assert!(script.contains("run 1 9") && !script.contains("run 0 9"));
    log.feed(b"lost\n@n begin 1\nwhole\n@n end 1 0\n@n begin 2\n@n end 2 0\n");
    log.end("");
    let statuses: Vec<_> = log.outcomes.iter().map(|outcome| outcome.status).collect();
    assert_eq!(statuses, [Some(0); 3]);
    assert_eq!(log.outcomes[1].output, "whole\n");
    assert!(!log.is_waiting());
}

#[test]
fn a_job_that_takes_two_beds_down_has_failed() {
    let mut log = JobLog::new("n", jobs(&["a", "b"]));
    for _ in 0..2 {
        log.feed(b"@n begin 0\nhal");
        log.end("no progress");
    }
    assert!(!log.script(9).contains("run 0 9") && log.script(9).contains("run 1 9"));
    log.feed(b"\n@n begin 1\n@n end 1 0\n");
    log.end("");
    let statuses: Vec<_> = log.outcomes.iter().map(|outcome| outcome.status).collect();
    assert_eq!(statuses, [None, Some(0)]);
    assert!(log.outcomes[0].cause.contains("no progress"));
}

/// Runs jobs in beds that end during the jobs in `fatal`; returns the number of beds and each job's status.
fn run_in_beds(count: usize, fatal: &[usize]) -> (u32, Vec<Option<u8>>) {
    let mut log = JobLog::new("n", vec!["job".to_owned(); count]);
    let mut beds = 0;
    run_beds(&mut log, &mut |log| {
        beds += 1;
        for index in 0..count {
            if !log.script(9).contains(&format!("run {index} 9\n")) {
                continue;
            }
            log.feed(format!("@n begin {index}\n").as_bytes());
            if fatal.contains(&index) {
                break;
            }
            log.feed(format!("@n end {index} 0\n").as_bytes());
        }
        "no progress".to_owned()
    });
    let statuses = log.outcomes.iter().map(|outcome| outcome.status);
    (beds, statuses.collect())
}

#[test]
fn jobs_that_take_beds_down_keep_no_other_from_running() {
    let passed = Some(0);
    let (beds, statuses) = run_in_beds(6, &[1, 2, 4]);
    assert_eq!(statuses, [passed, None, None, passed, None, passed]);
    assert_eq!(beds, 7);
    // Even many of them.
    let fatal: Vec<usize> = (0..20).filter(|index| index % 2 == 0).collect();
    let (_, statuses) = run_in_beds(20, &fatal);
    assert!(
        statuses
            .iter()
            .skip(1)
            .step_by(2)
            .all(|&status| status == passed)
    );
}

#[test]
fn beds_that_end_no_job_are_given_up() {
    let (beds, statuses) = run_in_beds(9, &[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((beds, statuses), (4, vec![None; 9]));
}

#[test]
fn a_bed_that_does_not_start_is_the_only_one() {
    let mut log = JobLog::new("n", jobs(&["a", "b"]));
    let mut beds = 0;
    run_beds(&mut log, &mut |_| {
        beds += 1;
        "no kernel".to_owned()
    });
    assert_eq!(beds, 1);
    assert_eq!(log.outcomes[1].cause, "did not begin: no kernel");
}

#[test]
fn a_silent_bed_is_ended() {
    let mut bed = Bed::new(Vendor::Amd);
    bed.timeout = None;
    bed.patience = Some(Patience {
        still: Duration::from_millis(100),
        ..PATIENCE
    });
    let mut child = Command::new("sleep").arg("60000").spawn().unwrap();
    let end = crate::bed_amd::wait(&mut child, &bed, &|| 0).unwrap();
    assert!(matches!(end, Some(crate::bed::End::Hung(_))), "{end:?}");
}

#[test]
fn marks_out_of_place_are_harmless() {
    let mut log = JobLog::new("n", jobs(&["a"]));
    log.feed(b"@n end 0 0\n@n begin 7\n@n begin\n@n end 7 0\ntext\n");
    assert_eq!(log.outcomes, [Outcome::default()]);
}

#[test]
fn the_script_runs_jobs_in_order() {
    let log = JobLog::new("n", jobs(&["a", "b"]));
    let mut shell = Command::new("sh");
    capture_ok(shell.args(["-n", "-c", &log.script(9)])).unwrap();
}

/// Runs a job with the bed's library in this machine's shell, with the bed replaced by the definitions in `bed`;
/// returns its status and output.
fn run_job(job: &str, bed: &str) -> (Option<i32>, String) {
    let scratch = Scratch::new().unwrap();
    write(&scratch.path("0"), job).unwrap();
    let place = scratch.path("").display().to_string();
    // Kills and writes nothing of this machine.
    let script = format!(
        "{JOB_LIBRARY}\nJOBS={place} CONSOLE={place}/out PORT={place}/port LIFE={place}/life PAUSE=0.05 LOOKS=3\n\
         killall() {{ return 1; }}\nbusy=0 all=0\n{bed}\nrun 0 1; s=$?; cat {place}/port; exit $s"
    );
    let mut shell = Command::new("sh");
    let patience = Patience::of_work(60);
    let watched = crate::process::capture_watched(shell.args(["-c", &script]), patience).unwrap();
    (watched.end.unwrap().code(), watched.text)
}

const SILENT: &str = "said() { echo; }";
const TALKS: &str = "said() { date +%N; }";
const IDLE: &str = "usage() { busy=$((busy + 1)) all=$((all + 100)); }";
const BUSY: &str = "usage() { busy=$((busy + 30)) all=$((all + 100)); }";

#[test]
fn a_job_that_hangs_is_ended() {
    for (bed, looks) in [
        (format!("{SILENT}\n{IDLE}"), 3),
        (format!("{TALKS}\n{BUSY}"), 0),
    ] {
        let (status, text) = run_job("echo begun; sleep 60000", &bed);
        assert_eq!(status, Some(137), "{text}");
        let hung = format!("HUNG: idle at {looks} looks");
        assert!(text.contains("begun") && text.contains(&hung), "{text}");
    }
}

#[test]
fn a_client_whose_machine_hangs_can_show_its_output() {
    let job = "until [ -e \"$JOBS/killed\" ]; do sleep 0.05; done; echo shown; exit 9";
    let killall = "export JOBS; killall() { [ $3 = firecracker ] && touch $JOBS/killed; }";
    let (status, text) = run_job(job, &format!("{SILENT}\n{IDLE}\n{killall}"));
    assert!(status == Some(9) && text.contains("HUNG"), "{text}");
    assert!(text.contains("shown"), "{text}");
}

#[test]
fn a_job_that_is_slow_comes_to_its_end() {
    for bed in [
        format!("{TALKS}\n{IDLE}"),
        format!("{SILENT}\nusage() {{ busy=$((busy + 5)) all=$((all + 20)); }}"),
    ] {
        let (status, text) = run_job("sleep 0.5; echo done; exit 7", &bed);
        assert_eq!(status, Some(7), "{text}");
        assert!(text.contains("done") && !text.contains("HUNG"), "{text}");
    }
}

#[test]
fn the_machine_tells_how_busy_it_is() {
    let bed = "usage; echo \"$busy of $all\"; first=$all; sleep 0.1; usage; [ $all -gt $first ] && echo MORE";
    let (status, text) = run_job("exit 0", bed);
    assert!(status == Some(0) && text.contains("MORE"), "{text}");
}
