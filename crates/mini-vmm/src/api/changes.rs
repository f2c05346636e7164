// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of a running machine's devices, as Firecracker describes them. The description follows them.

use std::path::{Path, PathBuf};

use virtio_models::block::Image;
use virtio_models::rate::Limits;

use super::drives::{check_id, limits};
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::{Model, check_readable};
use super::nets::Net;
use crate::config::{BalloonSpec, DeviceAt, DiskSpec, Format, VmSpec};
use crate::devices;
use crate::inputs;
use crate::vmm::control::{Command, DiskChange, NetChange};

/// The body of `PATCH /drives/{id}`.
#[derive(Debug)]
pub(super) struct DrivePatch {
    at: usize,
    /// Another image than now.
    path: Option<PathBuf>,
    limits: Option<Limits>,
}

/// The body of `PATCH /network-interfaces/{id}`.
#[derive(Debug)]
pub(super) struct NetPatch {
    at: usize,
    rx: Limits,
    tx: Limits,
}

impl Model {
    /// Reads the body of `PATCH /drives/{id}`. Opens nothing.
    pub(super) fn read_drive_patch(
        &self,
        id: &str,
        mut fields: Fields,
    ) -> Result<DrivePatch, Fault> {
        check_id("drive_id", id, fields.text("drive_id")?)?;
        let path = fields.path("path_on_host")?;
        let limiter = fields.take("rate_limiter");
        fields.finish()?;
        let at = self.drives.iter().position(|drive| drive.id == id);
        let ids = self.drives.iter().map(|drive| drive.id.as_str());
        let at = at.ok_or_else(|| absent("drive_id", id, "disks", ids))?;
        let drive = &self.drives[at];
        let has_limiter = limiter.is_some();
        let limits = limits("rate_limiter", limiter, drive.limits())?;
        Ok(DrivePatch {
            at,
            path: path.filter(|path| *path != drive.spec.path),
            limits: has_limiter.then_some(limits),
        })
    }

    /// The command for `PATCH /drives/{id}`, and how to undo its effect on the description. Opens the new image, if there
    /// is one.
    pub(super) fn change_drive(&mut self, patch: DrivePatch) -> Result<(Command, Undo), Fault> {
        let DrivePatch { at, path, limits } = patch;
        let before = self.drives[at].spec.clone();
        let mut disk = before.clone();
        let image = match path {
            Some(path) => {
                let image = self.open_instead(at, &path)?;
                disk.path.clone_from(&path);
                Some((path, image))
            }
            None => None,
        };
        if let Some(limits) = limits {
            (disk.bandwidth, disk.iops) = (limits.bandwidth, limits.iops);
        }
        self.spec.disk[at] = disk.clone();
        self.drives[at].spec = disk.clone();
        let id = self.drives[at].id.clone();
        let after = disk;
        let undo = Undo::Drive { id, before, after };
        if image.is_none() && limits.is_none() {
            return Ok((Command::ResizeDisks, undo));
        }
        let change = DiskChange {
            disk: DeviceAt::of(&self.spec.disk, at).unwrap_or(DeviceAt::Number(at)),
            image,
            limits,
        };
        Ok((Command::ChangeDisk(change), undo))
    }

    /// Opens the image that takes the place of a disk's, by the rules for disks of a machine that starts.
    fn open_instead(&self, at: usize, path: &Path) -> Result<Image, Fault> {
        let field = "path_on_host";
        let old = &self.drives[at].spec;
        if self.is_sealed() {
            let why = "a sealed machine has started, so no file can be opened; set it before";
            return Err(wrong(field, why));
        }
        if old.format != Format::Raw || old.overlay.is_some() || old.direct {
            let why = "only a raw image without an overlay and `direct` can be replaced while the machine runs";
            return Err(wrong(field, why));
        }
        check_readable(field, path)?;
        let disk = DiskSpec {
            path: path.to_owned(),
            ..old.clone()
        };
        let mut spec = self.spec.clone();
        spec.disk[at] = disk.clone();
        spec.check_disks().map_err(|error| wrong(field, error))?;
        if self.writes_to(&spec) {
            let why = "this process writes its log, its metrics or the guest's console there; choose another file";
            return Err(wrong(field, why));
        }
        devices::open_disk(&spec, &disk).map_err(|error| wrong(field, error))
    }

