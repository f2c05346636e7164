// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots on disk: a machine's state, its description and its memory.
//!
//! A snapshot is a directory with a manifest, the state and the memory; or, in Firecracker's words, two files, of which
//! the first has manifest and state. `docs/snapshots.md` describes them. The memory file can be mapped as it is.

mod adapt;
mod format;
mod load;
mod memory;
mod merge;
mod overlays;
mod pages;
mod put;
mod spans;
mod store;
mod tail;
mod tracker;
mod working_set;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use self::adapt::{AdaptError, DEVICES, OVERRIDES, adapt, adapt_json};
pub use self::format::{DeviceVersion, FORMAT, Id, Kind, Labels, Manifest, Region};
use self::format::{MemoryPart, Parts, StateFile, StatePart};
use self::load::harmless;
#[cfg(test)]
pub(crate) use self::load::tests as format_1;
pub use self::load::{CloneId, Error as LoadError, Parsed, Snapshot, parse};
pub use self::merge::{MergeError, merge};
use self::overlays::Overlay;
pub use self::pages::Pages;
use self::put::Content;
pub use self::put::Wish;
use self::tracker::Base;
pub use self::tracker::Tracker;
pub use self::working_set::Recorder;
use crate::config::VmSpec;
use crate::machine::{self, Machine};

/// Where a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// Two files.
    Files {
        /// The manifest and the state.
        snapshot: PathBuf,
        /// The guest's memory.
        memory: PathBuf,
    },
}

/// Why there is no snapshot. What was at its place is still there, except after [`Error::NotDurable`] and [`Error::Half`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused a step.
    #[error("can't {what} {path:?} ({reason}); {}", hint(reason))]
    Host {
        /// The step.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The host's error.
        reason: io::Error,
    },
    /// Something else has the name.
    #[error("{0:?} exists and is no snapshot, so it is not replaced; choose another name")]
    NotASnapshot(PathBuf),
    /// A directory, a device or the like has the name.
    #[error("{0:?} exists and is no regular file, so it is not replaced; choose another name")]
    NotAFile(PathBuf),
    /// The machine uses the file.
    #[error("{0:?} is a file of this machine, so it is not replaced; choose another name")]
    OwnFile(PathBuf),
    /// The new snapshot is in place, but a loss of power may undo that.
    #[error(
        "the snapshot is at {path:?}, but may not outlive a loss of power ({reason}); {}take another one",
        kept(old.as_deref())
    )]
    NotDurable {
        /// The snapshot.
        path: PathBuf,
        /// Where the old one is.
        old: Option<PathBuf>,
        /// The host's error.
        reason: io::Error,
    },
    /// Only one of two files was replaced.
    #[error(
        "{new:?} is replaced and {old:?} is not ({reason}), so they don't belong together; take another snapshot"
    )]
    Half {
        /// The memory, which is new.
        new: PathBuf,
        /// The manifest and the state, which are old or not there.
        old: PathBuf,
        /// The host's error.
        reason: io::Error,
    },
    /// A Diff would replace what it needs.
    #[error("a Diff does not replace the snapshot that it continues; choose another name")]
    OwnBase,
    /// A chain of Diffs is too long.
    #[error(
        "there are {} Diffs since the last Full snapshot; take a Full one",
        format::MAX_DEPTH
    )]
    LongChain,
    /// The path has no name at its end.
    #[error("{0:?} does not end with a name; give the path of a snapshot, such as ./snap")]
    NoName(PathBuf),
    /// Another process works there.
    #[error("{0:?}: another snapshot is being written here; wait for its end")]
    Busy(PathBuf),
    /// The file system can't replace a directory at once.
    #[error(
        "{0:?}: this file system can't exchange two directories, so the old snapshot stays; choose another name"
    )]
    NoExchange(PathBuf),
    /// The machine is sealed.
    #[error("a sealed machine opens no files, so it has no snapshots; run it without --sealed")]
    Sealed,
    /// Another process has a part of the machine.
    #[error(
        "the machine has shared directories or vhost-user devices, whose state other processes have, so it has no \
         snapshots; run it without --share and --vhost-user"
    )]
    OtherProcesses,
    /// Two files have no place for what the guest wrote to a disk.
    #[error(
        "disk {path:?} has an overlay, for which two files have no place; take a snapshot to a directory, as `mini-vmm ctl` does"
    )]
    Overlay {
        /// The image.
        path: PathBuf,
    },
    /// The machine is about to end.
    #[error(
        "a signal, a stop, the console or the time limit ends the machine, so its snapshot was given up; what was there \
         before is still there"
    )]
    GivenUp,
    /// What would be written could not be read again.
    #[error("this machine's snapshot could not be read again: {0}")]
    Unreadable(#[source] LoadError),
    /// The machine's state can't be read.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The machine can't be described in JSON.
    #[error("JSON can't hold this machine: {0}; rename its files")]
    Json(#[from] serde_json::Error),
}

/// What to do about an error of the host.
fn hint(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space, and try again",
        io::ErrorKind::FileTooLarge => "raise the limit on files' sizes (ulimit -f)",
        io::ErrorKind::NotFound => "create its directory first",
        _ => "choose a place where this process may write",
    }
}

