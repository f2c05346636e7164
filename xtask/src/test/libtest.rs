// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counts the results in the output of Rust's test harness.

use super::summary::Tally;
use crate::process::last_lines;

/// Counts the results of one or more runs of the harness. `text` is stdout and stderr of a run with `--show-output`,
/// `success` whether it exited with 0, and `name` its name in reports.
///
/// A test that can't run here passes and prints `SKIP: name: reason`; it counts as skipped. A test with a long variant
/// that was not wanted prints `LONG: name`.
pub fn count(name: &str, text: &str, success: bool) -> Tally {
    let mut tally = Tally::default();
    let mut results = 0;
    for line in text.lines().map(str::trim_end) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            results += 1;
            tally.passed += number_before(counts, " passed");
        } else if let Some(skip) = line.strip_prefix("SKIP: ") {
            let skip = skip.to_owned();
            if !tally.skips.contains(&skip) {
                tally.skips.push(skip);
            }
        } else if line.starts_with("LONG: ") {
            tally.left += 1;
        } else if let Some((test, outcome)) = test_line(line) {
            if outcome == "FAILED" {
                tally.failures.push(failure(test, text));
            } else if outcome.starts_with("ignored") {
                tally.skips.push(format!("{test}: {outcome}"));
            }
        }
    }
    let skipped_at_run = tally
        .skips
        .iter()
        .filter(|skip| !skip.contains(": ignored"))
        .count();
    tally.passed = tally.passed.saturating_sub(skipped_at_run);
    if results == 0 {
        tally.failures.push(format!(
            "{name} printed no result:\n{}",
            last_lines(text, 40)
        ));
    } else if !success && tally.failures.is_empty() {
        tally
            .failures
            .push(format!("{name} failed:\n{}", last_lines(text, 40)));
    }
    for failure in &mut tally.failures {
        if !failure.starts_with(name) {
            failure.insert_str(0, &format!("{name}: "));
        }
    }
    tally
}

/// Parses `test NAME ... OUTCOME`, and removes suffixes such as rustdoc's ` - should panic` from the name.
fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

fn number_before(text: &str, word: &str) -> usize {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// The name of a failed test and its output.
fn failure(test: &str, text: &str) -> String {
    let title = format!("---- {test} stdout ----");
    let mut failure = test.to_owned();
    let printed = text.lines().skip_while(|line| line.trim_end() != title);
    for line in printed
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .take(40)
    {
        failure.push('\n');
        failure.push_str(line);
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\nrunning 4 tests
test bus::overlap ... ok
test kvm::kick ... ok
test kvm::slow ... ignored, takes minutes
test pio::split ... FAILED

successes:

---- kvm::kick stdout ----
SKIP: kvm::kick: /dev/kvm can't be used
SKIP: kvm::kick: /dev/kvm can't be used

failures:

---- pio::split stdout ----
thread 'pio::split' panicked at src/x.rs:1:1:
left != right


failures:
    pio::split

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn every_kind_is_counted_once() {
        let tally = count("vcpu-loop", MIXED, false);
        assert_eq!(tally.passed, 1);
        assert_eq!(
            tally.skips,
            [
                "kvm::slow: ignored, takes minutes",
                "kvm::kick: /dev/kvm can't be used"
            ]
        );
        assert_eq!(tally.failures.len(), 1);
        assert!(
            tally.failures[0].starts_with("vcpu-loop: pio::split\nthread")
                && tally.failures[0].contains("left != right"),
            "{tally:?}"
        );
    }

    #[test]
    fn results_of_several_runs_add_up() {
        let one = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\r\n";
        let tally = count("doc", &one.repeat(2), true);
        assert_eq!((tally.passed, tally.failures.len()), (24, 0));
    }

    #[test]
    fn a_test_that_ran_shortened_passed_and_left_something() {
        let one = "LONG: kick\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let tally = count("kvm", one, true);
        assert_eq!((tally.passed, tally.left), (1, 1));
    }

    #[test]
    fn a_crash_is_a_failure() {
        let tally = count("boot", "running 3 tests\nSIGSEGV", false);
        assert_eq!(tally.failures.len(), 1);
        assert!(tally.failures[0].contains("SIGSEGV"));
        let exited = "test result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(count("boot", exited, false).failures.len(), 1);
        assert_eq!(count("boot", "", true).failures.len(), 1);
    }
}
