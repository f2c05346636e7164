// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks (`--disk`, `--cloud-init`).

use std::io;

use virtio_models::block::{Block, Notice};

use super::{Model, Names};
use crate::config::VmSpec;
use crate::telemetry::{Event, EventLog};

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let seed = spec.cloud_init.iter();
    let seed = seed.map(|_| model("cloud-init".to_owned(), spec.disk.len()));
    let mut names = Names::of("disk");
    let numbered = spec.disk.iter().enumerate();
    let disks = numbered.map(|(number, disk)| {
        model(names.next(disk.slot), number)
            .on_thread(disk.iothread.clone())
            .in_slot(disk.slot)
    });
    let disks: Vec<_> = disks.collect();
    disks.into_iter().chain(seed).collect()
}

/// The disk `id`, whose image has this number.
fn model(id: String, number: usize) -> Model {
    Model::new(id.clone(), move |parts| {
        let image = parts.backends.disks.get(number).cloned();
        let image = image.ok_or_else(|| io::Error::other("its image is not open"))?;
        let id = id.clone();
        let (name, events) = (id.clone(), parts.backends.events.clone());
        let block = Block::new(image, Box::new(move |notice| tell(&name, &events, &notice)));
        parts.offers.disks.push(block.control());
        parts.offers.disk_counters.push((id, block.counters()));
        Ok(Box::new(block))
    })
}

/// Logs a notice. The device reports each kind once; the log's budget holds through resets.
fn tell(id: &str, events: &EventLog, notice: &Notice) {
    match notice {
        Notice::NoUring(_) => log::info!("{id}: {notice}"),
        _ => {
            log::warn!("{id}: {notice}");
            events.say(&Event::DeviceError {
                device: id.to_owned(),
                message: notice.to_string(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