/// Where the old snapshot is.
fn kept(old: Option<&Path>) -> String {
    old.map_or_else(String::new, |old| {
        format!("the old one is {old:?} until you ")
    })
}

impl Place {
    /// Whether paths of the machine's files may be in it. Who opens a directory names the files again, so that it can be
    /// moved, and can't make a stranger's machine use any file of the host.
    const fn keeps_paths(&self) -> bool {
        matches!(self, Place::Files { .. })
    }
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The machine, which is paused.
    pub machine: &'a Machine,
    /// Its description.
    pub spec: &'a VmSpec,
    /// Names that clients gave to its devices.
    pub labels: &'a Labels,
    /// The vCPU that asked for the snapshot, if the guest did.
    pub caller: Option<u32>,
}

/// Writes a snapshot. `tracker` knows the machine's changes. Without it, the snapshot has all memory, and no Diff continues
/// it. `goes_on` is asked every few milliseconds while memory is written.
///
/// # Errors
/// [`Error`] says what failed; [`Error::GivenUp`] if `goes_on` said no. The machine and what was at the place are
/// unchanged.
pub fn write(
    subject: &Subject<'_>,
    wish: Wish<'_>,
    tracker: Option<&mut Tracker>,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let Subject { machine, spec, .. } = *subject;
    check(spec, wish.place)?;
    let base = wish.base(tracker.as_deref(), spec)?;
    let file = StateFile {
        machine: describe(spec, machine.shared_memory(), wish.place.keeps_paths())?,
        state: machine.save()?,
        labels: subject.labels.clone(),
        caller: subject.caller,
        metadata: spec.mmds.as_ref().map(Into::into),
    };
    let is_given_up = Cell::new(false);
    let goes_on = || {
        is_given_up.set(!goes_on());
        !is_given_up.get()
    };
    let state = serde_json::to_vec(&file)?;
    let manifest = manifest(&file, spec, &state, base)?;
    let written = write_parts(machine, spec, manifest, &state, wish, tracker, &goes_on);
    written.map_err(|error| match is_given_up.get() {
        true => Error::GivenUp,
        false => error,
    })
}

/// Writes the state with all that belongs to it.
fn write_parts(
    machine: &Machine,
    spec: &VmSpec,
    mut manifest: Manifest,
    state: &[u8],
    wish: Wish<'_>,
    tracker: Option<&mut Tracker>,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let overlays = overlays::open(machine).map_err(|reason| Error::Host {
        what: "read an overlay for",
        path: PathBuf::from("the snapshot"),
        reason,
    })?;
    manifest.parts.overlays = overlays.iter().map(Overlay::part).collect();
    parse(&serde_json::to_vec(&manifest)?, state).map_err(Error::Unreadable)?;
    let content = Content {
        manifest: &manifest,
        state,
        memory: machine.memory(),
        is_served: machine.has_served_memory(),
        returned: machine.devices.offers().returned.as_ref(),
        overlays: &overlays,
    };
    content.put(spec, wish, tracker, goes_on)
}

