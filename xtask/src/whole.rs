// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Directories of the cache that are complete or replaced: each is made next to its place, marked as complete, and
//! moved there in one step.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process::{read, write};
use crate::workspace::Scratch;

/// The file that marks a directory as complete, and says what is in it. It is written last.
const MARK: &str = ".whole";

/// Fills the new directory at a path, and returns the text of its mark; none if that can't be had.
pub type Make<'a> = &'a mut dyn FnMut(&Path) -> Result<Option<String>>;

/// What `open` finds in the directory `name` of `cache`. If it is missing, incomplete, or `open` fails, `make` makes it
/// anew first. None if `make` can't.
pub fn cached<T>(
    cache: &Path,
    name: &str,
    make: Make,
    open: &dyn Fn(&Path) -> Result<T>,
) -> Result<Option<T>> {
    let place = cache.join(name);
    let open_whole = || {
        let mark = place.join(MARK);
        ensure!(mark.is_file(), "{} is not whole", place.display());
        open(&place)
    };
    if place.exists() {
        match open_whole() {
            Ok(opened) => return Ok(Some(opened)),
            Err(why) => eprintln!("xtask: replacing {name} in the cache: {why:#}"),
        }
    }
    let scratch = Scratch::new()?;
    let tree = scratch.path("tree");
    let Some(mark) = make(&tree)? else {
        return Ok(None);
    };
    write(&tree.join(MARK), mark)?;
    if place.exists() {
        // A rename replaces only an empty directory, so move the old one away first.
        fs::rename(&place, scratch.path("old"))
            .with_context(|| format!("can't move {} away", place.display()))?;
    }
    let moved = fs::rename(&tree, &place);
    // Another xtask may have made it meanwhile.
    if moved.is_err() && open_whole().is_err() {
        moved.with_context(|| format!("can't make {}", place.display()))?;
    }
    open_whole().map(Some)
}

/// The text of a directory's mark.
pub fn mark(place: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&read(&place.join(MARK))?).into_owned())
}
