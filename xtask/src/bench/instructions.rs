// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Instructions per exit in user space, counted by valgrind. The number is the same on a busy machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::guest::Work;
use super::host::{Host, Storm};
use super::subject::{Kind, Setup, Subject};
use crate::process::{capture_watched, has_program, last_lines};
use crate::watch::Patience;

/// Exits of a short and of a long run; start-up cancels out.
const EXITS: (u32, u32) = (1_000, 11_000);
/// The limits of one run.
const PATIENCE: Patience = Patience::of_work(120);

impl Host<'_> {
    /// Instructions per exit of mini-vmm and the floor, including the system call's wrapper; nothing without valgrind.
    pub fn instructions(&mut self) {
        if !has_program("valgrind") {
            return;
        }
        let kinds: [(&str, Storm); 3] = [
            ("instructions-port", Work::Port),
            ("instructions-mmio", Work::Mmio),
            ("instructions-hypercall", Work::Hypercall),
        ];
        // The others use signals or memory that valgrind does not support.
        let can = |subject: &Subject| matches!(subject.kind, Kind::MiniVmm | Kind::Floor);
        for (id, work) in kinds {
            self.turns(id, 1..=1, None, can, |host, subject| {
                Ok(vec![(id, host.per_exit(subject, work)?)])
            });
        }
    }

    fn per_exit(&self, subject: &Subject, work: Storm) -> Result<f64> {
        let (few, many) = EXITS;
        let [short, long] = [few, many].map(|count| self.count(subject, work(count)));
        Ok((long? - short?) / f64::from(many - few))
    }

    fn count(&self, subject: &Subject, work: Work) -> Result<f64> {
        let words = subject.words(&Setup::of(work), &self.directory)?;
        let mut command = Command::new("valgrind");
        // Not callgrind, which fails if several threads get signals.
        command.args(["--tool=cachegrind", "--cache-sim=no"]);
        command.arg("--cachegrind-out-file=/dev/null");
        let end = capture_watched(command.args(words), PATIENCE)?;
        if !end.end.is_ok_and(|status| status.success()) {
            bail!("{}", last_lines(&end.text, 5));
        }
        collected(&end.text).context("valgrind counted nothing")
    }
}

/// The number of instructions that cachegrind prints.
fn collected(text: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let number = line.split_once(" I ")?.1.trim().strip_prefix("refs:")?;
        number.trim().replace(',', "").parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cachegrinds_number_is_read() {
        let text = "==1== Command: x I y\n==1== I   refs:      10,494,417\n==1== \n";
        assert_eq!(collected(text), Some(10_494_417.0));
        assert_eq!(collected("==1== I refs:        12\n"), Some(12.0));
        assert_eq!(collected("==1== D   refs:      10,494\n"), None);
    }
}
