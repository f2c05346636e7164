// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The result of a test run: rows of a table, reasons, the summary line.

use std::fmt::Write;
use std::time::Duration;

/// Test results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: usize,
    /// One text for each that failed: its name, then its output.
    pub failures: Vec<String>,
    /// One text for each that was skipped: its name and the reason.
    pub skips: Vec<String>,
    /// How many were left to `--long`.
    pub left: usize,
}

impl Tally {
    /// One check that passed.
    pub fn pass() -> Tally {
        Tally {
            passed: 1,
            ..Tally::default()
        }
    }

    /// One check that failed.
    pub fn fail(why: impl Into<String>) -> Tally {
        Tally {
            failures: vec![why.into()],
            ..Tally::default()
        }
    }

    /// One check that was skipped.
    pub fn skip(why: impl Into<String>) -> Tally {
        Tally {
            skips: vec![why.into()],
            ..Tally::default()
        }
    }

    /// Adds `other`'s.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
        self.left += other.left;
    }

    /// All counts; those of tests left to `--long` only if there are any.
    pub fn counts(&self) -> String {
        let mut counts = format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failures.len(),
            self.skips.len()
        );
        if self.left > 0 {
            // Writing to a String can't fail.
            let _ = write!(counts, ", {} left to --long", self.left);
        }
        counts
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What ran.
    pub part: String,
    /// Where it ran.
    pub place: String,
    /// Its results.
    pub tally: Tally,
    /// How long it took.
    pub elapsed: Duration,
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Summary(pub Vec<Row>);

impl Summary {
    fn total(&self) -> Tally {
        let mut total = Tally::default();
        for row in &self.0 {
            total.add(row.tally.clone());
        }
        total
    }

    /// Whether something passed and nothing failed.
    pub fn is_success(&self) -> bool {
        let total = self.total();
        total.failures.is_empty() && total.passed > 0
    }

    /// The report: failures, skips with their reasons, the table, the summary line.
    pub fn render(&self) -> String {
        let mut text = String::new();
        self.render_texts(&mut text, "failed", |tally| &tally.failures);
        self.render_texts(&mut text, "skipped", |tally| &tally.skips);
        let width = |of: fn(&Row) -> &str, least: usize| {
            let widths = self.0.iter().map(|row| of(row).chars().count());
            widths.max().unwrap_or(0).max(least)
        };
        let part = width(|row| &row.part, 4);
        let place = width(|row| &row.place, 5);
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{:part$}  {:place$}  passed  failed  skipped    time",
            "part", "where"
        );
        for row in &self.0 {
            let _ = writeln!(
                text,
                "{:part$}  {:place$}  {:6}  {:6}  {:7}  {:4} s",
                row.part,
                row.place,
                row.tally.passed,
                row.tally.failures.len(),
                row.tally.skips.len(),
                row.elapsed.as_secs_f64().round()
            );
        }
        let _ = write!(text, "\n{}", self.total().counts());
        text
    }

    fn render_texts(&self, text: &mut String, title: &str, of: fn(&Tally) -> &Vec<String>) {
        for row in &self.0 {
            for entry in of(&row.tally) {
                let _ = writeln!(
                    text,
                    "{title}: {} ({}): {}",
                    row.part,
                    row.place,
                    entry.trim_end().replace('\n', "\n    ")
                );
            }
        }
        if !text.is_empty() && !text.ends_with("\n\n") {
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(part: &str, tally: Tally) -> Row {
        Row {
            part: part.to_owned(),
            place: "host".to_owned(),
            tally,
            elapsed: Duration::from_millis(1600),
        }
    }

    #[test]
    fn report_names_all_and_counts_last() {
        let mut tally = Tally::pass();
        tally.add(Tally::fail("serial::fifo\npanicked"));
        tally.add(Tally::skip("kvm::kick: no /dev/kvm"));
        let summary = Summary(vec![row("unit tests", tally), row("format", Tally::pass())]);
        assert_eq!(
            summary.render(),
            "failed: unit tests (host): serial::fifo\n    panicked\n\n\
             skipped: unit tests (host): kvm::kick: no /dev/kvm\n\n\
             part        where  passed  failed  skipped    time\n\
             unit tests  host        1       1        1     2 s\n\
             format      host        1       0        0     2 s\n\n\
             2 passed, 1 failed, 1 skipped"
        );
        assert!(!summary.is_success());
    }

    #[test]
    fn the_closing_line_says_what_was_left_to_long() {
        let left = Tally {
            left: 2,
            ..Tally::pass()
        };
        let text = Summary(vec![row("x", left.clone()), row("y", left)]).render();
        let last = text.lines().last();
        let line = "2 passed, 0 failed, 0 skipped, 4 left to --long";
        assert_eq!(last, Some(line));
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert!(!Summary::default().is_success());
        assert!(!Summary(vec![row("x", Tally::skip("why"))]).is_success());
        assert!(Summary(vec![row("x", Tally::pass())]).is_success());
    }
}
