// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon (`--balloon`).

use std::io;
use std::ops::Range;
use std::sync::Arc;

use virtio_models::balloon::{Balloon, Host, Options};
use vm_memory::GuestMemoryMmap;

use super::{Memory, Model};
use crate::config::VmSpec;
use crate::memory::Returned;

/// Its name.
const ID: &str = "balloon";

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let balloon = spec.balloon.iter();
    let models =
        balloon.map(|balloon| model(balloon.options()).on_thread(balloon.iothread.clone()));
    models.collect()
}

fn model(options: Options) -> Model {
    Model::new(ID, move |parts| {
        let control = parts.backends.balloon.as_ref().map(Arc::clone);
        let control = control.ok_or_else(|| io::Error::other("it has no target size"))?;
        let returned = Returned::default();
        let balloon = Balloon::new(
            options,
            Arc::clone(&control),
            Box::new(Ram(returned.clone())),
        );
        parts.offers.balloon = Some(control);
        parts.offers.balloon_counters = Some(balloon.counters());
        parts.offers.returned = Some(returned);
        Ok(Box::new(balloon))
    })
}

/// The guest's memory.
struct Ram(Returned);

impl Host<Memory> for Ram {
    fn give_back(&mut self, memory: &GuestMemoryMmap, ranges: &[Range<u64>]) -> u64 {
        self.0.give_back(memory, ranges)
    }
}
