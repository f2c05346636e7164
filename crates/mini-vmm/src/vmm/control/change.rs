// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of devices that are in use.

use std::path::PathBuf;

use virtio_models::block::Image;
use virtio_models::rate::Limits;

use super::Error;
use crate::config::{DeviceAt, VmSpec};
use crate::devices::Offers;

/// A change of a disk. What is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskChange {
    /// The disk.
    pub disk: DeviceAt,
    /// The image that takes the place of the present one, and its path. The requests in flight end first.
    pub image: Option<(PathBuf, Image)>,
    /// The limits.
    pub limits: Option<Limits>,
}

impl DiskChange {
    /// Changes the disk, and its description in `spec`.
    pub(crate) fn apply(&self, offers: &Offers, spec: &mut VmSpec) -> Result<(), Error> {
        let at = self.disk.index(&spec.disk).ok_or(Error::NoDevice)?;
        let disk = offers.disks.get(at).ok_or(Error::NoDevice)?;
        let described = spec.disk.get_mut(at).ok_or(Error::NoDevice)?;
        if let Some((path, image)) = &self.image {
            disk.replace(image)?;
            described.path.clone_from(path);
        }
        if let Some(limits) = self.limits {
            disk.limit(limits);
            (described.bandwidth, described.iops) = (limits.bandwidth, limits.iops);
        }
        Ok(())
    }
}

/// The limits of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetChange {
    /// The network.
    pub net: DeviceAt,
    /// Those of what the guest receives.
    pub rx: Limits,
    /// Those of what the guest sends.
    pub tx: Limits,
}

impl NetChange {
    /// Changes the network, and its description in `spec`.
    pub(crate) fn apply(&self, offers: &Offers, spec: &mut VmSpec) -> Result<(), Error> {
        let at = self.net.index(&spec.net).ok_or(Error::NoDevice)?;
        let net = offers.nets.get(at).ok_or(Error::NoDevice)?;
        let described = spec.net.get_mut(at).ok_or(Error::NoDevice)?;
        net.limit(self.rx, self.tx);
        (described.rx, described.tx) = (self.rx, self.tx);
        Ok(())
    }
}
