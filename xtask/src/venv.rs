// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual environment with the clients from PyPI, cached.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages::{self, Need};
use crate::process::{capture, capture_ok, capture_text, step};
use crate::whole;
use crate::workspace::{cache_dir, root};

/// What the environment holds: versions and hashes.
const REQUIREMENTS: &str = "clients/python/requirements.txt";

/// Python, and the programs that the clients or their tests start.
const NEEDS: &[Need] = &[
    ("python3", "python3"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
];

/// The Python that has the clients. The environment is made first if there is none, or if it was made from other
/// requirements or for another Python.
pub fn python() -> Result<PathBuf> {
    packages::require(NEEDS)?;
    let requirements = root().join(REQUIREMENTS);
    let text = fs::read_to_string(&requirements)
        .with_context(|| format!("can't read {}", requirements.display()))?;
    let version = capture_text(python3().arg("--version"))?;
    let mark = format!("{version}\n{text}");
    let mut make = |place: &Path| {
        step("installing the clients from PyPI", || {
            install(&requirements, place)
        })?;
        Ok(Some(mark.clone()))
    };
    let open = |place: &Path| {
        ensure!(
            whole::mark(place)? == mark,
            "it was made from other requirements or for another Python"
        );
        Ok(place.join("bin/python"))
    };
    whole::cached(&cache_dir()?, "clients-python", &mut make, &open)?
        .context("the environment was not made")
}

/// Prints the interpreter and all modules that a script uses, without its own work.
const FILES_OF: &str = "import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
runpy.run_path(sys.argv[1])
print(os.path.realpath(sys.executable))
print(*{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')";

/// A script with everything that it needs.
#[derive(Debug)]
pub struct Program {
    /// The Python that runs it.
    pub interpreter: PathBuf,
    /// Where that finds the packages of the environment.
    pub packages: PathBuf,
    /// The modules, of the standard library, the environment, and beside the script.
    pub modules: Vec<PathBuf>,
}

/// The files for a script that does its work only as `__main__`.
pub fn program(script: &Path) -> Result<Program> {
    let python = python()?;
    let mut files = Command::new(&python);
    files.args(["-B", "-c", FILES_OF]).arg(script);
    let text = capture_text(&mut files)?;
    let mut lines = text.lines().map(PathBuf::from);
    let interpreter = lines.next().context("Python named no interpreter")?;
    let mut packages = Command::new(&python);
    packages.args(["-c", "import site; print(*site.getsitepackages())"]);
    Ok(Program {
        interpreter,
        packages: capture_text(&mut packages)?.into(),
        modules: lines.collect(),
    })
}

fn python3() -> Command {
    Command::new("python3")
}

/// Makes the new environment `place`. It is moved later, so only its Python may be started, and none of its scripts.
fn install(requirements: &Path, place: &Path) -> Result<()> {
    // Debian's Python has this in a package of its own.
    if !capture(python3().args(["-c", "import ensurepip"]))?
        .status
        .success()
    {
        let library = capture_text(python3().args(["-c", "import os; print(os.__file__)"]))?;
        let ensurepip = Path::new(&library).with_file_name("ensurepip");
        packages::require(&[(&ensurepip.to_string_lossy(), "python3-venv")])?;
    }
    capture_ok(python3().args(["-m", "venv"]).arg(place))?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--require-hashes"]);
    // Nothing is built, so nothing of theirs runs here. The list is complete.
    pip.args(["--only-binary", ":all:", "--no-deps"]);
    pip.arg("--disable-pip-version-check");
    pip.arg("--requirement").arg(requirements);
    capture_ok(&mut pip).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The packages and versions that the README's table names.
    fn documented(readme: &str, registry: &str) -> Vec<(String, String)> {
        let rows = readme.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("| [")?.split_once("](")?;
            let (link, rest) = rest.split_once(") ")?;
            let version = rest.split(' ').next()?;
            let is_here = link.contains(registry) && version != "|";
            is_here.then(|| (name.to_owned(), version.to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_readme_names_the_clients_of_the_tests() {
        let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
        let readme = read("clients/README.md");
        let pinned = read(REQUIREMENTS);
        let python = documented(&readme, "pypi.org");
        assert_eq!(python.len(), 6);
        for (name, version) in python {
            let line = format!("{name}=={version} \\");
            assert!(pinned.lines().any(|pinned| pinned == line), "{line}");
            let script = format!("clients/python/{}_lives.py", name.replace('-', "_"));
            assert!(root().join(&script).is_file(), "{script}");
        }
        let manifest = read("clients/Cargo.toml");
        let rust = documented(&readme, "crates.io");
        assert_eq!(rust.len(), 3);
        for (name, version) in rust {
            let line = manifest.lines().find(|line| line.starts_with(&name));
            let line = line.unwrap_or_default();
            assert!(line.contains(&format!("\"={version}\"")), "{name}: {line}");
        }
    }
}
