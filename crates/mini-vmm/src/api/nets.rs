// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Network devices, as Firecracker describes them.

use serde_json::{Value, json};
use virtio_models::rate::Limits;

use super::drives::{check_id, limiter, limits};
use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::config::{LinkSpec, Mac, NetSpec};

/// A network device with the name that only this API gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Net {
    pub id: String,
    pub spec: NetSpec,
}

impl Net {
    /// A device of the command line or a config file.
    pub fn of_spec(index: usize, spec: &NetSpec) -> Self {
        Net {
            id: format!("net{index}"),
            spec: spec.clone(),
        }
    }

    /// Reads the body of `PUT /network-interfaces/{id}`.
    pub fn parse(id: &str, mut fields: Fields) -> Result<Self, Fault> {
        check_id("iface_id", id, fields.text("iface_id")?)?;
        let tap = Fields::required("host_dev_name", fields.text("host_dev_name")?)?;
        let mac = fields.text("guest_mac")?;
        let mtu = fields.number("mtu")?;
        let (rx, tx) = (
            fields.take("rx_rate_limiter"),
            fields.take("tx_rate_limiter"),
        );
        fields.finish()?;
        let mut spec = NetSpec::new(LinkSpec::Tap(tap));
        spec.mac = mac.as_deref().map(read_mac).transpose()?;
        // Any larger number is as wrong.
        spec.mtu = mtu.map(|mtu| u16::try_from(mtu).unwrap_or(0));
        spec.rx = limits("rx_rate_limiter", rx, Limits::default())?;
        spec.tx = limits("tx_rate_limiter", tx, Limits::default())?;
        let id = id.to_owned();
        Ok(Net { id, spec })
    }

    /// As in `GET /vm/config`.
    pub fn json(&self) -> Value {
        json!({
            "iface_id": self.id,
            "host_dev_name": match &self.spec.link {
                LinkSpec::Tap(name) => name.clone(),
                other => other.to_string(),
            },
            "guest_mac": self.spec.mac.map(|mac| mac.to_string()),
            "mtu": self.spec.mtu,
            "rx_rate_limiter": limiter(self.spec.rx),
            "tx_rate_limiter": limiter(self.spec.tx),
        })
    }
}

fn read_mac(text: &str) -> Result<Mac, Fault> {
    text.parse().map_err(|_| {
        wrong(
            "guest_mac",
            format_args!("{text:?} is not an address like 06:00:ac:10:00:02"),
        )
    })
}
