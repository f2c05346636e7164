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
use crate::config::{DiskSpec, Format, VmSpec};
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

    /// The command for `PATCH /drives/{id}`. Opens the new image, if there is one.
    pub(super) fn change_drive(&mut self, patch: DrivePatch) -> Result<Command, Fault> {
        let DrivePatch { at, path, limits } = patch;
        let mut disk = self.drives[at].spec.clone();
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
        self.drives[at].spec = disk;
        if image.is_none() && limits.is_none() {
            return Ok(Command::ResizeDisks);
        }
        let disk = at;
        Ok(Command::ChangeDisk(DiskChange {
            disk,
            image,
            limits,
        }))
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
    fn writes_to(&self, spec: &VmSpec) -> bool {
        let log = self.logger.as_ref().and_then(|logger| logger.path.as_ref());
        let mut outputs = inputs::outputs(spec).chain(log);
        outputs.any(|output| inputs::same_as(output, spec).is_some())
    }

    /// Reads the body of `PATCH /network-interfaces/{id}`.
    pub(super) fn read_net_patch(&self, id: &str, mut fields: Fields) -> Result<NetChange, Fault> {
        check_id("iface_id", id, fields.text("iface_id")?)?;
        let (rx, tx) = (
            fields.take("rx_rate_limiter"),
            fields.take("tx_rate_limiter"),
        );
        fields.finish()?;
        let at = self.nets.iter().position(|net| net.id == id);
        let ids = self.nets.iter().map(|net| net.id.as_str());
        let net = at.ok_or_else(|| absent("iface_id", id, "networks", ids))?;
        let spec = &self.nets[net].spec;
        Ok(NetChange {
            net,
            rx: limits("rx_rate_limiter", rx, spec.rx)?,
            tx: limits("tx_rate_limiter", tx, spec.tx)?,
        })
    }

    /// The command for `PATCH /network-interfaces/{id}`.
    pub(super) fn change_net(&mut self, change: NetChange) -> Command {
        let NetChange { net, rx, tx } = change;
        for spec in [&mut self.nets[net].spec, &mut self.spec.net[net]] {
            (spec.rx, spec.tx) = (rx, tx);
        }
        Command::LimitNet(change)
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