    /// Whether this process writes to a file that `spec` is made from.
    pub(super) fn writes_to(&self, spec: &VmSpec) -> bool {
        let log = self.logger.as_ref().and_then(|logger| logger.path.as_ref());
        let mut outputs = inputs::outputs(spec).chain(log);
        outputs.any(|output| inputs::same_as(output, spec).is_some())
    }

    /// Reads the body of `PATCH /network-interfaces/{id}`.
    pub(super) fn read_net_patch(&self, id: &str, mut fields: Fields) -> Result<NetPatch, Fault> {
        check_id("iface_id", id, fields.text("iface_id")?)?;
        let (rx, tx) = (
            fields.take("rx_rate_limiter"),
            fields.take("tx_rate_limiter"),
        );
        fields.finish()?;
        let at = self.nets.iter().position(|net| net.id == id);
        let ids = self.nets.iter().map(|net| net.id.as_str());
        let at = at.ok_or_else(|| absent("iface_id", id, "networks", ids))?;
        let spec = &self.nets[at].spec;
        Ok(NetPatch {
            at,
            rx: limits("rx_rate_limiter", rx, spec.rx)?,
            tx: limits("tx_rate_limiter", tx, spec.tx)?,
        })
    }

    /// The command for `PATCH /network-interfaces/{id}`, and how to undo its effect on the description.
    pub(super) fn change_net(&mut self, patch: NetPatch) -> (Command, Undo) {
        let NetPatch { at, rx, tx } = patch;
        let Net { id, spec } = self.nets[at].clone();
        let undo = Undo::Net {
            id,
            before: [spec.rx, spec.tx],
            after: [rx, tx],
        };
        for spec in [&mut self.nets[at].spec, &mut self.spec.net[at]] {
            (spec.rx, spec.tx) = (rx, tx);
        }
        let net = DeviceAt::of(&self.spec.net, at).unwrap_or(DeviceAt::Number(at));
        (Command::LimitNet(NetChange { net, rx, tx }), undo)
    }

    /// Undoes a change that the machine refused, where nothing else has changed since. One that `is_done` is undone only if it
    /// is a removal, which the description has not seen yet.
    pub(super) fn settle(&mut self, undo: Undo, is_done: bool) {
        match undo {
            Undo::Added { slot } if !is_done => self.drop_device(slot),
            Undo::Removed { slot } if is_done => self.drop_device(slot),
            Undo::Added { .. } | Undo::Removed { .. } => {}
            _ if is_done => {}
            Undo::Drive { id, before, after } => {
                let at = self.drives.iter().position(|drive| drive.id == id);
                let Some(at) = at else { return };
                let disk = &mut self.drives[at].spec;
                put_back(&mut disk.path, before.path, &after.path);
                put_back(&mut disk.bandwidth, before.bandwidth, &after.bandwidth);
                put_back(&mut disk.iops, before.iops, &after.iops);
                self.spec.disk[at] = disk.clone();
            }
            Undo::Net { id, before, after } => {
                let at = self.nets.iter().position(|net| net.id == id);
                let Some(at) = at else { return };
                let net = &mut self.nets[at].spec;
                put_back(&mut net.rx, before[0], &after[0]);
                put_back(&mut net.tx, before[1], &after[1]);
                self.spec.net[at] = net.clone();
            }
            Undo::Balloon { before, after } => {
                put_back(&mut self.spec.balloon, before, &after);
            }
        }
    }
}

/// What a change did to the description. It is there at once, so that the next change builds on it, except that a removed
/// device stays until the guest has given it up.
#[derive(Debug)]
pub(super) enum Undo {
    Drive {
        id: String,
        before: DiskSpec,
        after: DiskSpec,
    },
    /// A device in this slot is new.
    Added { slot: u8 },
    /// The device in this slot is to go.
    Removed { slot: u8 },
    /// The limits of what the guest receives, and of what it sends.
    Net {
        id: String,
        before: [Limits; 2],
        after: [Limits; 2],
    },
    Balloon {
        before: Option<BalloonSpec>,
        after: Option<BalloonSpec>,
    },
}

fn put_back<T: PartialEq>(now: &mut T, before: T, after: &T) {
    if now == after {
        *now = before;
    }
}

/// A request for a device that there isn't.
pub(super) fn absent<'a>(
    field: &str,
    id: &str,
    kind: &str,
    known: impl Iterator<Item = &'a str>,
) -> Fault {
    let known = known.collect::<Vec<_>>().join(", ");
    wrong(
        field,
        format_args!("there is no {id:?}; the {kind} are: {known}"),
    )
}
