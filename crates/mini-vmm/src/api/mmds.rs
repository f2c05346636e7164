// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metadata service: what is stored, and which networks lead to it.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

use super::Error;
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::Model;
use super::nets::Net;
use crate::mmds::{self, MmdsSpec, Store, StoreError, Version};

/// The service of a machine that is described.
#[derive(Clone, Debug)]
pub(super) struct Mmds {
    /// What is stored, in every phase.
    pub store: Store,
    config: Option<Config>,
}

/// The body of `PUT /mmds/config`.
#[derive(Clone, Debug)]
struct Config {
    version: Version,
    ids: Vec<String>,
    address: Ipv4Addr,
    imds_compat: bool,
}

impl Mmds {
    /// Nothing, with space for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Mmds {
            store: Store::new(limit),
            config: None,
        }
    }

    /// Takes the service of a saved machine with these networks. What is stored stays this process's.
    pub fn adopt(&mut self, saved: Option<&MmdsSpec>, nets: &[Net]) {
        self.config = saved.map(|saved| Config {
            version: saved.version,
            ids: saved
                .nets
                .iter()
                .filter_map(|number| Some(nets.get(*number)?.id.clone()))
                .collect(),
            address: saved.address,
            imds_compat: saved.imds_compat,
        });
    }

    /// Reads the body of `PUT /mmds/config`.
    fn configure(&mut self, mut fields: Fields, nets: &[Net]) -> Result<(), Fault> {
        let version = fields.choice("version", &["V1", "V2"])?;
        let ids = Fields::required("network_interfaces", fields.take("network_interfaces"))?;
        let address = fields.text("ipv4_address")?;
        let imds_compat = fields.switch("imds_compat")?;
        fields.finish()?;
        let config = Config {
            version: match version {
                Some("V2") => Version::V2,
                _ => Version::V1,
            },
            ids: read_ids(&ids)?,
            address: address.map_or(Ok(mmds::ADDRESS), |text| read_address(&text))?,
            imds_compat: imds_compat.unwrap_or(false),
        };
        numbers(&config.ids, nets)?;
        self.config = Some(config);
        Ok(())
    }

    /// The service, for a machine with these networks.
    pub fn spec(&self, nets: &[Net]) -> Result<Option<MmdsSpec>, Fault> {
        let Some(config) = &self.config else {
            return Ok(None);
        };
        Ok(Some(MmdsSpec {
            version: config.version,
            nets: numbers(&config.ids, nets)?,
            address: config.address,
            imds_compat: config.imds_compat,
            store: self.store.clone(),
        }))
    }

    /// As in `GET /vm/config`.
    pub fn json(&self) -> Option<Value> {
        let config = self.config.as_ref()?;
        Some(json!({
            "version": match config.version {
                Version::V1 => "V1",
                Version::V2 => "V2",
            },
            "network_interfaces": config.ids,
            "ipv4_address": config.address.to_string(),
            "imds_compat": config.imds_compat,
        }))
    }
}

impl Model {
    /// Sets the most bytes of the metadata service's document. What was stored is lost.
    pub fn set_mmds_limit(&mut self, limit: usize) {
        self.mmds.store = Store::new(limit);
    }

    /// Stores the document in a file for the metadata service.
    ///
    /// # Errors
    /// [`Error::Metadata`] says what is wrong with the file.
    pub fn read_metadata(&mut self, path: &Path) -> Result<(), Error> {
        let failed = |why: String| Error::Metadata {
            path: path.to_owned(),
            why,
        };
        // With spaces, a file is longer than its document.
        let most = (self.mmds.store.limit() as u64).saturating_mul(4);
        let mut text = Vec::new();
        let file = File::open(path)
            .and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut text));
        file.map_err(|error| failed(format!("can't be read: {error}; name a JSON file")))?;
        if text.len() as u64 > most {
            let why = format!("has more than {most} bytes; shorten it, or raise --mmds-size-limit");
            return Err(failed(why));
        }
        let value = serde_json::from_slice(&text)
            .map_err(|error| failed(format!("is not JSON: {error}; correct it")))?;
        let stored = self.mmds.store.put(value);
        stored.map_err(|error| failed(format!("can't be stored: {error}")))
    }

    /// `PUT /mmds/config`.
    pub(super) fn put_mmds_config(&mut self, fields: Fields) -> Result<(), Fault> {
        self.mmds.configure(fields, &self.nets)?;
        self.is_described = true;
        Ok(())
    }

    /// `GET /mmds`, in every phase.
    pub(super) fn metadata(&self) -> Value {
        match &*self.mmds.store.get() {
            Value::Null => json!({}),
            value => value.clone(),
        }
    }

    /// `PUT /mmds`, in every phase.
    pub(super) fn put_metadata(&self, value: Value) -> Result<(), Fault> {
        self.mmds.store.put(value).map_err(fault)
    }

    /// `PATCH /mmds`, in every phase.
    pub(super) fn patch_metadata(&self, patch: Value) -> Result<(), Fault> {
        self.mmds.store.patch(patch).map_err(fault)
    }
}

fn fault(error: StoreError) -> Fault {
    match error {
        StoreError::Empty => Fault::new(error.to_string()),
        StoreError::TooLarge { .. } => Fault::with_status(413, error.to_string()),
    }
}

fn read_ids(ids: &Value) -> Result<Vec<String>, Fault> {
    let texts = ids
        .as_array()
        .map(|ids| ids.iter().map(|id| id.as_str().map(str::to_owned)));
    let ids = texts.and_then(Iterator::collect::<Option<Vec<_>>>);
    let ids = ids.filter(|ids| !ids.is_empty());
    ids.ok_or_else(|| {
        wrong(
            "network_interfaces",
            "this is not a list of IDs; give one or more",
        )
    })
}

fn read_address(text: &str) -> Result<Ipv4Addr, Fault> {
    let address = text
        .parse()
        .ok()
        .filter(|address| mmds::is_possible(*address));
    address.ok_or_else(|| {
        let what = format_args!("{text:?} is not an address from 169.254.1.0 to 169.254.254.255");
        wrong("ipv4_address", what)
    })
}

/// The numbers of the networks with these IDs.
fn numbers(ids: &[String], nets: &[Net]) -> Result<Vec<usize>, Fault> {
    let number = |id: &String| {
        nets.iter().position(|net| net.id == *id).ok_or_else(|| {
            let known: Vec<_> = nets.iter().map(|net| net.id.as_str()).collect();
            let known = known.join(", ");
            let what = format_args!(
                "there is no {id:?}; the networks are: {known}; add it by PUT /network-interfaces/{{id}} first"
            );
            wrong("network_interfaces", what)
        })
    };
    ids.iter().map(number).collect()
}
