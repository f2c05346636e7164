// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counters as a line of JSON, with Firecracker's names where it has them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::sample::{EXITS, Kind, Sample};

/// Kinds of exits that Firecracker counts for all vCPUs together.
const SUMS: [&str; 4] = [
    "exit_io_in",
    "exit_io_out",
    "exit_mmio_read",
    "exit_mmio_write",
];

/// Milliseconds since 1970.
pub(super) fn timestamp_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A line with the changes since `last`, as Firecracker writes them.
pub(super) fn line(samples: &[Sample], last: &[Sample]) -> Vec<u8> {
    let mut groups = Map::new();
    groups.insert("utc_timestamp_ms".to_owned(), json!(timestamp_ms()));
    for (at, sample) in samples.iter().enumerate() {
        // The place is another one only after the first machine was created.
        let before = last.get(at).filter(|before| sample.is_same(before));
        let before = before.or_else(|| last.iter().find(|before| sample.is_same(before)));
        let mut value = before.map_or(sample.value, |before| sample.since(before));
        if sample.family.kind != Kind::Count {
            value /= 1000;
        }
        add(&mut groups, &sample.group, &sample.key, value);
        if *sample.family == EXITS && SUMS.contains(&&*sample.key) {
            add(&mut groups, "vcpu", &sample.key, value);
        }
    }
    let mut line = Value::Object(groups).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Adds `value` to a number in an object.
fn add(groups: &mut Map<String, Value>, group: &str, key: &str, value: u64) {
    let mut place = groups.entry(group).or_insert_with(|| json!({}));
    for part in key.split('.') {
        place = &mut place[part];
    }
    *place = json!(place.as_u64().unwrap_or(0).saturating_add(value));
}
