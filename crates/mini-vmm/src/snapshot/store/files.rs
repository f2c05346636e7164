// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots as two files, of which each is replaced at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::rename;

use super::{Before, Contents, beside, failed, followed, is_at, is_taken, lock_at, sync_parent};
use crate::config::VmSpec;
use crate::inputs;
use crate::snapshot::Error;

/// Writes a snapshot of the machine `spec` as two files, which may exist. The manifest's line and the state are in
/// `snapshot`.
///
/// Memory is replaced first. A process that dies in between leaves two that don't belong together, and their identities
/// tell.
///
/// # Errors
/// [`Error`] says what failed. What was there is still there, except after [`Error::NotDurable`] and [`Error::Half`].
pub fn write_files(
    snapshot: &Path,
    memory: &Path,
    spec: &VmSpec,
    contents: &Contents<'_>,
) -> Result<(), Error> {
    write_files_with([snapshot, memory], spec, contents, &|_| Ok(()))
}

pub(super) fn write_files_with(
    paths: [&Path; 2],
    spec: &VmSpec,
    contents: &Contents<'_>,
    before: Before<'_>,
) -> Result<(), Error> {
    let paths = paths.map(followed);
    let [snapshot, memory] = &paths;
    let check = || paths.iter().try_for_each(|path| check_target(path, spec));
    // Before minutes of work.
    check()?;
    let new_memory = WorkFile::new(memory)?;
    let new_snapshot = WorkFile::new(snapshot)?;
    let filled = (contents.memory)(&new_memory.file).and_then(|()| new_memory.file.sync_all());
    filled.map_err(failed("write", memory))?;
    let mut file = &new_snapshot.file;
    let filled = (contents.manifest)(&[]).and_then(|manifest| {
        let mut parts = [&manifest[..], b"\n", contents.state].into_iter();
        parts.try_for_each(|bytes| file.write_all(bytes))?;
        file.sync_all()
    });
    filled.map_err(failed("write", snapshot))?;
    before("swap").map_err(failed("replace", memory))?;
    // Others may have put something there meanwhile.
    check()?;
    new_memory
        .put_at(memory)
        .map_err(failed("replace", memory))?;
    let second = before("swap-second").and_then(|()| new_snapshot.put_at(snapshot));
    second.map_err(|reason| Error::Half {
        new: memory.clone(),
        old: snapshot.clone(),
        reason,
    })?;
    for path in [memory, snapshot] {
        let synced = before("sync-parent").and_then(|()| sync_parent(path));
        synced.map_err(|reason| Error::NotDurable {
            path: path.clone(),
            old: None,
            reason,
        })?;
    }
    Ok(())
}

/// Writes a memory file alone, which may exist.
///
/// # Errors
/// [`Error`] says what failed. What was there is still there, except after [`Error::NotDurable`].
pub fn write_memory(path: &Path, fill: &dyn Fn(&File) -> io::Result<()>) -> Result<(), Error> {
    let path = &followed(path);
    // Before minutes of work.
    check_kind(path)?;
    let new = WorkFile::new(path)?;
    let filled = fill(&new.file).and_then(|()| new.file.sync_all());
    filled.map_err(failed("write", path))?;
    // Others may have put something there meanwhile.
    check_kind(path)?;
    new.put_at(path).map_err(failed("replace", path))?;
    sync_parent(path).map_err(|reason| Error::NotDurable {
        path: path.clone(),
        old: None,
        reason,
    })
}

/// Checks that a regular file is at `path`, or nothing. Returns whether it is a file.
fn check_kind(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path)(error)),
        Ok(about) if !about.is_file() => Err(Error::NotAFile(path.to_owned())),
        Ok(_) => Ok(true),
    }
}

/// Checks that nothing is at `path`, or a file that the machine doesn't use.
fn check_target(path: &Path, spec: &VmSpec) -> Result<(), Error> {
    if !check_kind(path)? {
        return Ok(());
    }
    let is_used = inputs::outputs(spec).any(|output| inputs::is_overwritten(output, path))
        || inputs::same_as(path, spec).is_some();
    match is_used {
        true => Err(Error::OwnFile(path.to_owned())),
        false => Ok(()),
    }
}

/// A file under construction, locked against a second writer. Removed on drop, unless it was renamed.
struct WorkFile {
    path: PathBuf,
    file: File,
    is_renamed: bool,
}

impl WorkFile {
    fn new(target: &Path) -> Result<Self, Error> {
        let path = beside(target)?;
        let mut made = create(&path);
        if is_taken(&made) {
            remove_leftover(&path)?;
            made = create(&path);
        }
        let file = made.map_err(failed("create", &path))?;
        lock_at(&file, &path)?;
        Ok(WorkFile {
            path,
            file,
            is_renamed: false,
        })
    }

    /// Gives it the name `target`, and takes that from the file which has it.
    fn put_at(mut self, target: &Path) -> io::Result<()> {
        rename(&self.path, target)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        if !self.is_renamed && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates a file for its owner.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Removes what a process left that was killed. It is not used again: it could be another user's, who may read it or has
/// another name for it.
fn remove_leftover(path: &Path) -> Result<(), Error> {
    let failed = failed("create", path);
    if !fs::symlink_metadata(path).map_err(&failed)?.is_file() {
        return Err(Error::NotAFile(path.to_owned()));
    }
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(&failed)?;
    lock_at(&file, path)?;
    fs::remove_file(path).map_err(&failed)
}

#[cfg(test)]
mod tests;
