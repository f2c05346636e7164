// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Puts the files of a snapshot in their place, whole or not at all.
//!
//! They are written beside it, under a name that only this module uses, and reach stable storage before they are
//! renamed. So a process or host that dies at any moment leaves what was there before. What it leaves beside is
//! removed by the next snapshot to the same place.

mod files;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, rename,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

pub use self::files::{write_files, write_memory};
use super::Error;

/// The names in a snapshot's directory.
pub const MANIFEST: &str = "manifest.json";
/// The file with the state.
pub const STATE: &str = "state.json";
/// The file with guest memory.
pub const MEMORY: &str = "memory";
/// The file with what a restored machine touched, and the same while it is written.
pub const WORKING_SET: &str = "working-set";
pub const NEW_WORKING_SET: &str = "working-set.new";
/// What each snapshot has.
const NAMES: [&str; 3] = [MANIFEST, STATE, MEMORY];
/// What is added to one later.
const ADDED: [&str; 2] = [WORKING_SET, NEW_WORKING_SET];
const OVERLAY: &str = "overlay";

/// The file with the overlay of a disk.
pub fn overlay_name(disk: usize) -> String {
    format!("{OVERLAY}{disk}")
}

/// Whether a snapshot may have a file with this name.
fn is_ours(name: &[u8]) -> bool {
    let number = name.strip_prefix(OVERLAY.as_bytes());
    let is_overlay = number.is_some_and(|number| {
        (1..=2).contains(&number.len()) && number.iter().all(u8::is_ascii_digit)
    });
    let mut ours = NAMES.iter().chain(&ADDED);
    is_overlay || ours.any(|ours| ours.as_bytes() == name)
}

