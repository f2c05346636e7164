// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens a snapshot and checks it, before any of it is used.

mod error;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use self::error::Error;
pub(super) use self::error::brief;
use super::Place;
use super::format::{Id, Kind, Labels, MAX_MANIFEST, MAX_STATE, Manifest, StateFile};
use super::spans::Spans;
use super::store::{MANIFEST, MEMORY, STATE, overlay_name};
use super::tail::MemoryFile;
use super::tracker::{Base, Tracker};
use super::working_set;
use crate::config::{Draft, SerialSpec, VmSpec};
use crate::devices::SavedOverlay;
use crate::machine::{Clock, Frozen, MachineState};
use crate::memory::{self, Served};

/// What a guest gets to know itself by, in a clone: 1 to 2147483647, so that also 32-bit guests take it for no error.
pub type CloneId = NonZeroU32;

/// The largest clone's number.
const MAX_CLONE_ID: u32 = i32::MAX as u32;

/// A snapshot whose files agree. Nothing was compared with this host yet.
#[derive(Debug)]
pub struct Snapshot {
    /// What it says about itself.
    pub manifest: Manifest,
    /// The machine's description. It has no kernel, and paths only if the snapshot is two files.
    pub spec: VmSpec,
    /// The machine's state.
    pub state: MachineState,
    /// What clients called its devices.
    pub labels: Labels,
    /// The vCPU that asked for it, if the guest did.
    caller: Option<u32>,
    memory: Pages,
    overlays: Vec<SavedOverlay>,
    /// What the host should read ahead of the guest.
    ahead: Spans,
}

/// Where the pages of the guest's memory come from.
#[derive(Debug)]
enum Pages {
    /// From a file.
    File(File),
    /// From the process that listens at this socket.
    Handler(PathBuf),
}

impl Snapshot {
    /// Opens the snapshot at `place` and checks all of it but the memory's contents.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn open(place: &Place) -> Result<Self, Error> {
        Self::open_with(place, |path, manifest| {
            Ok(Pages::File(open_memory(path, manifest)?.file))
        })
    }

    /// As [`open`](Self::open), for memory that the page fault handler at `socket` brings. Nobody looks at the memory
    /// file, which may be missing.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn open_served(place: &Place, socket: &Path) -> Result<Self, Error> {
        Self::open_with(place, |_, _| Ok(Pages::Handler(socket.to_owned())))
    }

    fn open_with(
        place: &Place,
        open: impl FnOnce(&Path, &Manifest) -> Result<Pages, Error>,
    ) -> Result<Self, Error> {
        let Unread {
            manifest,
            state,
            memory,
        } = Unread::at(place)?;
        let Parsed {
            manifest,
            spec,
            state,
            labels,
            caller,
        } = parse(&manifest, &state)?;
        if let (Place::Directory(_), Some(parent)) = (place, manifest.parent) {
            return Err(Error::Changes { parent });
        }
        Ok(Snapshot {
            memory: open(&memory, &manifest)?,
            overlays: open_overlays(place, &manifest)?,
            ahead: working_set::of(place, &manifest),
            manifest,
            spec,
            state,
            labels,
            caller,
        })
    }

    /// Numbers this clone, for a guest that asked for the snapshot. Otherwise it is number 1.
    ///
    /// # Errors
    /// [`Error::NoCaller`] or [`Error::CloneId`].
    pub fn number(&mut self, id: CloneId) -> Result<(), Error> {
        let caller = self.caller.ok_or(Error::NoCaller)?;
        if id.get() > MAX_CLONE_ID {
            return Err(Error::CloneId(id));
        }
        self.state.answer(caller, id.get());
        Ok(())
    }

    /// Lets the host read nothing ahead, whatever was recorded. Then a new record is not of what the last one had.
    pub fn read_nothing_ahead(&mut self) {
        self.ahead.clear();
    }

    /// Maps the guest's memory. The file is not read, and what the guest writes does not reach it. A page fault handler
    /// hears of the memory now.
    ///
    /// # Errors
    /// The host refuses the mapping, or there is no handler.
    pub fn map(self) -> Result<(VmSpec, Frozen, Tracker), memory::Error> {
        let Manifest {
            id, depth, parts, ..
        } = self.manifest;
        let ram = parts.memory.size;
        let (memory, served) = match self.memory {
            Pages::File(file) => {
                working_set::read_ahead(&file, self.ahead);
                (memory::map(file, ram)?, None)
            }
            Pages::Handler(socket) => {
                let memory = memory::allocate(ram)?;
                let served = Served::new(&memory, &socket)?;
                (memory, Some(served))
            }
        };
        let frozen = Frozen {
            memory,
            served,
            state: Box::new(self.state),
            overlays: self.overlays,
            clock: Clock::Stands,
        };
        let tracker = Tracker::restored(Base { id, depth });
        Ok((self.spec, frozen, tracker))
    }
}

