// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks, as Firecracker describes them.

use std::num::NonZeroU64;

use serde_json::{Value, json};
use virtio_models::rate::{Limit, Limits};

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
        Drive::named(&format!("disk{index}"), spec.clone())
    }

    /// A disk with what only our own words say.
    pub fn named(id: &str, spec: DiskSpec) -> Self {
        Drive {
            id: id.to_owned(),
            spec,
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

/// Reads a rate limiter: a bucket of bytes and one of requests. What it leaves out stays as in `now`.
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

/// Reads a token bucket.
pub(super) fn bucket(
    name: &str,
    bucket: Option<Value>,
    now: Option<Limit>,
) -> Result<Option<Limit>, Fault> {
    let Some(bucket) = bucket else {
        return Ok(now);
    };
    let inner = |fault: Fault| wrong(name, fault.message);
    let mut fields = Fields::of(bucket).map_err(inner)?;
    let size = fields.number("size").map_err(inner)?;
    let refill = fields.number("refill_time").map_err(inner)?;
    let once = fields.number("one_time_burst").map_err(inner)?;
    fields.finish().map_err(inner)?;
    let size = Fields::required("size", size).map_err(inner)?;
    let refill = Fields::required("refill_time", refill).map_err(inner)?;
    // Firecracker has no limit for an empty bucket, either.
    let numbers = NonZeroU64::new(size).zip(NonZeroU64::new(refill));
    let once = Some(once.unwrap_or(0));
    Ok(numbers.map(|(size, refill)| Limit { size, refill, once }))
}

/// As [`bucket`] reads it back.
pub(super) fn shown(limit: Option<Limit>) -> Option<Value> {
    let json = |Limit { size, refill, once }| json!({ "size": size, "one_time_burst": once, "refill_time": refill });
    limit.map(json)
}

/// As [`limits`] reads it back.
pub(super) fn limiter(limits: Limits) -> Value {
    match (shown(limits.bandwidth), shown(limits.iops)) {
        (None, None) => Value::Null,
        (bandwidth, ops) => json!({ "bandwidth": bandwidth, "ops": ops }),
    }
}
