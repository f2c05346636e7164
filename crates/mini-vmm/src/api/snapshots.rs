// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests for snapshots: Firecracker's, and our own for a directory.

use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::snapshot::Place;
use crate::vmm::control::{SnapshotOrder, Then};

/// `PUT /snapshot`: a directory.
pub(super) fn directory(mut fields: Fields) -> Result<SnapshotOrder, Fault> {
    let dir = fields.path("directory")?;
    let keep_running = fields.switch("keep_running")?;
    fields.finish()?;
    Ok(SnapshotOrder {
        place: Place::Directory(Fields::required("directory", dir)?),
        then: match keep_running {
            Some(true) => Then::GoOn,
            _ => Then::Pause,
        },
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
    if kind == Some("Diff") {
        let why = "this version writes no Diff; leave the field out, a Full snapshot has holes where memory is zero";
        return Err(wrong("snapshot_type", why));
    }
    if snapshot == memory {
        let why = "this is also snapshot_path; give two names";
        return Err(wrong("mem_file_path", why));
    }
    Ok(SnapshotOrder {
        place: Place::Files { snapshot, memory },
        then: Then::StayPaused,
    })
}
