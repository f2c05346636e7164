// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests for snapshots: Firecracker's, and our own for a directory.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::changes::absent;
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::nets::Net;
use crate::config::{LinkSpec, VmSpec};
use crate::machine::Clock;
use crate::snapshot::{CloneId, Kind, Labels, LoadError, Place, Snapshot, adapt_json};
use crate::vmm::control::{SnapshotOrder, Then};

/// `PUT /snapshot`: a directory.
pub(super) fn directory(mut fields: Fields) -> Result<SnapshotOrder, Fault> {
    let dir = fields.path("directory")?;
    let keep_running = fields.switch("keep_running")?;
    let is_diff = fields.switch("diff")?;
    fields.finish()?;
    Ok(SnapshotOrder {
        place: Place::Directory(Fields::required("directory", dir)?),
        kind: match is_diff {
            Some(true) => Kind::Diff,
            _ => Kind::Full,
        },
        then: match keep_running {
            Some(true) => Then::GoOn,
            _ => Then::Pause,
        },
        labels: Labels::default(),
    })
}

/// `PUT /snapshot/create`: two files of a machine that is paused.
pub(super) fn files(mut fields: Fields) -> Result<SnapshotOrder, Fault> {
    let snapshot = fields.path("snapshot_path")?;
    let memory = fields.path("mem_file_path")?;
    let kind = fields.choice("snapshot_type", &["Full", "Diff"])?;
    fields.finish()?;
    let snapshot = Fields::required("snapshot_path", snapshot)?;
    let memory = Fields::required("mem_file_path", memory)?;
    if snapshot == memory {
        let why = "this is also snapshot_path; give two names";
        return Err(wrong("mem_file_path", why));
    }
    Ok(SnapshotOrder {
        place: Place::Files { snapshot, memory },
        kind: match kind {
            Some("Diff") => Kind::Diff,
            _ => Kind::Full,
        },
        then: Then::StayPaused,
        labels: Labels::default(),
    })
}

/// A machine that is to be loaded.
#[derive(Debug)]
pub(super) struct Load {
    place: Place,
    /// The socket of the process that brings the memory, if it is not in a file.
    handler: Option<PathBuf>,
    pub runs: bool,
    pub clock: Clock,
    /// Whether changes of memory are marked after each snapshot.
    pub tracks: bool,
    /// The number of this clone.
    number: Option<CloneId>,
    /// What a machine from a directory gets of the host, as in a config file.
    options: Map<String, Value>,
    /// The taps of networks: the name of each, and its tap.
    nets: Vec<(String, String)>,
    /// The path of the socket device's socket.
    vsock: Option<PathBuf>,
}

impl Load {
    /// `PUT /snapshot/load`: two files.
    pub fn files(mut fields: Fields) -> Result<Self, Fault> {
        let (place, handler) = two_files(&mut fields)?;
        let mut load = Load::begin(place, &mut fields)?;
        load.handler = handler;
        load.vsock = fields.take("vsock_override").map(socket).transpose()?;
        if let Some(taps) = fields.take("network_overrides") {
            load.nets = overrides(taps)?;
        }
        // The older name.
        load.tracks |= fields.switch("enable_diff_snapshots")? == Some(true);
        fields.finish()?;
        Ok(load)
    }

    /// `PUT /snapshot/restore`: a directory.
    pub fn directory(mut fields: Fields) -> Result<Self, Fault> {
        let dir = Fields::required("directory", fields.path("directory")?)?;
        let mut load = Load::begin(Place::Directory(dir), &mut fields)?;
        load.number = fields.number("clone_id")?.map(clone_id).transpose()?;
        load.options = fields.object("options")?.unwrap_or_default();
        fields.finish()?;
        Ok(load)
    }

    /// What both have.
    fn begin(place: Place, fields: &mut Fields) -> Result<Self, Fault> {
        Ok(Load {
            place,
            handler: None,
            runs: fields.switch("resume_vm")? == Some(true),
            tracks: fields.switch("track_dirty_pages")? == Some(true),
            clock: match fields.switch("clock_realtime")? {
                Some(true) => Clock::GoesOn,
                _ => Clock::Stands,
            },
            number: None,
            options: Map::new(),
            nets: Vec::new(),
            vsock: None,
        })
    }

    /// Opens the snapshot.
    pub fn open(&self) -> Result<Snapshot, LoadError> {
        let mut snapshot = match &self.handler {
            None => Snapshot::open(&self.place)?,
            Some(socket) => Snapshot::open_served(&self.place, socket)?,
        };
        if let Some(number) = self.number {
            snapshot.number(number)?;
        }
        Ok(snapshot)
    }