/// Checks that a snapshot of this machine can be complete.
fn check(spec: &VmSpec, place: &Place) -> Result<(), Error> {
    if spec.sealed {
        return Err(Error::Sealed);
    }
    if spec.shares_memory() {
        return Err(Error::OtherProcesses);
    }
    let mut disks = spec.disk.iter();
    match disks.find(|disk| disk.overlay.is_some() && place.keeps_paths()) {
        Some(disk) => Err(Error::Overlay {
            path: disk.path.clone(),
        }),
        None => Ok(()),
    }
}

/// The description of a machine that goes on: without what only its start needed, and without its logs.
fn describe(
    spec: &VmSpec,
    shared_size: Option<u64>,
    keeps_paths: bool,
) -> Result<Map<String, Value>, serde_json::Error> {
    let mut spec = harmless(spec.clone());
    if let Some(shared) = &mut spec.shared_memory {
        shared.size = shared_size;
        if !keeps_paths {
            shared.path = name(&shared.path);
        }
    }
    if !keeps_paths {
        for disk in &mut spec.disk {
            disk.path = name(&disk.path);
            disk.overlay = disk.overlay.take().map(|_| PathBuf::from("tmp"));
        }
        spec.cloud_init = spec.cloud_init.as_deref().map(name);
    }
    match serde_json::to_value(&spec)? {
        Value::Object(map) => Ok(map),
        other => Ok(Map::from_iter([("machine".to_owned(), other)])),
    }
}

/// The last part of a path.
fn name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy());
    PathBuf::from(name.as_deref().unwrap_or("disk"))
}

fn manifest(
    file: &StateFile,
    spec: &VmSpec,
    state: &[u8],
    base: Option<Base>,
) -> Result<Manifest, Error> {
    let id = new_id().map_err(|errno| Error::Host {
        what: "get random numbers for",
        path: PathBuf::from("the snapshot"),
        reason: errno.into(),
    })?;
    let regions = crate::memory::regions(spec.memory);
    let devices = file.state.devices.iter();
    Ok(Manifest {
        format: FORMAT,
        program: concat!("mini-vmm ", env!("CARGO_PKG_VERSION")).to_owned(),
        id,
        parent: base.map(|base| base.id),
        depth: base.map_or(0, |base| base.depth + 1),
        kind: base.map_or(Kind::Full, |_| Kind::Diff),
        cpu_vendor: file.state.cpu_vendor(),
        cpus: u32::from(spec.cpus),
        memory: regions
            .iter()
            .map(|(start, size)| Region {
                start: start.0,
                size: *size as u64,
            })
            .collect(),
        devices: devices
            .map(|device| DeviceVersion {
                id: device.id.clone(),
                version: device.version,
            })
            .collect(),
        route: spec.hypercall.to_string(),
        parts: Parts {
            state: StatePart {
                version: 1,
                size: state.len() as u64,
                crc32: crc32fast::hash(state),
            },
            memory: MemoryPart {
                version: 1,
                size: spec.memory,
            },
            overlays: Vec::new(),
        },
    })
}

/// A new identity.
fn new_id() -> Result<Id, rustix::io::Errno> {
    let mut bytes = [0; 16];
    // The kernel fills up to 256 bytes at once.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(Id(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskSpec, ShareSpec};

    #[test]
    fn what_a_snapshot_would_lack_is_refused() {
        let spec = || VmSpec::new("vmlinux");
        let dir = Place::Directory("snap".into());
        let files = Place::Files {
            snapshot: "state".into(),
            memory: "memory".into(),
        };
        check(&spec(), &files).unwrap();
        let sealed = VmSpec {
            sealed: true,
            ..spec()
        };
        assert!(matches!(check(&sealed, &dir), Err(Error::Sealed)));
        let shares = VmSpec {
            share: vec![ShareSpec::new(".")],
            ..spec()
        };
        assert!(matches!(check(&shares, &dir), Err(Error::OtherProcesses)));
        let overlay = DiskSpec {
            overlay: Some("tmp".into()),
            ..DiskSpec::new("disk")
        };
        let overlay = VmSpec {
            disk: vec![overlay],
            ..spec()
        };
        assert!(matches!(
            check(&overlay, &files),
            Err(Error::Overlay { .. })
        ));
        check(&overlay, &dir).unwrap();
    }
}
