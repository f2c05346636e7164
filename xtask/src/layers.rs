// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The modules of each crate use each other one way: a test looks for cycles between top-level modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::workspace::root;

/// Which top-level modules each one names as `crate::other`.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The code of a source file that is shipped: without comments, and without what follows `#[cfg(test)]` at the
/// margin, where the tests are.
fn shipped(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The identifier that `text` begins with.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric());
    &text[..end.unwrap_or(text.len())]
}

/// The first names of the paths `crate::…` in `code`, also of those in braces.
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

/// Adds what the files below `directory` use, which belong to `module` or, at the top, each to the one of its name.
fn add_uses(directory: &Path, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let owner = module.unwrap_or(stem);
        if path.is_dir() && stem != "tests" {
            add_uses(&path, Some(owner), uses);
        }
        let is_root = module.is_none() && (stem == "lib" || stem == "main");
        if path.extension().is_some_and(|end| end == "rs") && stem != "tests" && !is_root {
            let code = shipped(&fs::read_to_string(&path).unwrap());
            uses.entry(owner.to_owned())
                .or_default()
                .extend(names(&code));
        }
    }
}

/// A cycle of modules, if there is one: what is left when all that use nothing that is left are taken away.
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
    for package in [
        "mini-vmm",
        "vcpu-loop",
        "pci-root",
        "para-msr",
        "para-abi",
        "hypercall-patch",
    ] {
        let mut uses = Uses::new();
        add_uses(
            &root().join("crates").join(package).join("src"),
            None,
            &mut uses,
        );
        assert!(uses.len() > 1, "{package} has no modules");
        let cycle = cycle(uses);
        assert!(
            cycle.is_empty(),
            "{package}: in or above a cycle: {cycle:?}"
        );
    }
}

/// The top-level modules of the files below `directory` that allow what the workspace's lint denies.
fn unsafe_modules(directory: &Path, module: Option<&str>, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let owner = module.unwrap_or(path.file_stem().unwrap().to_str().unwrap());
        if path.is_dir() {
            unsafe_modules(&path, Some(owner), found);
        } else if shipped(&fs::read_to_string(&path).unwrap()).contains("allow(unsafe_code") {
            found.insert(owner.to_owned());
        }
    }
}

#[test]
fn unsafe_code_has_one_address_per_crate() {
    let mut addresses = Vec::new();
    for package in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let mut found = BTreeSet::new();
        unsafe_modules(&package.path().join("src"), None, &mut found);
        for module in found {
            addresses.push((package.file_name().into_string().unwrap(), module));
        }
    }
    addresses.sort();
    let documented = [
        ("mini-vmm", "sys"),
        ("para-abi", "guest"),
        ("vcpu-loop", "sys"),
    ];
    assert_eq!(
        addresses,
        documented.map(|(package, module)| (package.to_owned(), module.to_owned()))
    );
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