/// A snapshot whose files were read, but not understood.
struct Unread {
    manifest: Vec<u8>,
    state: Vec<u8>,
    /// The path of the memory file.
    memory: PathBuf,
}

impl Unread {
    fn at(place: &Place) -> Result<Self, Error> {
        Ok(match place {
            Place::Directory(dir) => Unread {
                manifest: read(&dir.join(MANIFEST), MAX_MANIFEST)?,
                state: read(&dir.join(STATE), MAX_STATE)?,
                memory: dir.join(MEMORY),
            },
            Place::Files { snapshot, memory } => {
                let mut manifest = read(snapshot, MAX_MANIFEST + MAX_STATE)?;
                let end = manifest.iter().position(|byte| *byte == b'\n');
                let end = end.ok_or(Error::Lie("it has no state"))?;
                let state = manifest.split_off(end + 1);
                Unread {
                    manifest,
                    state,
                    memory: memory.clone(),
                }
            }
        })
    }
}

/// A snapshot's directory that is to be merged.
#[derive(Debug)]
pub(super) struct Part {
    pub manifest: Manifest,
    /// The state's bytes. They fit the manifest.
    pub state: Vec<u8>,
    pub memory: MemoryFile,
    pub overlays: Vec<SavedOverlay>,
}

impl Part {
    /// Opens the directory `dir`, whose kind must be `kind`, and checks all of it but the memory's contents.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn open(dir: &Path, kind: Kind) -> Result<Self, Error> {
        let place = Place::Directory(dir.to_owned());
        let Unread {
            manifest,
            state,
            memory,
        } = Unread::at(&place)?;
        let manifest = parse(&manifest, &state)?.manifest;
        let memory = match (kind, manifest.kind) {
            (Kind::Full, Kind::Full) => open_memory(&memory, &manifest)?,
            (Kind::Diff, Kind::Diff) => open_changes(&memory, &manifest)?,
            (Kind::Full, Kind::Diff) => {
                return Err(Error::Order(
                    "the first snapshot is a Diff; merge it onto its own base before",
                ));
            }
            (Kind::Diff, Kind::Full) => return Err(Error::WHOLE),
        };
        Ok(Part {
            overlays: open_overlays(&place, &manifest)?,
            manifest,
            state,
            memory,
        })
    }
}

/// A snapshot without its memory.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What it says about itself.
    pub manifest: Manifest,
    /// The machine's description.
    pub spec: VmSpec,
    /// The machine's state.
    pub state: MachineState,
    /// What clients called its devices.
    pub labels: Labels,
    /// The vCPU that asked for it, if the guest did.
    pub caller: Option<u32>,
}

/// Reads the manifest and the state, and checks that they agree. A pure function.
///
/// # Errors
/// [`Error`] says what is wrong.
pub fn parse(manifest: &[u8], state: &[u8]) -> Result<Parsed, Error> {
    let manifest = Manifest::parse(manifest)?;
    let part = manifest.parts.state;
    if state.len() as u64 != part.size {
        return Err(Error::Damaged("its size is not the manifest's"));
    }
    if crc32fast::hash(state) != part.crc32 {
        return Err(Error::Damaged("its checksum is not the manifest's"));
    }
    let StateFile::<Draft> {
        machine: draft,
        mut state,
        labels,
        caller,
        metadata,
    } = serde_json::from_slice(state).map_err(Error::State)?;
    let mut spec = harmless(draft.finish_partly().map_err(Error::Spec)?);
    spec.mmds = metadata.map(Into::into);
    spec.check_mmds().map_err(Error::Spec)?;
    // A hostile snapshot could make this process share any directory of the host.
    if spec.shares_memory() {
        return Err(Error::Lie(
            "no machine with shared directories or vhost-user devices is saved",
        ));
    }
    check(&manifest, &spec, &state)?;
    if let Some(caller) = caller {
        if caller >= u32::from(spec.cpus) {
            return Err(Error::Lie("none of its vCPUs asked for it"));
        }
        state.answer(caller, 1);
    }
    Ok(Parsed {
        manifest,
        spec,
        state,
        labels,
        caller,
    })
}

/// The description without paths that nobody needs to restore the machine. Otherwise, a hostile snapshot could make this
/// process create or empty a file. Of consoles only their existence stays.
pub(super) fn harmless(spec: VmSpec) -> VmSpec {
    VmSpec {
        kernel: PathBuf::new(),
        initrd: None,
        serial: on_stdio(&spec.serial),
        console: on_stdio(&spec.console),
        metrics: None,
        event_log: None,
        timeout: None,
        snapshot_dir: None,
        ..spec
    }
}

/// A console on the standard streams, if there is one.
fn on_stdio(console: &SerialSpec) -> SerialSpec {
    match console {
        SerialSpec::Off => SerialSpec::Off,
        _ => SerialSpec::Stdio,
    }
}

