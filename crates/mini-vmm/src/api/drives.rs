// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks, as Firecracker describes them.

use std::num::NonZeroU64;

use serde_json::{Value, json};
use virtio_models::rate::Limits;

use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::check_readable;
use crate::config::{Cache, DiskSpec, Engine};

/// A disk with what only this API says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drive {
    pub id: String,
    pub spec: DiskSpec,
    /// Whether the kernel's command line names it, or a partition of it, as the root file system.
    pub is_root: bool,
    partuuid: Option<String>,
}

impl Drive {
    /// A disk of the command line or a config file.
    pub fn of_spec(index: usize, spec: &DiskSpec) -> Self {
        Drive {
            id: format!("disk{index}"),
            spec: spec.clone(),
            is_root: false,
            partuuid: None,
        }
    }

    /// Reads the body of `PUT /drives/{id}`.
    pub fn parse(id: &str, mut fields: Fields) -> Result<Self, Fault> {
        check_id("drive_id", id, fields.text("drive_id")?)?;
        let path = Fields::required("path_on_host", fields.path("path_on_host")?)?;
        let is_root = fields.switch("is_root_device")?;
        let is_root = Fields::required("is_root_device", is_root)?;
        let partuuid = fields.text("partuuid")?;
        let is_readonly = fields.switch("is_read_only")?.unwrap_or(false);
        let cache = fields.choice("cache_type", &["Unsafe", "Writeback"])?;
        let engine = fields.choice("io_engine", &["Sync", "Async"])?;
        let limiter = fields.take("rate_limiter");
        fields.only(
            "socket",
            &Value::Null,
            "this version has no vhost-user disks",
        )?;
        fields.finish()?;
        if let Some(partuuid) = partuuid.as_deref().filter(|_| is_root) {
            check_word("partuuid", partuuid)?;
        }
        check_readable("path_on_host", &path)?;
        let mut spec = DiskSpec::new(path);
        spec.readonly = is_readonly;
        // A client that says nothing gets a disk that keeps what the guest flushes.
        if cache == Some("Unsafe") {
            spec.cache = Cache::Unsafe;
        }
        spec.engine = match engine {
            Some("Sync") => Engine::Sync,
            Some(_) => Engine::Async,
            None => Engine::Auto,
        };
        Limits {
            bandwidth: spec.bandwidth,
            iops: spec.iops,
        } = limits("rate_limiter", limiter, Limits::default())?;
        Ok(Drive {
            id: id.to_owned(),
            spec,
            is_root,
            partuuid,
        })
    }

    /// What the kernel's command line says about it.
    pub fn root_words(&self) -> Option<String> {
        let rights = if self.spec.readonly { "ro" } else { "rw" };
        self.is_root.then(|| match &self.partuuid {
            Some(partuuid) => format!(" root=PARTUUID={partuuid} {rights}"),
            None => format!(" root=/dev/vda {rights}"),
        })
    }

    pub fn limits(&self) -> Limits {
        Limits {
            bandwidth: self.spec.bandwidth,
            iops: self.spec.iops,
        }
    }

    /// As in `GET /vm/config`.
    pub fn json(&self) -> Value {
        json!({
            "drive_id": self.id,
            "path_on_host": self.spec.path.to_string_lossy(),
            "is_root_device": self.is_root,
            "partuuid": self.partuuid,
            "is_read_only": self.spec.readonly,
            "cache_type": match self.spec.cache {
                Cache::Unsafe => "Unsafe",
                _ => "Writeback",
            },
            "io_engine": match self.spec.engine {
                Engine::Sync => "Sync",
                _ => "Async",
            },
            "rate_limiter": limiter(self.limits()),
            "socket": null,
        })
    }
}

/// Checks that the body's ID, if it has one, is that of the path.
pub(super) fn check_id(field: &str, id: &str, said: Option<String>) -> Result<(), Fault> {
    let is_name = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(wrong(
            field,
            format_args!("{id:?} is not a name of letters, digits and _; choose another"),
        ));
    }
    match said {
        Some(said) if said != id => Err(wrong(
            field,
            format_args!("{said:?} is not {id:?}, the name in the path; make them equal"),
        )),
        _ => Ok(()),
    }
}

/// Checks that `word` stays one word of a command line.
fn check_word(field: &str, word: &str) -> Result<(), Fault> {
    let is_word = !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-/=".contains(c));
    match is_word {
        true => Ok(()),
        false => Err(wrong(
            field,
            format_args!("{word:?} is not an ID of a partition; correct it"),
        )),
    }
}

/// Reads a rate limiter: bytes per second and requests per second. What it leaves out stays as in `now`.
pub(super) fn limits(name: &str, limiter: Option<Value>, now: Limits) -> Result<Limits, Fault> {
    let Some(limiter) = limiter else {
        return Ok(now);
    };
    let inner = |fault: Fault| wrong(name, fault.message);
    let mut fields = Fields::of(limiter).map_err(inner)?;
    let bandwidth = bucket("bandwidth", fields.take("bandwidth"), now.bandwidth).map_err(inner)?;
    let iops = bucket("ops", fields.take("ops"), now.iops).map_err(inner)?;
    fields.finish().map_err(inner)?;
    Ok(Limits { bandwidth, iops })
}

/// Reads a token bucket as a number per second.
fn bucket(
    name: &str,
    bucket: Option<Value>,
    now: Option<NonZeroU64>,
) -> Result<Option<NonZeroU64>, Fault> {
    let Some(bucket) = bucket else {
        return Ok(now);
    };
    let inner = |fault: Fault| wrong(name, fault.message);
    let mut fields = Fields::of(bucket).map_err(inner)?;
    let size = fields.number("size").map_err(inner)?;
    let millis = fields.number("refill_time").map_err(inner)?;
    let why = "the limits of this device have a burst of their own";
    fields
        .only("one_time_burst", &json!(0), why)
        .map_err(inner)?;
    fields.finish().map_err(inner)?;
    let size = Fields::required("size", size).map_err(inner)?;
    let millis = Fields::required("refill_time", millis).map_err(inner)?;
    // Firecracker has no limit for an empty bucket, either.
    if size == 0 || millis == 0 {
        return Ok(None);
    }
    let rate = u128::from(size) * 1000 / u128::from(millis);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    Ok(Some(NonZeroU64::new(rate).unwrap_or(NonZeroU64::MIN)))
}

/// As [`limits`] reads it back.
pub(super) fn limiter(limits: Limits) -> Value {
    let bucket = |rate: Option<NonZeroU64>| {
        rate.map(|rate| json!({ "size": rate, "one_time_burst": null, "refill_time": 1000 }))
    };
    match (bucket(limits.bandwidth), bucket(limits.iops)) {
        (None, None) => Value::Null,
        (bandwidth, ops) => json!({ "bandwidth": bandwidth, "ops": ops }),
    }
}
