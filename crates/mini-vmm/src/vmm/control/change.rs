// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of devices that are in use.

use std::path::PathBuf;

use virtio_models::balloon::{Control, Hinting, Stats};
use virtio_models::block::Image;
use virtio_models::rate::Limits;

use super::Error;
use super::state::Asked;
use crate::config::{BalloonSpec, DeviceAt, VmSpec};
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

/// A change of the balloon. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BalloonChange {
    /// The bytes that it should have.
    pub size: Option<u64>,
    /// The seconds between two requests for statistics.
    pub stats: Option<u32>,
    /// What to do about hints.
    pub hints: Option<HintOrder>,
}

/// An order about hints at free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HintOrder {
    /// Start a round of hints, whose pages go back to the host.
    Start {
        /// Let the guest use the pages as soon as it has no more to give.
        acknowledge: bool,
    },
    /// Let the guest use the pages.
    Stop,
}

impl BalloonChange {
    /// Changes the balloon, and its description in `spec`.
    pub(crate) fn apply(&self, offers: &Offers, spec: &mut VmSpec) -> Result<(), Error> {
        let control = offers.balloon.as_ref().ok_or(Error::NoDevice)?;
        let described = spec.balloon.as_mut().ok_or(Error::NoDevice)?;
        match self.hints {
            Some(HintOrder::Start { acknowledge }) => control.start_hinting(acknowledge)?,
            Some(HintOrder::Stop) => control.stop_hinting(),
            None => {}
        }
        self.describe(described);
        if self.size.is_some() {
            control.set_target(described.pages());
        }
        if let Some(seconds) = self.stats {
            control.set_interval(seconds);
        }
        Ok(())
    }

    /// Changes the description only.
    pub(crate) fn describe(&self, balloon: &mut BalloonSpec) {
        balloon.size = self.size.unwrap_or(balloon.size);
        balloon.stats = self.stats.unwrap_or(balloon.stats);
    }
}

/// What is known about a balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalloonReport {
    /// The answer to [`Asked::Statistics`].
    Statistics {
        /// The pages of 4 KiB that it should have.
        target: u32,
        /// The pages that it has, as the guest says.
        actual: u32,
        /// The guest's last statistics.
        stats: Box<Stats>,
    },
    /// The answer to [`Asked::Hinting`].
    Hinting(Hinting),
}

impl BalloonReport {
    pub(crate) fn new(control: &Control, asked: Asked) -> Self {
        match asked {
            Asked::Statistics => BalloonReport::Statistics {
                target: control.target(),
                actual: control.actual(),
                stats: Box::new(control.stats()),
            },
            Asked::Hinting => BalloonReport::Hinting(control.hinting()),
        }
    }
}
