// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that come, go, or have another size.

use std::path::Path;

use serde_json::{Value, json};

use super::{Error, Order, Session};

/// The result of an order about a device, for people and as JSON.
type Told = (String, Value);

impl Session<'_> {
    /// Adds a device.
    pub(super) fn add(&mut self, order: &Order) -> Result<Told, Error> {
        let name = name(order)?;
        let (key, words) = order.device.as_ref().ok_or(Error::NoName)?;
        let body = json!({ *key: words }).to_string();
        let target = format!("/devices/{name}");
        self.ask(("PUT", &target, &body), "waiting until the device is made")?;
        Ok(told(name, "added"))
    }

    /// Removes a device.
    pub(super) fn remove(&mut self, order: &Order) -> Result<Told, Error> {
        let name = name(order)?;
        let body = json!({ "force": order.force }).to_string();
        let target = format!("/devices/{name}");
        let awaited = "waiting until the guest has given the device up";
        self.ask(("DELETE", &target, &body), awaited)?;
        Ok(told(name, "removed"))
    }

    /// Makes the guest learn the size of a disk's image.
    pub(super) fn resize(&mut self, order: &Order) -> Result<Told, Error> {
        let name = name(order)?;
        let body = json!({ "drive_id": name }).to_string();
        let target = format!("/drives/{name}");
        let awaited = "waiting for the machine's answer";
        self.ask(("PATCH", &target, &body), awaited)?;
        Ok(told(name, "told"))
    }
}

/// The device that an order names. The server checks it, but it has to stay one part of a path.
fn name(order: &Order) -> Result<&str, Error> {
    let name = order.dir.as_deref().ok_or(Error::NoName)?;
    let text = name.to_str();
    let text = text.ok_or_else(|| Error::NotText(name.to_owned()))?;
    match Path::new(text).components().count() == 1 && !text.contains(char::is_whitespace) {
        true => Ok(text),
        false => Err(Error::NoName),
    }
}

fn told(name: &str, what: &str) -> Told {
    (
        format!("{name}: {what}"),
        json!({ "device": name, "state": what }),
    )
}
