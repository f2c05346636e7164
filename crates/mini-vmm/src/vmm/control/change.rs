// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of devices that are in use.

use std::path::PathBuf;

use virtio_models::block::Image;
use virtio_models::rate::Limits;

use super::Error;
use crate::config::VmSpec;
use crate::devices::Offers;

/// A change of a disk. What is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskChange {
    /// The disk's number, from 0 on.
    pub disk: usize,
    /// The image that takes the place of the present one, and its path. The requests in flight end first.
    pub image: Option<(PathBuf, Image)>,
    /// The limits.
    pub limits: Option<Limits>,
}

impl DiskChange {
    /// Changes the disk, and its description in `spec`.
    pub(crate) fn apply(&self, offers: &Offers, spec: &mut VmSpec) -> Result<(), Error> {
        let disk = offers.disks.get(self.disk).ok_or(Error::NoDevice)?;
        let described = spec.disk.get_mut(self.disk).ok_or(Error::NoDevice)?;
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
    /// The network's number, from 0 on.
    pub net: usize,
    /// Those of what the guest receives.
    pub rx: Limits,
    /// Those of what the guest sends.
    pub tx: Limits,
}

impl NetChange {
    /// Changes the network, and its description in `spec`.
    pub(crate) fn apply(&self, offers: &Offers, spec: &mut VmSpec) -> Result<(), Error> {
        let net = offers.nets.get(self.net).ok_or(Error::NoDevice)?;
        let described = spec.net.get_mut(self.net).ok_or(Error::NoDevice)?;
        net.limit(self.rx, self.tx);
        (described.rx, described.tx) = (self.rx, self.tx);
        Ok(())
    }
}
