// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks the dependencies against `deny.toml`: licenses, crates in several versions, sources.
//!
//! The file is in cargo-deny's format. Building cargo-deny in every run would take minutes, so xtask checks the parts
//! of the file that are used here, with `cargo metadata`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use toml::Table;

use super::summary::Tally;
use crate::process::read;
use crate::workspace::{metadata, root};

/// The only registry, as `cargo metadata` names it.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks all dependencies: three checks.
pub fn check() -> Result<Tally> {
    let text = read(&root().join("deny.toml"))?;
    let deny: Table = String::from_utf8(text)?
        .parse()
        .context("deny.toml is no TOML")?;
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let mut tally = Tally::default();
    for problems in [
        licenses(&packages, &deny),
        duplicates(&packages, &deny),
        sources(&packages),
    ] {
        tally.add(if problems.is_empty() {
            Tally::pass()
        } else {
            Tally::fail(problems.join("\n"))
        });
    }
    Ok(tally)
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

fn title(package: &Value) -> String {
    format!("{}@{}", text(package, "name"), text(package, "version"))
}

/// Packages whose license expression is not satisfied by the allow-list.
fn licenses(packages: &[Value], deny: &Table) -> Vec<String> {
    let allowed: Vec<&str> = deny
        .get("licenses")
        .and_then(|licenses| licenses.get("allow")?.as_array())
        .map(|list| list.iter().filter_map(|license| license.as_str()).collect())
        .unwrap_or_default();
    let mut problems = Vec::new();
    for package in packages {
        let expression = text(package, "license");
        // Old manifests separate alternatives by a slash.
        let parsed = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX);
        let is_allowed = parsed.is_ok_and(|parsed| {
            parsed.evaluate(|requirement| allowed.contains(&requirement.to_string().as_str()))
        });
        if !is_allowed {
            problems.push(format!(
                "{}: license '{expression}' is not in deny.toml's allow-list",
                title(package)
            ));
        }
    }
    problems
}

/// Crates in several versions that deny.toml does not list, and listed ones that are no longer duplicates.
fn duplicates(packages: &[Value], deny: &Table) -> Vec<String> {
    let skips: Vec<&str> = deny
        .get("bans")
        .and_then(|bans| bans.get("skip")?.as_array())
        .map(|list| {
            list.iter()
                .filter_map(|skip| skip.get("crate")?.as_str())
                .collect()
        })
        .unwrap_or_default();
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        let of_name = versions.entry(text(package, "name")).or_default();
        of_name.push(title(package));
    }
    let mut problems = Vec::new();
    for (name, titles) in &versions {
        let left = titles.iter().filter(|title| !is_listed(title, &skips));
        if left.count() > 1 {
            problems.push(format!(
                "{name} is there in several versions: {}; unify them, or list one in deny.toml with the reason",
                titles.join(", ")
            ));
        }
    }
    for skip in skips {
        let name = skip.split('@').next().unwrap_or_default();
        let of_name = versions.get(name).map(Vec::as_slice).unwrap_or_default();
        if of_name.len() < 2 || !of_name.iter().any(|title| is_listed(title, &[skip])) {
            problems.push(format!(
                "deny.toml lists {skip}, which is no duplicate: remove it"
            ));
        }
    }
    problems
}

/// Whether `name@version` is one of `skips`, whose versions may omit the last numbers.
fn is_listed(title: &str, skips: &[&str]) -> bool {
    skips.iter().any(|skip| {
        title
            .strip_prefix(skip)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Packages that are neither from crates.io nor from the workspace.
fn sources(packages: &[Value]) -> Vec<String> {
    packages
        .iter()
        .filter_map(|package| Some((package, package["source"].as_str()?)))
        .filter(|(_, source)| *source != CRATES_IO)
        .map(|(package, source)| format!("{} comes from {source}", title(package)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DENY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
        [bans]
        skip = [{ crate = "bitflags@1", reason = "x" }]
    "#;

    fn package(name: &str, version: &str, license: &str) -> Value {
        json!({"name": name, "version": version, "license": license, "source": CRATES_IO})
    }

    #[test]
    fn licenses_are_expressions() {
        let deny: Table = DENY.parse().unwrap();
        let allowed = |license: &str| licenses(&[package("a", "1.0.0", license)], &deny).is_empty();
        assert!(allowed("MIT"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("GPL-3.0-only OR MIT"));
        assert!(allowed("Apache-2.0 WITH LLVM-exception"));
        assert!(!allowed("MIT AND GPL-3.0-only"));
        assert!(!allowed("Unicode-3.0"));
        assert!(!allowed(""));
        assert!(!allowed("no license"));
    }

    #[test]
    fn duplicates_are_listed_or_found() {
        let deny: Table = DENY.parse().unwrap();
        let bitflags = [
            package("bitflags", "1.3.2", "MIT"),
            package("bitflags", "2.9.0", "MIT"),
        ];
        assert!(duplicates(&bitflags, &deny).is_empty());
        let mut more = bitflags.to_vec();
        more.push(package("bitflags", "3.0.0", "MIT"));
        assert!(duplicates(&more, &deny)[0].contains("several versions"));
        let stale = duplicates(&bitflags[1..], &deny);
        assert!(stale[0].contains("no duplicate"), "{stale:?}");
        let one_too_near = [
            package("bitflags", "10.0.0", "MIT"),
            package("bitflags", "2.0.0", "MIT"),
        ];
        assert_eq!(duplicates(&one_too_near, &deny).len(), 2);
    }

    #[test]
    fn only_crates_io_and_the_workspace() {
        let mut git = package("a", "1.0.0", "MIT");
        assert!(sources(&[git.clone()]).is_empty());
        git["source"] = json!("git+https://example.org/a");
        assert_eq!(sources(&[git.clone()]).len(), 1);
        git["source"] = Value::Null;
        assert!(sources(&[git]).is_empty());
    }
}
