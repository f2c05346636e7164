// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Firecracker's config files (`--config-file`): the bodies of requests, by the names of their paths.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::Error;
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::Model;
use crate::config::file::MAX_SIZE;

impl Model {
    /// Adds what the config file at `path` describes.
    ///
    /// # Errors
    /// [`Error::Config`] says what is wrong with the file.
    pub fn read_config(&mut self, path: &Path) -> Result<(), Error> {
        let text = read_limited(path).and_then(|text| self.apply(&text));
        text.map_err(|fault| Error::Config {
            path: path.to_owned(),
            why: fault.message,
        })
    }

    /// Adds what `text` describes, all of it or nothing.
    pub(super) fn apply(&mut self, text: &[u8]) -> Result<(), Fault> {
        let mut model = self.clone();
        let mut parts = Fields::parse(text)?;
        for (name, put) in PARTS {
            if let Some(body) = parts.take(name) {
                put(&mut model, body).map_err(|fault| wrong(name, fault.message))?;
            }
        }
        for name in ABSENT {
            let body = parts.take(name);
            if body.is_some_and(|body| body.as_array().is_none_or(|list| !list.is_empty())) {
                return Err(wrong(name, "this version does not have it; leave it out"));
            }
        }
        parts.finish()?;
        *self = model;
        Ok(())
    }
}

/// Reads a file of JSON.
pub(super) fn read_limited(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut text));
    file.map_err(|error| Fault::new(format!("can't be read: {error}; name a JSON file")))?;
    match text.len() as u64 > MAX_SIZE {
        true => Err(Fault::new(format!(
            "has more than {MAX_SIZE} bytes; name a JSON file"
        ))),
        false => Ok(text),
    }
}

type Put = fn(&mut Model, Value) -> Result<(), Fault>;

/// The parts of a file. Each is optional.
const PARTS: [(&str, Put); 12] = [
    ("boot-source", |model, body| {
        model.put_boot_source(Fields::of(body)?)
    }),
    ("cpu-config", Model::put_cpu_file),
    ("drives", put_drives),
    ("entropy", |model, body| {
        model.put_entropy(Fields::of(body)?)
    }),
    ("machine-config", |model, body| {
        model.put_machine(Fields::of(body)?)
    }),
    ("logger", |model, body| {
        model.put_logger(Fields::of(body)?, true)
    }),
    ("metrics", |model, body| {
        model.put_metrics(Fields::of(body)?)
    }),
    ("network-interfaces", put_nets),
    // After the networks that it names.
    ("mmds-config", |model, body| {
        model.put_mmds_config(Fields::of(body)?)
    }),
    ("serial", |model, body| model.put_serial(Fields::of(body)?)),
    ("balloon", |model, body| {
        model.put_balloon(Fields::of(body)?)
    }),
    ("vsock", |model, body| model.put_vsock(Fields::of(body)?)),
];

/// Parts that must be empty.
const ABSENT: [&str; 2] = ["memory-hotplug", "pmem"];

fn put_drives(model: &mut Model, drives: Value) -> Result<(), Fault> {
    put_all(drives, "drive_id", |id, fields| model.put_drive(id, fields))
}

fn put_nets(model: &mut Model, nets: Value) -> Result<(), Fault> {
    put_all(nets, "iface_id", |id, fields| model.put_net(id, fields))
}

/// Calls `put` with the ID and the fields of each device in a list.
fn put_all(
    devices: Value,
    id: &str,
    mut put: impl FnMut(&str, Fields) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let Value::Array(devices) = devices else {
        return Err(Fault::new("this is not a list; give a list of devices"));
    };
    for device in devices {
        let id = device[id].as_str().unwrap_or_default().to_owned();
        put(&id, Fields::of(device)?)?;
    }
    Ok(())
}
