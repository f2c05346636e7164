// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device (`--vsock`).

use std::io;
use std::sync::Arc;

use virtio_models::vsock::Vsock;

use super::Model;
use crate::config::VmSpec;
use crate::telemetry::Event;

/// Its name.
const ID: &str = "vsock";

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let vsock = spec.vsock.iter();
    let models = vsock.map(|vsock| model(vsock.cid).on_thread(vsock.iothread.clone()));
    models.collect()
}

fn model(cid: u32) -> Model {
    Model::new(ID, move |parts| {
        let host = parts.backends.vsock.as_ref().map(Arc::clone);
        let host = host.ok_or_else(|| io::Error::other("its socket is not open"))?;
        let events = parts.backends.events.clone();
        let report = Box::new(move |notice: virtio_models::vsock::Notice| {
            log::warn!("{ID}: {notice}");
            events.say(&Event::DeviceError {
                device: ID.to_owned(),
                message: notice.to_string(),
            });
        });
        let vsock = Vsock::new(cid, host, report);
        parts.offers.vsock_counters = Some(vsock.counters());
        Ok(Box::new(vsock))
    })
}
