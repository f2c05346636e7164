// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares `docs/rules.md` with the tests: each rule has a test with its number, and each number in a test's name is a
//! rule's.

use std::collections::BTreeSet;
use std::fs;

use crate::workspace::{root, sources};

/// The first cell of each row of the page's tables, in lower case: `r1`, `h16`.
fn rules(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .filter(|cell| is_rule(cell))
        .map(str::to_lowercase)
        .collect()
}

/// Whether `word` is the number of a rule: R or H and digits.
fn is_rule(word: &str) -> bool {
    let number = word.trim_start_matches(['R', 'H', 'r', 'h']);
    number.len() + 1 == word.len() && number.parse::<u8>().is_ok()
}

/// The rule numbers at the start of the test functions' names in `text`.
fn tested(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("fn "))
        .flat_map(|name| name.split('_').take_while(|word| is_rule(word)))
        .map(str::to_owned)
}

#[test]
fn rules_and_tests_agree() {
    let rules = rules(&fs::read_to_string(root().join("docs/rules.md")).unwrap());
    assert_eq!(rules.len(), 14 + 16);
    let sources = sources(&root().join("crates")).unwrap();
    let text = |path| fs::read_to_string(path).unwrap();
    let found = sources
        .iter()
        .flat_map(|path| tested(&text(path)).collect::<Vec<_>>());
    assert_eq!(rules, found.collect());
}

#[test]
fn numbers_are_read_from_tables_and_names() {
    assert_eq!(
        rules("| rule | what |\n|---|---|\n| R1 | x |\n| H16 | y |\n| R | z |"),
        BTreeSet::from(["h16".to_owned(), "r1".to_owned()])
    );
    let names = "    fn r12_h15_the_msr() {}\nfn read_all() {}\nfn h1_x() {}\n// r3_in_a_comment";
    assert_eq!(tested(names).collect::<Vec<_>>(), ["r12", "h15", "h1"]);
}
