// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio console (`--console`), and the device of the console ports (`--console-port`).

use std::io;
use std::sync::{Arc, Mutex};

use virtio_models::console::{Console, Notice};

use super::Model;
use crate::config::{SerialSpec, VmSpec};
use crate::devices::device::Parts;
use crate::telemetry::Event;

/// The names of the devices. The console has one of its own: see the crate virtio-models.
const CONSOLE: &str = "console";
const PORTS: &str = "console-ports";

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let console = (spec.console != SerialSpec::Off).then(|| Model::new(CONSOLE, console));
    let ports = (!spec.console_port.is_empty()).then(|| Model::new(PORTS, ports));
    console.into_iter().chain(ports).collect()
}

type Device = Box<dyn virtio_transport::AnyDevice<super::Memory>>;

fn console(parts: &mut Parts<'_>) -> io::Result<Device> {
    let hvc = parts.backends.hvc.get().cloned();
    let hvc = hvc.ok_or_else(|| io::Error::other("its console is not open"))?;
    let (peer, input) = hvc.ends()?;
    parts.offers.hvc_input = Some(input);
    let peer = Arc::new(Mutex::new(peer));
    Ok(Box::new(Console::new(
        Some(peer),
        Vec::new(),
        report(parts, CONSOLE),
    )))
}

fn ports(parts: &mut Parts<'_>) -> io::Result<Device> {
    let ports = parts.backends.ports.iter().map(|port| port.port());
    let ports = ports.collect::<io::Result<Vec<_>>>()?;
    Ok(Box::new(Console::new(None, ports, report(parts, PORTS))))
}

fn report(parts: &Parts<'_>, device: &'static str) -> Box<dyn FnMut(Notice) + Send> {
    let events = parts.backends.events.clone();
    Box::new(move |notice| {
        log::warn!("{device}: {notice}");
        events.say(&Event::DeviceError {
            device: device.to_owned(),
            message: notice.to_string(),
        });
    })
}