    /// Gives a machine from a directory what it gets of the host.
    pub fn adapt(&self, saved: VmSpec) -> Result<VmSpec, Fault> {
        match &self.place {
            Place::Directory(_) => {
                adapt_json(saved, &self.options).map_err(|error| wrong("options", error))
            }
            Place::Files { .. } => Ok(saved),
        }
    }

    /// Gives the machine's socket device its socket.
    pub fn move_vsock(&self, spec: &mut VmSpec) -> Result<(), Fault> {
        let Some(path) = &self.vsock else {
            return Ok(());
        };
        let Some(vsock) = &mut spec.vsock else {
            let why = "the machine has no vsock; leave this out";
            return Err(wrong("vsock_override", why));
        };
        vsock.socket = path.clone();
        (spec.check_vsock()).map_err(|error| wrong("vsock_override", error))
    }

    /// Gives the machine's networks their taps.
    pub fn redirect(&self, nets: &mut [Net]) -> Result<(), Fault> {
        for (id, tap) in &self.nets {
            let at = nets.iter().position(|net| net.id == *id);
            let known = nets.iter().map(|net| net.id.as_str());
            let at = at.ok_or_else(|| absent("network_overrides", id, "networks", known))?;
            nets[at].spec.link = LinkSpec::Tap(tap.clone());
        }
        Ok(())
    }
}

/// The fields of two files, and of the socket of the process that brings the memory.
fn two_files(fields: &mut Fields) -> Result<(Place, Option<PathBuf>), Fault> {
    let snapshot = fields.path("snapshot_path")?;
    let backend = fields.take("mem_backend").map(backend).transpose()?;
    let memory = fields.path("mem_file_path")?;
    let snapshot = Fields::required("snapshot_path", snapshot)?;
    let memory = match (backend, memory) {
        (Some(_), Some(_)) => {
            let why = "mem_backend says the same; leave this one out";
            return Err(wrong("mem_file_path", why));
        }
        (backend, memory) => {
            Fields::required("mem_backend", backend.or(memory.map(Backend::File)))?
        }
    };
    let (memory, handler) = match memory {
        Backend::File(path) => (path, None),
        // Nobody looks at a memory file then.
        Backend::Handler(socket) => (PathBuf::new(), Some(socket)),
    };
    Ok((Place::Files { snapshot, memory }, handler))
}

/// The number of `clone_id`.
fn clone_id(number: u64) -> Result<CloneId, Fault> {
    let number = u32::try_from(number).ok().and_then(CloneId::new);
    number.ok_or_else(|| wrong("clone_id", "a clone's number is 1 to 2147483647; give one"))
}

/// Where a machine's memory comes from.
enum Backend {
    /// The memory file.
    File(PathBuf),
    /// The socket of a page fault handler.
    Handler(PathBuf),
}

/// Reads `mem_backend`.
fn backend(value: Value) -> Result<Backend, Fault> {
    let read = |value| {
        let mut fields = Fields::of(value)?;
        let kind = fields.choice("backend_type", &["File", "Uffd"])?;
        let path = fields.path("backend_path")?;
        fields.finish()?;
        let kind = Fields::required("backend_type", kind)?;
        let path = Fields::required("backend_path", path)?;
        Ok(match kind {
            "Uffd" => Backend::Handler(path),
            _ => Backend::File(path),
        })
    };
    read(value).map_err(|fault: Fault| wrong("mem_backend", fault.message))
}

/// The path of `vsock_override`.
fn socket(value: Value) -> Result<PathBuf, Fault> {
    let read = |value| {
        let mut fields = Fields::of(value)?;
        let path = fields.path("uds_path")?;
        fields.finish()?;
        Fields::required("uds_path", path)
    };
    read(value).map_err(|fault| wrong("vsock_override", fault.message))
}

/// The names and taps of `network_overrides`.
fn overrides(value: Value) -> Result<Vec<(String, String)>, Fault> {
    let read = |value| {
        let mut fields = Fields::of(value)?;
        let id = fields.text("iface_id")?;
        let tap = fields.text("host_dev_name")?;
        fields.finish()?;
        Ok((
            Fields::required("iface_id", id)?,
            Fields::required("host_dev_name", tap)?,
        ))
    };
    let Value::Array(list) = value else {
        let why = "this is not a list; give one of objects with iface_id and host_dev_name";
        return Err(wrong("network_overrides", why));
    };
    let all: Result<_, Fault> = list.into_iter().map(read).collect();
    all.map_err(|fault| wrong("network_overrides", fault.message))
}
