// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes a Diff whole: its base's memory with its changes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::format::{Id, Kind, Manifest};
use super::load::{self, Part};
use super::memory::data;
use super::spans::{intersection, rest};
use super::store::{self, Contents};
use super::tail::{MemoryFile, Tail, WINDOW, page_at};

/// Why two snapshots were not merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A snapshot can't be used.
    #[error("{path:?}: {error}")]
    Part {
        /// Its directory or memory file.
        path: PathBuf,
        /// What is wrong.
        error: load::Error,
    },
    /// One is a file, and the other one a directory.
    #[error(
        "{file:?} is a file and {dir:?} is a directory; give two directories, or the memory files of both"
    )]
    Mixed {
        /// The file.
        file: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// The two don't belong together.
    #[error(transparent)]
    Stranger(load::Error),
    /// The result can't be written.
    #[error(transparent)]
    Write(#[from] Error),
}

/// Writes to `out` what the snapshot `diff` is with its base `base`: a whole snapshot with the identity of `diff`, so that
/// later Diffs continue it. All three are directories, or the memory files of two files each; then the state of `diff`
/// belongs to the result. `out` may be `base`, and is replaced at once.
///
/// # Errors
/// [`MergeError`] says what failed. `out` is as it was.
pub fn merge(base: &Path, diff: &Path, out: &Path) -> Result<(), MergeError> {
    let both = [base, diff];
    let file = both.iter().find(|path| path.is_file());
    let dir = both.iter().find(|path| path.is_dir());
    match (file, dir) {
        (Some(file), Some(dir)) => Err(MergeError::Mixed {
            file: file.to_path_buf(),
            dir: dir.to_path_buf(),
        }),
        (Some(_), None) => merge_files(base, diff, out),
        _ => merge_directories(base, diff, out),
    }
}

/// Says which snapshot can't be used.
fn bad(path: &Path) -> impl Fn(load::Error) -> MergeError {
    let path = path.to_owned();
    move |error| MergeError::Part {
        path: path.clone(),
        error,
    }
}

fn merge_files(base: &Path, diff: &Path, out: &Path) -> Result<(), MergeError> {
    let (changes, depth, tail) = MemoryFile::open_diff(diff).map_err(bad(diff))?;
    let ram = tail.size;
    let whole = MemoryFile::open(base, ram).map_err(bad(base))?;
    let mut tails = whole.chain().map_err(bad(base))?;
    if let (Some(parent), Some(Tail { id: base, .. })) = (tail.parent, tails.last()) {
        check_parent(parent, *base).map_err(MergeError::Stranger)?;
    }
    // Before minutes of work.
    changes.check_list().map_err(bad(diff))?;
    check_out(out, ram)?;
    match tails.len() == depth as usize {
        true => tails.push(tail),
        // The base was a directory once, which has no chain of pages.
        false => {
            tails = vec![Tail {
                parent: None,
                ..tail
            }];
        }
    }
    let fill = |file: &File| {
        overlay(&whole, &changes, file, ram)?;
        (0..).zip(&tails).try_for_each(|(depth, tail)| {
            file.write_all_at(tail.text().as_bytes(), page_at(ram, depth))
        })
    };
    Ok(store::write_memory(out, &fill)?)
}

/// Checks that nothing but a memory file would be replaced. An empty file may be.
fn check_out(out: &Path, ram: u64) -> Result<(), Error> {
    let has_bytes = |about: fs::Metadata| about.is_file() && about.len() > 0;
    if !fs::metadata(out).is_ok_and(has_bytes) {
        return Ok(());
    }
    match MemoryFile::open(out, ram).and_then(|file| file.chain()) {
        Ok(_) | Err(load::Error::Changes { .. }) => Ok(()),
        Err(_) => Err(Error::NotASnapshot(out.to_owned())),
    }
}

fn merge_directories(base: &Path, diff: &Path, out: &Path) -> Result<(), MergeError> {
    let whole = Part::open(base, Kind::Full).map_err(bad(base))?;
    let changes = Part::open(diff, Kind::Diff).map_err(bad(diff))?;
    check(&whole.manifest, &changes.manifest).map_err(MergeError::Stranger)?;
    // Before minutes of work.
    changes.memory.check_list().map_err(bad(diff))?;
    let manifest = Manifest {
        parent: None,
        kind: Kind::Full,
        depth: 0,
        ..changes.manifest
    };
    let pretty = serde_json::to_vec_pretty(&manifest).map_err(Error::from)?;
    let tail = Tail {
        id: manifest.id,
        size: manifest.parts.memory.size,
        parent: None,
    };
    let fill = |file: &File| {
        overlay(&whole.memory, &changes.memory, file, tail.size)?;
        file.write_all_at(tail.text().as_bytes(), tail.size)
    };
    // Each snapshot has all of these.
    let copy = |disk: usize, to: &File| {
        let mut overlays = changes.overlays.iter();
        overlays
            .find(|overlay| overlay.disk == disk)
            .map_or(Ok(0), |overlay| {
                overlay.copy_to(to, &|| true).map(|()| overlay.crc32)
            })
    };
    let disks: Vec<_> = changes
        .overlays
        .iter()
        .map(|overlay| overlay.disk)
        .collect();
    let contents = Contents {
        manifest: &|_| Ok(pretty.clone()),
        state: &changes.state,
        memory: &fill,
        overlays: &disks,
        overlay: &copy,
    };
    Ok(store::write_directory(out, &contents)?)
}

/// Checks that a Diff belongs to its base.
fn check(base: &Manifest, diff: &Manifest) -> Result<(), load::Error> {
    if let Some(parent) = diff.parent {
        check_parent(parent, base.id)?;
    }
    match base.memory == diff.memory {
        true => Ok(()),
        false => Err(load::Error::Lie("its memory is not its base's")),
    }
}

fn check_parent(parent: Id, base: Id) -> Result<(), load::Error> {
    match parent == base {
        true => Ok(()),
        false => Err(load::Error::Stranger { parent, base }),
    }
}

/// Writes the memory of `base` to the empty file `out`, with the pages that `diff` lists from there. A listed page that is
/// a hole in `diff` is zero.
fn overlay(base: &MemoryFile, diff: &MemoryFile, out: &File, ram: u64) -> io::Result<()> {
    let mut start = 0;
    while start < ram {
        let window = start..ram.min(start + WINDOW);
        let changed = diff.changed(start).map_err(io::Error::other)?;
        for (from, wanted) in [
            (&base.file, rest(window.clone(), &changed)),
            (&diff.file, changed),
        ] {
            let from_start = data(from, window.clone())?;
            let data: Vec<_> = from_start
                .iter()
                .map(|span| window.start + span.start..window.start + span.end)
                .collect();
            for span in intersection(&data, &wanted) {
                copy(from, out, span)?;
            }
        }
        start = window.end;
    }
    Ok(())
}

/// Copies bytes of a file to the same place in another one, by the host alone if it can.
fn copy(mut from: &File, mut to: &File, bytes: Range<u64>) -> io::Result<()> {
    from.seek(SeekFrom::Start(bytes.start))?;
    to.seek(SeekFrom::Start(bytes.start))?;
    let size = bytes.end - bytes.start;
    match io::copy(&mut from.take(size), &mut to)? == size {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