/// Called before each step. Tests fail or kill the process there.
type Before<'a> = &'a dyn Fn(&'static str) -> io::Result<()>;

/// What the files hold.
pub struct Contents<'a> {
    /// Makes the manifest, when the overlays have these checksums.
    pub manifest: &'a dyn Fn(&[u32]) -> io::Result<Vec<u8>>,
    /// The state.
    pub state: &'a [u8],
    /// Writes guest memory to an empty file.
    pub memory: &'a dyn Fn(&File) -> io::Result<()>,
    /// The numbers of disks with overlays. Only a directory has these.
    pub overlays: &'a [usize],
    /// Writes a copy of a disk's overlay to an empty file. Returns its CRC-32.
    pub overlay: &'a dyn Fn(usize, &File) -> io::Result<u32>,
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
/// [`Error`] says what failed. What was there is still there, except after [`Error::NotDurable`].
pub fn write_directory(dir: &Path, contents: &Contents<'_>) -> Result<(), Error> {
    write_directory_with(dir, contents, &|_| Ok(()))
}

fn write_directory_with(
    dir: &Path,
    contents: &Contents<'_>,
    before: Before<'_>,
) -> Result<(), Error> {
    let dir = &followed(dir);
    // Before minutes of work.
    replaceable(dir)?;
    let work = WorkDir::new(beside(dir)?)?;
    fill(&work, contents, before).map_err(failed("write", &work.path))?;
    before("swap").map_err(failed("replace", dir))?;
    let old = work.put_at(dir)?;
    let synced = before("sync-parent").and_then(|()| sync_parent(dir));
    if let Err(reason) = synced {
        return Err(Error::NotDurable {
            path: dir.clone(),
            old: old.map(WorkDir::keep),
            reason,
        });
    }
    before("remove").map_err(failed("replace", dir))?;
    drop(old);
    Ok(())
}

/// A symlink stays, and what it names is replaced.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The snapshot that is at `dir`. Something else must not be there, but an empty directory may.
fn replaceable(dir: &Path) -> Result<Option<File>, Error> {
    let look = failed("look into", dir);
    let open = match open_directory(dir) {
        Ok(open) => open,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(look(error)),
    };
    let (mut is_empty, mut has_manifest) = (true, false);
    for entry in Dir::read_from(&open).map_err(|errno| look(errno.into()))? {
        let entry = entry.map_err(|errno| look(errno.into()))?;
        let name = entry.file_name().to_bytes();
        if [&b"."[..], b".."].contains(&name) {
            continue;
        }
        if !is_ours(name) {
            return Err(Error::NotASnapshot(dir.to_owned()));
        }
        is_empty = false;
        has_manifest |= name == MANIFEST.as_bytes();
    }
    match (is_empty, has_manifest) {
        (true, _) => Ok(None),
        (_, true) => Ok(Some(open)),
        _ => Err(Error::NotASnapshot(dir.to_owned())),
    }
}

/// Opens a directory. Follows no symlink and waits for nothing.
fn open_directory(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path)
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
    let memory = work.create(MEMORY)?;
    (contents.memory)(&memory)?;
    before("sync-memory")?;
    memory.sync_all()?;
    let mut sums = Vec::with_capacity(contents.overlays.len());
    for disk in contents.overlays {
        before("overlay")?;
        let file = work.create(&overlay_name(*disk))?;
        sums.push((contents.overlay)(*disk, &file)?);
        file.sync_all()?;
    }
    let manifest = (contents.manifest)(&sums)?;
    for (step, name, bytes) in [
        ("state", STATE, contents.state),
        // Last, since a directory without it is no snapshot.
        ("manifest", MANIFEST, &manifest),
    ] {
        before(step)?;
        let mut file = work.create(name)?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    before("sync-directory")?;
    work.dir.sync_all()
}

/// Makes a rename in the directory of `path` durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// A directory that is not needed unless it is renamed, locked against a second writer. Removed on drop.
struct WorkDir {
    path: PathBuf,
    dir: File,
    is_kept: bool,
}

impl WorkDir {
    fn new(path: PathBuf) -> Result<Self, Error> {
        let make = || DirBuilder::new().mode(0o700).create(&path);
        let mut made = make();
        if is_taken(&made) {
            // A process left it that was killed.
            drop(WorkDir::open(&path)?);
            made = make();
        }
        match made {
            Ok(()) => WorkDir::open(&path),
            taken if is_taken(&taken) => Err(Error::NotASnapshot(path)),
            Err(error) => Err(failed("create", &path)(error)),
        }
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let dir = open_directory(path).map_err(|error| match error.kind() {
            // A symlink, too.
            ErrorKind::NotADirectory => Error::NotASnapshot(path.to_owned()),
            _ => failed("create", path)(error),
        })?;
        lock_at(&dir, path)?;
        Ok(WorkDir {
            path: path.to_owned(),
            dir,
            is_kept: false,
        })
    }

    /// Creates a file in it for its owner.
    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }

    /// Gives it the name `dir`. The snapshot that was there gets this one's name, and its lock.
    fn put_at(self, dir: &Path) -> Result<Option<WorkDir>, Error> {
        // Others may have put something there meanwhile.
        let old = replaceable(dir)?;
        match &old {
            Some(old) => {
                lock_at(old, dir)?;
                exchange(&self.path, dir)?;
            }
            None => rename(&self.path, dir).map_err(|e| failed("create", dir)(e.into()))?,
        }
        // The next writer may replace it.
        let _ = flock(&self.dir, FlockOperation::Unlock);
        let path = self.keep();
        Ok(old.map(|dir| WorkDir {
            path,
            dir,
            is_kept: false,
        }))
    }

    /// Doesn't remove it. Returns its path.
    fn keep(mut self) -> PathBuf {
        self.is_kept = true;
        self.path.clone()
    }
}

impl Drop for WorkDir {
    /// Removes only files that a snapshot has. If the host refuses, the next snapshot tries again.
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let entries = Dir::read_from(&self.dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| is_ours(entry.file_name().to_bytes())) {
            let _ = unlinkat(&self.dir, entry.file_name(), AtFlags::empty());
        }
        if is_at(&self.dir, &self.path) {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Whether something has the name already.
fn is_taken<T>(made: &io::Result<T>) -> bool {
    matches!(made, Err(error) if error.kind() == ErrorKind::AlreadyExists)
}

/// Locks what is open from `path`, unless another process has, or has replaced it meanwhile.
fn lock_at(file: &File, path: &Path) -> Result<(), Error> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_at(file, path) => Ok(()),
        Ok(()) | Err(Errno::WOULDBLOCK) => Err(Error::Busy(path.to_owned())),
        Err(errno) => Err(failed("lock", path)(errno.into())),
    }
}

/// Whether what is open still has this path.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests;
