// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine in format 1, for the tests of other modules.

use super::*;

/// The state of format 1, for a machine with `ram` bytes.
pub(crate) fn state(ram: u64) -> StateFile {
    let mut state = value(STATE_1);
    state["machine"]["memory"] = json!(ram);
    serde_json::from_value(state).unwrap()
}

/// The machine in format 1.
pub(crate) fn saved() -> MachineState {
    parse(MANIFEST_1, STATE_1).unwrap().state
}

/// Makes the empty directory `dir` a snapshot that its guest asked for: that of format 1 without its disk, and with memory
/// that is all zeros.
pub(crate) fn write_asked(dir: &Path) {
    let mut state = value(STATE_1);
    state["machine"]["disk"] = json!([]);
    state["caller"] = json!(0);
    write_sealed(dir, &state);
}

/// Makes such a snapshot one that its guest did not ask for.
pub(crate) fn forget_caller(dir: &Path) {
    let mut state = value(&fs::read(dir.join(STATE)).unwrap());
    state.as_object_mut().unwrap().remove("caller").unwrap();
    write_sealed(dir, &state);
}

fn write_sealed(dir: &Path, state: &Value) {
    let (manifest, state) = sealed(state);
    let id = Manifest::parse(&manifest).unwrap().id;
    fs::write(dir.join(MANIFEST), manifest).unwrap();
    fs::write(dir.join(STATE), state).unwrap();
    write_memory(&dir.join(MEMORY), 32 << 20, &tail(id, 32 << 20));
}

/// Writes the snapshot of format 1 as two files, with memory that is all zeros.
pub(crate) fn write_pair(snapshot: &Path, memory: &Path) {
    let manifest = serde_json::to_vec(&value(MANIFEST_1)).unwrap();
    fs::write(snapshot, [&manifest, &b"\n"[..], STATE_1].concat()).unwrap();
    let id = Manifest::parse(MANIFEST_1).unwrap().id;
    write_memory(memory, 32 << 20, &tail(id, 32 << 20));
}
