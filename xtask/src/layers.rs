// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A test that looks for cyclic dependencies between the top-level modules of each crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::{root, sources};

/// The top-level modules that each one names as `crate::other`.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The shipped code of a source file: without comments, and without the tests, which follow a `#[cfg(test)]` at the
/// left margin.
fn shipped(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The identifier at the start of `text`.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric());
    &text[..end.unwrap_or(text.len())]
}

/// The first names of the paths `crate::…` in `code`, including those in braces.
fn names(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            found.insert(identifier(path).to_owned());
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(identifier(&group[at..]).to_owned());
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// The files of a crate and their top-level modules; `lib` and `main` count as modules.
fn files(package: &Path) -> Vec<(String, PathBuf)> {
    let src = package.join("src");
    let module = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().components().next();
        let first = first.unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    };
    let found = sources(&src).unwrap().into_iter();
    found.map(|path| (module(&path), path)).collect()
}

/// What the modules of a crate use, without its root and its tests.
fn uses(package: &Path) -> Uses {
    let mut uses = Uses::new();
    for (module, path) in files(package) {
        let is_test = path.components().any(|part| {
            let part = part.as_os_str();
            part == "tests" || part == "tests.rs"
        });
        if !is_test && module != "lib" && module != "main" {
            let code = shipped(&fs::read_to_string(&path).unwrap());
            uses.entry(module).or_default().extend(names(&code));
        }
    }
    uses
}

/// A cycle of modules, if there is one: what remains after repeatedly removing modules that use no remaining module.
fn cycle(mut uses: Uses) -> BTreeSet<String> {
    loop {
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        let before = uses.len();
        uses.retain(|module, used| {
            used.iter()
                .any(|other| other != module && left.contains(other))
        });
        if uses.len() == before {
            return left;
        }
    }
}

#[test]
fn no_modules_use_each_other() {
    for package in crates() {
        let uses = uses(&package);
        assert!(!uses.is_empty(), "{package:?} has no modules");
        let cycle = cycle(uses);
        assert!(
            cycle.is_empty(),
            "{package:?}: in or above a cycle: {cycle:?}"
        );
    }
}

fn crates() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("crates")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn unsafe_code_has_one_address_per_crate() {
    let mut addresses = BTreeSet::new();
    for package in crates() {
        let name = package.file_name().unwrap().to_str().unwrap();
        for (module, path) in files(&package) {
            // The workspace's lint denies this.
            if shipped(&fs::read_to_string(&path).unwrap()).contains("allow(unsafe_code") {
                addresses.insert((name.to_owned(), module));
            }
        }
    }
    let documented = [
        ("mini-vmm", "sys"),
        ("para-abi", "guest"),
        ("vcpu-loop", "sys"),
        ("virtio-models", "sys"),
    ];
    let documented = documented.map(|(package, module)| (package.to_owned(), module.to_owned()));
    assert_eq!(addresses, documented.into());
}

#[test]
fn the_command_line_parser_stays_in_its_room() {
    let files = files(&root().join("crates/mini-vmm")).into_iter();
    let naming = files.filter(|(_, path)| {
        let code = fs::read_to_string(path).unwrap();
        shipped(&code).contains("clap")
    });
    let modules: BTreeSet<String> = naming.map(|(module, _)| module).collect();
    assert_eq!(modules, BTreeSet::from(["cli".to_owned()]));
}

#[test]
fn paths_are_found_in_every_form() {
    let code =
        "use crate::a::B;\nuse crate::{b::{self, C}, d, crate_e::F};\nfn f() { crate::g::h() }";
    let found: Vec<_> = names(code).into_iter().collect();
    assert_eq!(found, ["a", "b", "crate_e", "d", "g"]);
    let text = "use crate::a; // crate::b\n#[cfg(test)]\nmod tests { use crate::c; }";
    assert_eq!(names(&shipped(text)), BTreeSet::from(["a".to_owned()]));
}

#[test]
fn a_cycle_is_told_from_a_diamond() {
    let uses = |edges: &[(&str, &[&str])]| {
        let edges = edges.iter().map(|(module, used)| {
            let used = used.iter().map(|name| (*name).to_owned()).collect();
            ((*module).to_owned(), used)
        });
        edges.collect::<Uses>()
    };
    let diamond = uses(&[
        ("a", &["b", "c", "Gone"]),
        ("b", &["d"]),
        ("c", &["d"]),
        ("d", &["d"]),
    ]);
    assert!(cycle(diamond).is_empty());
    let ring = uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]);
    assert_eq!(
        cycle(ring),
        BTreeSet::from(["a", "b", "c"].map(str::to_owned))
    );
}