/// Checks that manifest, description and state are of one machine.
fn check(manifest: &Manifest, spec: &VmSpec, state: &MachineState) -> Result<(), Error> {
    let cpus = usize::from(spec.cpus);
    let devices = manifest.devices.iter();
    let has_devices = devices.eq(state
        .devices
        .iter()
        .map(|device| (&device.id, device.version)));
    // The same disks, each once.
    let overlays = spec.disk.iter().enumerate();
    let overlays = overlays.filter(|(_, disk)| disk.overlay.is_some());
    let parts = manifest.parts.overlays.iter().map(|part| part.disk);
    let has_overlays = overlays.map(|(number, _)| number).eq(parts);
    let agreements = [
        (
            state.vcpus.len() == cpus,
            "it has the state of another number of vCPUs",
        ),
        (
            manifest.cpus as usize == cpus,
            "its numbers of vCPUs differ",
        ),
        (
            manifest.parts.memory.size == spec.memory,
            "its sizes of memory differ",
        ),
        (
            manifest.cpu_vendor == state.cpu_vendor(),
            "its CPU vendors differ",
        ),
        (
            manifest.route == spec.hypercall.to_string(),
            "its routes of hypercalls differ",
        ),
        (has_devices, "its lists of devices differ"),
        (has_overlays, "its disks have other overlays"),
    ];
    match agreements.into_iter().find(|(agrees, _)| !agrees) {
        None => Ok(()),
        Some((_, what)) => Err(Error::Lie(what)),
    }
}

/// The identity of the snapshot at `place`, if there is one. Its memory should have `ram` bytes.
pub(super) fn identity(place: &Place, ram: u64) -> Option<Id> {
    match place {
        Place::Directory(dir) => {
            let manifest = read(&dir.join(MANIFEST), MAX_MANIFEST).ok()?;
            Some(Manifest::parse(&manifest).ok()?.id)
        }
        Place::Files { memory, .. } => {
            let chain = MemoryFile::open(memory, ram).ok()?.chain().ok()?;
            chain.last().map(|last| last.id)
        }
    }
}

/// Opens a regular file. Waits for nothing.
pub(super) fn open(path: &Path) -> Result<(File, u64), Error> {
    let read = |reason| Error::Read {
        path: path.to_owned(),
        reason,
    };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(read)?;
    let about = file.metadata().map_err(read)?;
    match about.is_file() {
        true => Ok((file, about.len())),
        false => Err(Error::File {
            path: path.to_owned(),
            what: "is no file",
        }),
    }
}

/// Reads a file of at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    let (file, size) = open(path)?;
    // All in one call, unless the file grows.
    let mut bytes = Vec::with_capacity(size.min(max) as usize + 1);
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|reason| Error::Read {
            path: path.to_owned(),
            reason,
        })?;
    match bytes.len() as u64 > max {
        false => Ok(bytes),
        true => Err(Error::File {
            path: path.to_owned(),
            what: "is too large",
        }),
    }
}

/// Opens a memory file, and checks that it is complete and belongs to the manifest.
fn open_memory(path: &Path, manifest: &Manifest) -> Result<MemoryFile, Error> {
    let memory = MemoryFile::open(path, manifest.parts.memory.size)?;
    let id = memory.chain()?.last().map_or(manifest.id, |last| last.id);
    pair(id, manifest)?;
    Ok(memory)
}

/// Opens a Diff's memory file, and checks that it is complete and belongs to the manifest.
fn open_changes(path: &Path, manifest: &Manifest) -> Result<MemoryFile, Error> {
    let memory = MemoryFile::open(path, manifest.parts.memory.size)?;
    let tail = memory.diff(manifest.depth)?;
    pair(tail.id, manifest)?;
    match tail.parent == manifest.parent {
        true => Ok(memory),
        false => Err(Error::Lie("its parents differ")),
    }
}

/// Checks that memory belongs to a manifest.
fn pair(memory: Id, manifest: &Manifest) -> Result<(), Error> {
    let state = manifest.id;
    match memory == state {
        true => Ok(()),
        false => Err(Error::Pair { memory, state }),
    }
}

/// Opens the overlays of a snapshot. They are read when they are copied.
fn open_overlays(place: &Place, manifest: &Manifest) -> Result<Vec<SavedOverlay>, Error> {
    let parts = manifest.parts.overlays.iter();
    let Place::Directory(dir) = place else {
        return match parts.len() {
            0 => Ok(Vec::new()),
            _ => Err(Error::Lie("two files can't have overlays")),
        };
    };
    let overlays = parts.map(|part| {
        let path = dir.join(overlay_name(part.disk));
        match open(&path)? {
            (file, size) if size == part.size => Ok(SavedOverlay {
                disk: part.disk,
                file,
                size,
                crc32: part.crc32,
            }),
            _ => Err(Error::File {
                path,
                what: "has another size than the manifest says",
            }),
        }
    });
    overlays.collect()
}

#[cfg(test)]
pub(crate) mod tests;
