// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of devices that are in use.

use virtio_models::block::Image;
use virtio_models::rate::Limits;

use super::Error;
use crate::devices::Offers;

/// A change of a disk. What is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskChange {
    /// The disk's number, from 0 on.
    pub disk: usize,
    /// The image that takes the place of the present one. The requests in flight end first.
    pub image: Option<Image>,
    /// The limits.
    pub limits: Option<Limits>,
}

impl DiskChange {
    pub(crate) fn apply(&self, offers: &Offers) -> Result<(), Error> {
        let disk = offers.disks.get(self.disk).ok_or(Error::NoDevice)?;
        if let Some(image) = &self.image {
            disk.replace(image)?;
        }
        if let Some(limits) = self.limits {
            disk.limit(limits);
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
    pub(crate) fn apply(&self, offers: &Offers) -> Result<(), Error> {
        let net = offers.nets.get(self.net).ok_or(Error::NoDevice)?;
        net.limit(self.rx, self.tx);
        Ok(())
    }
}
