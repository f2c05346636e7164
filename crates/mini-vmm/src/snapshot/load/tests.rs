// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots that lie, and one of each format that ever was. No KVM.

mod digits;

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::super::format::StateFile;
use super::super::tail::Tail;
use super::*;
use crate::mmds::Version;

mod fixtures;

pub(crate) use self::fixtures::{forget_caller, saved, state, write_asked, write_pair};

/// A machine with a disk, random numbers and a clock, in format 1. These files must stay readable.
const MANIFEST_1: &[u8] = include_bytes!("format-1/manifest.json");
const STATE_1: &[u8] = include_bytes!("format-1/state.json");

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// A manifest that has the size and checksum of a state, and the state.
fn sealed(state: &Value) -> (Vec<u8>, Vec<u8>) {
    let state = serde_json::to_vec(state).unwrap();
    let mut manifest = value(MANIFEST_1);
    manifest["parts"]["state"] = json!({
        "version": 1,
        "size": state.len(),
        "crc32": crc32fast::hash(&state),
    });
    (serde_json::to_vec(&manifest).unwrap(), state)
}

fn parse_state(state: &Value) -> Result<Parsed, Error> {
    let (manifest, state) = sealed(state);
    parse(&manifest, &state)
}

#[track_caller]
fn refuses<T>(result: Result<T, Error>, why: &str) {
    let error = result.err().expect("an error").to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn format_1_stays_readable() {
    let parsed = parse(MANIFEST_1, STATE_1).unwrap();
    let Parsed {
        manifest,
        spec,
        state,
        labels,
        caller,
    } = parsed;
    assert_eq!(caller, None);
    assert_eq!(labels, Labels::default());
    assert_eq!((manifest.format, spec.memory), (1, 32 << 20));
    assert_eq!(
        (spec.disk.len(), spec.rng.is_some(), spec.rtc),
        (1, true, true)
    );
    assert_eq!((state.vcpus.len(), state.devices.len()), (1, 4));
    assert_eq!(state.cpu_vendor(), "AuthenticAMD");
}

#[test]
fn a_clone_is_told_its_number_if_the_guest_asked() {
    let rax = |state: &MachineState| state.vcpus[0].vcpu.regs.rax;
    let before = rax(&parse(MANIFEST_1, STATE_1).unwrap().state);
    assert!(before != 1 && before != 9);
    let mut asked = value(STATE_1);
    asked["caller"] = json!(0);
    let parsed = parse_state(&asked).unwrap();
    assert_eq!((parsed.caller, rax(&parsed.state)), (Some(0), 1));
    asked["caller"] = json!(1);
    refuses(parse_state(&asked), "none of its vCPUs asked");
    let mut snapshot = Snapshot {
        manifest: parsed.manifest,
        spec: parsed.spec,
        state: parsed.state,
        labels: parsed.labels,
        caller: parsed.caller,
        overlays: Vec::new(),
        ahead: Spans::new(),
        memory: Pages::File(tempfile::tempfile().unwrap()),
    };
    let id = |number| CloneId::new(number).unwrap();
    snapshot.number(id(9)).unwrap();
    assert_eq!(rax(&snapshot.state), 9);
    refuses(snapshot.number(id(1 << 31)), "is 1 to 2147483647");
    snapshot.caller = None;
    refuses(snapshot.number(id(9)), "did not ask for this snapshot");
}

#[test]
fn every_field_of_the_manifest_is_checked() {
    for (at, lie, why) in [
        ("/format", json!(2), "format 2"),
        ("/format", json!("1"), "manifest can't be read"),
        ("/program", json!(7), "manifest can't be read"),
        ("/id", json!("1745553f"), "32 hexadecimal digits"),
        (
            "/id",
            json!("+745553f4c4e839a99c2081c123673ed"),
            "32 hexadecimal digits",
        ),
        ("/kind", json!("half"), "manifest can't be read"),
        ("/cpu_vendor", json!("GenuineIntel"), "CPU vendors"),
        ("/cpus", json!(2), "numbers of vCPUs"),
        ("/memory", json!([]), "no machine has such memory"),
        ("/memory/0/start", json!(4096), "no machine has such memory"),
        (
            "/memory/0/size",
            json!(u64::MAX),
            "no machine has such memory",
        ),
        ("/memory/0/more", json!(1), "manifest can't be read"),
        ("/devices/0/id", json!("rtc"), "lists of devices"),
        ("/devices/0/version", json!(9), "lists of devices"),
        ("/devices", json!([]), "lists of devices"),
        ("/route", json!("vendor"), "routes of hypercalls"),
        ("/parts/state/version", json!(2), "state has version 2"),
        ("/parts/state/size", json!(1), "its size"),
        (
            "/parts/state/size",
            json!(u64::MAX),
            "larger than any machine's",
        ),
        ("/parts/state/crc32", json!(1), "its checksum"),
        ("/parts/memory/version", json!(0), "memory has version 0"),
        (
            "/parts/memory/size",
            json!(4096),
            "no machine has such memory",
        ),
        (
            "/parts/memory/size",
            json!(64 << 20),
            "no machine has such memory",
        ),
        (
            "/parent",
            json!("1745553f4c4e839a99c2081c123673ed"),
            "a parent",
        ),
        ("/more", json!(1), "manifest can't be read"),
    ] {
        let mut manifest = value(MANIFEST_1);
        let (parent, name) = at.rsplit_once('/').unwrap();
        let parent = manifest.pointer_mut(parent).unwrap();
        match parent.as_object_mut() {
            Some(object) => drop(object.insert(name.to_owned(), lie)),
            None => parent[name.parse::<usize>().unwrap()] = lie,
        }
        let bytes = serde_json::to_vec(&manifest).unwrap();
        refuses(parse(&bytes, STATE_1), why);
    }
}

#[test]
fn another_format_is_named_whatever_its_fields() {
    refuses(parse(br#"{"format": 7, "colour": "red"}"#, b""), "format 7");
    refuses(parse(br#"{"format": 1, "colour": "red"}"#, b""), "colour");
}

#[test]
fn fields_that_are_missing_or_new_are_refused() {
    let state = value(STATE_1);
    parse_state(&state).unwrap();
    for at in [
        "",
        "/state",
        "/state/vm",
        "/state/vcpus/0",
        "/state/vcpus/0/vcpu",
        "/state/devices/0",
    ] {
        let mut more = state.clone();
        more.pointer_mut(at).unwrap()["new"] = json!(1);
        refuses(parse_state(&more), "unknown field");
        for name in state.pointer(at).unwrap().as_object().unwrap().keys() {
            let mut less = state.clone();
            let object = less.pointer_mut(at).unwrap().as_object_mut().unwrap();
            object.remove(name);
            let may = [
                "labels",
                "realtime_ns",
                "pit",
                "tsc",
                "tsc_khz",
                "sregs2",
                "lapic",
                "nested",
            ];
            let may = may.contains(&name.as_str());
            assert_eq!(parse_state(&less).is_ok(), may, "{at}/{name}");
        }
    }
    let mut other = state.clone();
    other["machine"]["colour"] = json!("red");
    refuses(parse_state(&other), "colour");
    let mut other = state.clone();
    other["machine"]["share"] = json!([{"path": "/"}]);
    refuses(parse_state(&other), "no machine with shared directories");
}

/// Whoever restores it names what it may reach.
#[test]
fn no_file_of_the_host_is_taken_from_a_snapshot() {
    let dir = tempdir().unwrap();
    let mine = dir.path().join("mine");
    for (key, word) in [
        ("kernel", ""),
        ("initrd", ""),
        ("serial", "file="),
        ("serial", "socket="),
        ("metrics", ""),
        ("event-log", ""),
        ("event-log", "fd:1 "),
        ("cloud-init", ""),
    ] {
        let mut state = value(STATE_1);
        let word = format!("{word}{}", mine.display());
        state["machine"][key] = json!(word);
        let Ok(parsed) = parse_state(&state) else {
            continue;
        };
        let flags = [("disk", "path=d".into()), ("cloud-init", "seed".into())];
        let given = if key == "cloud-init" { 2 } else { 1 };
        let spec = super::super::adapt(parsed.spec, &flags[..given]).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert!(!text.contains(mine.to_str().unwrap()), "{key}: {text}");
    }
}

#[test]
fn words_of_the_file_are_shortened_in_messages() {
    let mut state = value(STATE_1);
    state["\u{1b}[2J".repeat(1000)] = json!(1);
    let error = parse_state(&state).unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn a_state_of_another_machine_is_refused() {
    for (at, lie, why) in [
        ("/machine/cpus", json!(2), "another number of vCPUs"),
        ("/machine/memory", json!("64M"), "sizes of memory"),
        ("/machine/memory", json!("1K"), "machine is not possible"),
        (
            "/machine/hypercall",
            json!("pio=0x11"),
            "routes of hypercalls",
        ),
        ("/state/vcpus", json!([]), "another number of vCPUs"),
        ("/state/devices", json!([]), "lists of devices"),
        ("/state/vcpus/0/vcpu/cpuid", json!([]), "CPU vendors"),
        ("/state/vcpus/0/vcpu/lapic", json!(7), "state can't be read"),
    ] {
        let mut state = value(STATE_1);
        *state.pointer_mut(at).unwrap() = lie;
        refuses(parse_state(&state), why);
    }
}

#[test]
fn whatever_is_cut_off_is_missed() {
    for end in (0..MANIFEST_1.len()).step_by(7) {
        assert!(parse(&MANIFEST_1[..end], STATE_1).is_err(), "{end}");
    }
    for end in (0..STATE_1.len()).step_by(997) {
        refuses(parse(MANIFEST_1, &STATE_1[..end]), "its size");
    }
}

/// A snapshot in a directory, with memory that is all zeros.
fn on_disk() -> (TempDir, Manifest) {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join(MANIFEST), MANIFEST_1).unwrap();
    fs::write(dir.path().join(STATE), STATE_1).unwrap();
    let manifest = Manifest::parse(MANIFEST_1).unwrap();
    write_memory(
        &dir.path().join(MEMORY),
        32 << 20,
        &tail(manifest.id, 32 << 20),
    );
    (dir, manifest)
}

fn write_memory(path: &Path, ram: u64, tail: &str) {
    let file = File::create(path).unwrap();
    file.write_all_at(tail.as_bytes(), ram).unwrap();
}

fn open_at(dir: &TempDir) -> Result<Snapshot, Error> {
    Snapshot::open(&Place::Directory(dir.path().to_owned()))
}

#[test]
fn memory_must_be_whole_and_of_this_snapshot() {
    let (dir, manifest) = on_disk();
    let memory = dir.path().join(MEMORY);
    let (spec, frozen, _) = open_at(&dir).unwrap().map().unwrap();
    assert_eq!(spec.memory, 32 << 20);
    drop(frozen);
    let ram = 32 << 20;
    let good = tail(manifest.id, ram);
    for (at, text, why) in [
        (ram - 4096, good.clone(), "not complete"),
        (ram + 4096, good.clone(), "not complete"),
        (ram, String::new(), "not complete"),
        (ram, good.trim_end().to_owned(), "not complete"),
        (ram, good.clone() + "\n", "not complete"),
        (ram, good.replace(" 1 ", " 2 "), "not complete"),
        (ram, tail(manifest.id, ram + 4096), "sizes of memory"),
        (ram, tail(Id([7; 16]), ram), "two files of one snapshot"),
    ] {
        write_memory(&memory, at, &text);
        refuses(open_at(&dir), why);
    }
    fs::remove_file(&memory).unwrap();
    refuses(open_at(&dir), "can't read");
    fs::create_dir(&memory).unwrap();
    refuses(open_at(&dir), "is no file");
}

#[test]
fn overlays_must_be_those_of_the_disks() {
    let mut state = value(STATE_1);
    state["machine"]["disk"][0]["overlay"] = json!("tmp");
    let state = serde_json::to_vec(&state).unwrap();
    let part = json!({"disk": 0, "version": 1, "size": 3, "crc32": crc32fast::hash(b"abc")});
    let manifest = |overlays: Value| {
        let mut manifest = value(MANIFEST_1);
        manifest["parts"]["state"]["size"] = json!(state.len());
        manifest["parts"]["state"]["crc32"] = json!(crc32fast::hash(&state));
        manifest["parts"]["overlays"] = overlays;
        serde_json::to_vec(&manifest).unwrap()
    };
    let (dir, _) = on_disk();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write(STATE, &state);
    write(MANIFEST, &manifest(json!([part])));
    refuses(open_at(&dir), "can't read");
    write("overlay0", b"ab");
    refuses(open_at(&dir), "another size");
    write("overlay0", b"abc");
    let (_, frozen, _) = open_at(&dir).unwrap().map().unwrap();
    assert_eq!((frozen.overlays[0].disk, frozen.overlays.len()), (0, 1));
    for (name, lie, why) in [
        ("disk", json!(1), "other overlays"),
        ("disk", json!(-1), "manifest can't be read"),
        ("version", json!(2), "overlay has version 2"),
        ("more", json!(1), "manifest can't be read"),
    ] {
        let mut part = part.clone();
        part[name] = lie;
        write(MANIFEST, &manifest(json!([part])));
        refuses(open_at(&dir), why);
    }
    for overlays in [json!([]), json!([part, part])] {
        write(MANIFEST, &manifest(overlays));
        refuses(open_at(&dir), "other overlays");
    }
    // Two files have no place for them.
    let line = [manifest(json!([part])), b"\n".to_vec(), state.clone()].concat();
    write("vm.state", &line);
    let files = Place::Files {
        snapshot: dir.path().join("vm.state"),
        memory: dir.path().join(MEMORY),
    };
    refuses(Snapshot::open(&files), "two files can't have overlays");
}

#[test]
fn the_metadata_service_goes_on_without_what_was_stored() {
    let with = |service: Value| {
        let mut state = value(STATE_1);
        state["machine"]["net"] = json!([{"tap": "tap0"}, {"tap": "tap1"}]);
        state["metadata"] = service;
        parse_state(&state)
    };
    let service = json!({
        "version": "V2",
        "nets": [1],
        "address": "169.254.9.9",
        "imds_compat": true,
    });
    let mmds = with(service.clone()).unwrap().spec.mmds.unwrap();
    assert_eq!(
        (mmds.version, mmds.nets.as_slice()),
        (Version::V2, &[1][..])
    );
    assert_eq!(
        (mmds.address.to_string(), mmds.imds_compat),
        ("169.254.9.9".to_owned(), true)
    );
    assert_eq!(*mmds.store.get(), Value::Null);
    assert!(with(json!(null)).unwrap().spec.mmds.is_none());
    for (name, lie, why) in [
        ("nets", json!([2]), "not possible"),
        ("address", json!("10.0.0.1"), "not possible"),
        ("version", json!("V3"), "can't be read"),
        ("store", json!({}), "can't be read"),
    ] {
        let mut service = service.clone();
        service[name] = lie;
        refuses(with(service), why);
    }
}

#[test]
fn files_that_are_none_or_too_large_are_refused_at_once() {
    let (dir, _) = on_disk();
    let manifest = dir.path().join(MANIFEST);
    File::create(&manifest).unwrap().set_len(1 << 40).unwrap();
    refuses(open_at(&dir), "is too large");
    fs::remove_file(&manifest).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &manifest,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    refuses(open_at(&dir), "is no file");
}

/// The text that ends the memory of a Full snapshot.
fn tail(id: Id, size: u64) -> String {
    Tail {
        id,
        size,
        parent: None,
    }
    .text()
}

#[test]
fn two_files_are_paired_by_their_identity() {
    let dir = tempdir().unwrap();
    let (snapshot, memory) = (dir.path().join("vm.state"), dir.path().join(MEMORY));
    write_pair(&snapshot, &memory);
    let place = Place::Files {
        snapshot: snapshot.clone(),
        memory: memory.clone(),
    };
    Snapshot::open(&place).unwrap();
    write_memory(&memory, 32 << 20, &tail(Id([1; 16]), 32 << 20));
    refuses(Snapshot::open(&place), "two files of one snapshot");
    fs::write(&snapshot, b"{}").unwrap();
    refuses(Snapshot::open(&place), "it has no state");
}

/// Replaces the value that a number chooses, somewhere in `value`.
fn replace(value: &mut Value, choice: &mut usize, new: &Value) {
    match value {
        Value::Array(all) if !all.is_empty() => {
            let at = *choice % all.len();
            *choice /= all.len();
            replace(&mut all[at], choice, new);
        }
        Value::Object(all) if !all.is_empty() => {
            let at = *choice % all.len();
            *choice /= all.len();
            replace(all.values_mut().nth(at).unwrap(), choice, new);
        }
        other => *other = new.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Each is refused with a sentence, or is a machine.
    #[test]
    fn changed_states_do_no_harm(mut choice in any::<usize>(), kind in 0usize..6, number in any::<u64>()) {
        let new = [json!(null), json!(number), json!(-1), json!("x"), json!([]), json!({})][kind].clone();
        let mut state = value(STATE_1);
        replace(&mut state, &mut choice, &new);
        if let Err(error) = parse_state(&state) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
