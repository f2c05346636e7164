// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Networks (`--net`).

use std::io;
use std::sync::Arc;

use virtio_models::net::{Net, Notice};

use super::{Model, Names};
use crate::config::VmSpec;
use crate::telemetry::{Event, EventLog};

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let mut names = Names::of("net");
    let numbered = spec.net.iter().enumerate();
    let models = numbered.map(|(number, net)| {
        model(names.next(net.slot), number)
            .on_thread(net.iothread.clone())
            .in_slot(net.slot)
    });
    models.collect()
}

/// The network `id`, whose link has this number.
fn model(id: String, number: usize) -> Model {
    Model::new(id.clone(), move |parts| {
        let network = parts.backends.nets.get(number);
        let network = network.ok_or_else(|| io::Error::other("its link is not open"))?;
        let links = network.lend();
        let links = links.ok_or_else(|| io::Error::other("another device has its link"))?;
        let id = id.clone();
        let (name, events) = (id.clone(), parts.backends.events.clone());
        let report = Box::new(move |notice| tell(&name, &events, &notice));
        let control = Arc::clone(&network.control);
        let net = Net::new(network.config, links, report).with_control(Arc::clone(&control));
        parts.offers.nets.push(control);
        parts.offers.net_counters.push((id, net.counters()));
        Ok(Box::new(net))
    })
}

/// Logs a notice. The device reports each once; the log's budget holds through resets.
fn tell(id: &str, events: &EventLog, notice: &Notice) {
    match notice {
        Notice::Up => log::info!("{id}: {notice}"),
        _ => {
            log::warn!("{id}: {notice}");
            events.say(&Event::DeviceError {
                device: id.to_owned(),
                message: notice.to_string(),
            });
        }
    }
}
