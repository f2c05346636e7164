// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Puts the files of a snapshot in their place, whole or not at all.
//!
//! They are written beside it, under a name that only this module uses, and reach stable storage before they are
//! renamed. So a process or host that dies at any moment leaves what was there before. What it leaves beside is
//! removed by the next snapshot to the same place.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, rename, renameat_with};
use rustix::io::Errno;

use super::Error;

/// The names in a snapshot's directory.
pub const MANIFEST: &str = "manifest.json";
/// The file with the state.
pub const STATE: &str = "state.json";
/// The file with guest memory.
pub const MEMORY: &str = "memory";
const NAMES: [&str; 3] = [MANIFEST, STATE, MEMORY];

/// Called before each step. Tests fail or kill the process there.
type Before<'a> = &'a dyn Fn(&'static str) -> io::Result<()>;

/// What the files hold.
pub struct Contents<'a> {
    /// The manifest.
    pub manifest: &'a [u8],
    /// The state.
    pub state: &'a [u8],
    /// Writes guest memory to an empty file.
    pub memory: &'a dyn Fn(&File) -> io::Result<()>,
}

/// Names what failed, and the file.
fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |reason| Error::Host {
        what,
        path: path.clone(),
        reason,
    }
}

/// Writes a snapshot's directory, which may be one already.
///
/// # Errors
/// [`Error`] says what failed. What was there is still there.
pub fn write_directory(dir: &Path, contents: &Contents<'_>) -> Result<(), Error> {
    write_directory_with(dir, contents, &|_| Ok(()))
}

fn write_directory_with(
    dir: &Path,
    contents: &Contents<'_>,
    before: Before<'_>,
) -> Result<(), Error> {
    // A symlink stays, and what it names is replaced.
    let dir = &fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let is_there = check_replaceable(dir)?;
    let work = WorkDir::new(beside(dir)?)?;
    fill(&work, contents, before).map_err(failed("write", &work.path))?;
    let step = |name| before(name).map_err(failed("replace", dir));
    step("swap")?;
    match is_there {
        true => exchange(&work.path, dir)?,
        false => rename(&work.path, dir).map_err(|e| failed("create", dir)(e.into()))?,
    }
    step("sync-parent")?;
    sync_parent(dir).map_err(failed("write", dir))?;
    step("remove")?;
    // `work` now is the old one, if there was one, and its drop removes it.
    Ok(())
}

/// Whether a snapshot is at `dir`. Something else must not be there, but an empty directory may.
fn check_replaceable(dir: &Path) -> Result<bool, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look into", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed("look into", dir))?.file_name());
    }
    let is_ours = names
        .iter()
        .all(|name| NAMES.iter().any(|ours| name == ours));
    match (
        names.is_empty(),
        is_ours && names.iter().any(|name| name == MANIFEST),
    ) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(Error::NotASnapshot(dir.to_owned())),
    }
}

/// Exchanges two directories at once.
fn exchange(new: &Path, old: &Path) -> Result<(), Error> {
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).map_err(|errno| match errno {
        Errno::INVAL | Errno::NOSYS => Error::NoExchange(old.to_owned()),
        errno => failed("replace", old)(errno.into()),
    })
}

/// The path of work in progress for `path`.
fn beside(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name();
    let name = name.ok_or_else(|| Error::NoName(path.to_owned()))?;
    let hidden = [OsStr::new("."), name, OsStr::new(".new")];
    Ok(path.with_file_name(hidden.join(OsStr::new(""))))
}

fn fill(work: &WorkDir, contents: &Contents<'_>, before: Before<'_>) -> io::Result<()> {
    before("memory")?;
    let memory = create(&work.path.join(MEMORY))?;
    (contents.memory)(&memory)?;
    before("sync-memory")?;
    memory.sync_all()?;
    for (step, name, bytes) in [
        ("state", STATE, contents.state),
        // Last, since a directory without it is no snapshot.
        ("manifest", MANIFEST, contents.manifest),
    ] {
        before(step)?;
        let mut file = create(&work.path.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    before("sync-directory")?;
    work.lock.sync_all()
}

/// Creates a file for its owner.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Makes a rename in the directory of `path` durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// A directory under construction, locked against a second writer. Removed on drop.
struct WorkDir {
    path: PathBuf,
    lock: File,
}

impl WorkDir {
    fn new(path: PathBuf) -> Result<Self, Error> {
        let host = failed("create", &path);
        let make = || DirBuilder::new().mode(0o700).create(&path);
        match make() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // A process left it that was killed.
                drop(WorkDir::lock(path.clone())?);
                make().map_err(host)?;
            }
            result => result.map_err(host)?,
        }
        WorkDir::lock(path)
    }

    fn lock(path: PathBuf) -> Result<Self, Error> {
        let lock = File::open(&path).map_err(failed("create", &path))?;
        lock_at(&lock, &path)?;
        Ok(WorkDir { path, lock })
    }
}

impl Drop for WorkDir {
    /// Removes only files that a snapshot has. If the host refuses, the next snapshot tries again.
    fn drop(&mut self) {
        for name in NAMES {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Locks what is open from `path`, unless another process has, or has replaced it meanwhile.
fn lock_at(file: &File, path: &Path) -> Result<(), Error> {
    let busy = || Error::Busy(path.to_owned());
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|_| busy())?;
    let open = file.metadata().map_err(failed("create", path))?;
    let named = fs::symlink_metadata(path).map_err(|_| busy())?;
    match (open.dev(), open.ino()) == (named.dev(), named.ino()) {
        true => Ok(()),
        false => Err(busy()),
    }
}

/// Writes a snapshot as two files, which may exist. The manifest's line and the state are in `snapshot`.
///
/// Each file is replaced at once, and memory first. A process that dies in between leaves two that don't belong
/// together, and their identities tell.
///
/// # Errors
/// [`Error`] says what failed.
pub fn write_files(snapshot: &Path, memory: &Path, contents: &Contents<'_>) -> Result<(), Error> {
    let new_memory = WorkFile::new(memory)?;
    let new_snapshot = WorkFile::new(snapshot)?;
    let filled = (contents.memory)(&new_memory.file).and_then(|()| new_memory.file.sync_all());
    filled.map_err(failed("write", memory))?;
    let mut file = &new_snapshot.file;
    let filled = [contents.manifest, b"\n", contents.state]
        .iter()
        .try_for_each(|bytes| file.write_all(bytes))
        .and_then(|()| file.sync_all());
    filled.map_err(failed("write", snapshot))?;
    for (new, path) in [(new_memory, memory), (new_snapshot, snapshot)] {
        rename(&new.path, path).map_err(|errno| failed("replace", path)(errno.into()))?;
        sync_parent(path).map_err(failed("write", path))?;
    }
    Ok(())
}

/// A file under construction, locked against a second writer. Removed on drop, unless it was renamed.
struct WorkFile {
    path: PathBuf,
    file: File,
}

impl WorkFile {
    fn new(target: &Path) -> Result<Self, Error> {
        let path = beside(target)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&path).map_err(failed("create", &path))?;
        lock_at(&file, &path)?;
        let work = WorkFile { path, file };
        // A process may have left it that was killed.
        work.file.set_len(0).map_err(failed("create", target))?;
        Ok(work)
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
