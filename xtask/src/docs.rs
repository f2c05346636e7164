// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the repository's pages: links have targets, the paths in DESIGN.md exist, and command lines of xtask are in
//! the usage text. (Those of mini-vmm are tested with mini-vmm.)

use std::fs;
use std::path::Path;

use crate::USAGE;
use crate::workspace::root;

/// The pages' names, relative to the workspace's root, and their texts.
fn pages() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned(), "DESIGN.md".to_owned()];
    for (folder, file) in [
        ("docs", ""),
        ("crates", "/README.md"),
        ("guest", "/README.md"),
    ] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let entry = entry.unwrap().file_name();
            names.push(format!("{folder}/{}{file}", entry.to_str().unwrap()));
        }
    }
    let text = |name: String| {
        let text = fs::read_to_string(root().join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(text).collect()
}

/// The part of the usage text about `command`: its first line and all indented ones.
fn section(command: &str) -> Option<&'static str> {
    let start = format!("cargo xtask {command} ");
    USAGE.split("\n\n").find(|text| text.starts_with(&start))
}

/// What is wrong with a command line after `cargo xtask `.
fn complaint(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let command = words.next()?;
    let Some(section) = section(command) else {
        return Some(format!("there is no command {command}"));
    };
    let known: Vec<&str> = section
        .split(|c: char| c.is_whitespace() || "[]|(),.".contains(c))
        .collect();
    let words = words.take_while(|word| *word != "--" && *word != "#");
    let mut flags = words.filter(|word| word.starts_with('-'));
    let unknown = flags.find(|flag| !known.contains(flag))?;
    Some(format!("{command} has no {unknown}"))
}

/// The command lines of xtask in `text`, including those within sentences.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let rests = text.split("cargo xtask ").skip(1);
    rests.map(|rest| rest.split(['`', '\n']).next().unwrap_or_default())
}

#[test]
fn command_lines_are_in_the_usage_text() {
    let mut count = 0;
    for (name, text) in pages() {
        for line in commands(&text) {
            assert_eq!(complaint(line), None, "{name}: cargo xtask {line}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn wrong_command_lines_are_found() {
    assert_eq!(complaint("boot --para -- uname --no-such"), None);
    assert_eq!(complaint("test --quick   # --no-such"), None);
    assert!(complaint("boot --quick").is_some());
    assert!(complaint("boot --par").is_some());
    assert!(complaint("boots").is_some());
    assert_eq!(
        commands("`cargo xtask a b` or\ncargo xtask c\n").collect::<Vec<_>>(),
        ["a b", "c"]
    );
}

/// The anchor of a heading: lower case, hyphens for spaces, no other punctuation.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || "-_".contains(c) => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.trim().chars().filter_map(kept).collect()
}

fn has_anchor(page: &Path, wanted: &str) -> bool {
    let text = fs::read_to_string(page).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#')));
    anchors.any(|anchor| anchor == wanted)
}

/// Whether a link of the page `name` points into the repository, but has no target there.
fn is_dead(name: &str, link: &str) -> bool {
    if link.contains("://") {
        return false;
    }
    let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
    let page = root().join(name);
    let target = match path {
        "" => page,
        path => page.parent().unwrap().join(path),
    };
    !target.exists() || (!wanted.is_empty() && !has_anchor(&target, wanted))
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    let rests = text.split("](").skip(1);
    rests.filter_map(|rest| Some(rest.split_once(')')?.0))
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for (name, text) in pages() {
        for link in links(&text) {
            assert!(!is_dead(&name, link), "{name} links to {link}");
            count += 1;
        }
    }
    assert!(count >= 30, "{count}");
    for dead in ["no-such-page.md", "README.md#no-such-heading", "#nor-here"] {
        assert!(is_dead("README.md", dead), "{dead}");
    }
}

/// The paths in the map's table: words in code with a slash or an extension.
fn paths(map: &str) -> Vec<&str> {
    let rows = map.lines().filter(|line| line.starts_with('|'));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    words
        .filter(|word| word.contains('/') || word.ends_with(".rs"))
        .collect()
}

#[test]
fn the_map_of_the_design_is_true() {
    let design = fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let (_, map) = design.split_once("\n## Map\n").unwrap();
    let (map, _) = map.split_once("\n## ").unwrap();
    let paths = paths(map);
    assert!(paths.len() >= 20, "{paths:?}");
    for path in paths {
        let places = [
            root().join(path),
            root().join("crates/mini-vmm/src").join(path),
        ];
        assert!(
            places.iter().any(|place| place.exists()),
            "there is no {path}"
        );
    }
}
