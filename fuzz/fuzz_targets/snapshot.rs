// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A snapshot's manifest, a line feed, and its state. The manifest gets the state's size and checksum.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mini_vmm::snapshot::{self, Parsed};
use serde_json::{Value, json};

/// The manifest with the size and checksum of `state`, as far as it has a place for them.
fn sealed(manifest: &[u8], state: &[u8]) -> Option<Vec<u8>> {
    let mut manifest: Value = serde_json::from_slice(manifest).ok()?;
    let part = manifest.get_mut("parts")?.get_mut("state")?.as_object_mut()?;
    part.insert("size".to_owned(), json!(state.len()));
    part.insert("crc32".to_owned(), json!(crc32fast::hash(state)));
    serde_json::to_vec(&manifest).ok()
}

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (manifest, state) = input.split_at(end.unwrap_or(input.len()));
    let state = state.get(1..).unwrap_or_default();
    let sealed = sealed(manifest, state);
    match snapshot::parse(sealed.as_deref().unwrap_or(manifest), state) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(parsed) => {
            let Parsed {
                manifest,
                spec,
                state,
                ..
            } = parsed;
            assert_eq!(state.vcpus.len(), usize::from(spec.cpus));
            assert_eq!(manifest.parts.memory.size, spec.memory);
            assert_eq!(manifest.cpu_vendor, state.cpu_vendor());
            assert_eq!(manifest.devices.len(), state.devices.len());
            // What it needs of the host is named by whoever restores it.
            let _ = snapshot::adapt(spec, &[]);
        }
    }
});
