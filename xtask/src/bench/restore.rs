// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved machines that go on: one, with more and more memory, and many clones of one snapshot at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use procfs::process::{MMapPath, Process};
use serde_json::json;

use super::footprint::{Living, mb};
use super::guest::Work;
use super::host::{Found, Host, parse_sample};
use super::subject::{ASYNC, Kind, Setup, Subject};

/// Sizes of memory, in MiB.
pub const SIZES: [u32; 4] = [128, 1024, 4096, 8192];
/// How many clones run at once. Their guests never rest, so that more would mostly measure the scheduler.
const CLONES: u32 = 10;
/// What each clone has read before it prints, in MiB.
const READ: u32 = 16;
/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

/// Whether it can save and restore.
pub fn can(subject: &Subject) -> bool {
    let kinds = [
        Kind::MiniVmm,
        Kind::Floor,
        Kind::Firecracker,
        Kind::CloudHypervisor,
    ];
    kinds.contains(&subject.kind) && subject.name != ASYNC
}

/// A guest that is saved.
pub fn saved(memory: u32) -> Setup {
    Setup {
        memory,
        ..Setup::of(Work::Signs)
    }
}

/// A saved machine: who saves it, and in which directory.
#[derive(Clone, Debug)]
pub struct Frozen<'a> {
    subject: &'a Subject,
    place: PathBuf,
}

impl<'a> Frozen<'a> {
    /// In a directory of its own below `directory`.
    pub fn new(subject: &'a Subject, setup: &Setup, directory: &Path) -> Frozen<'a> {
        let name = format!("frozen-{}-{}", subject.name, setup.memory);
        Frozen {
            subject,
            place: directory.join(name),
        }
    }

    fn at(&self, name: &str) -> String {
        self.place.join(name).to_string_lossy().into_owned()
    }

    /// The words by which the probe saves it. The guest's file is created in `directory`.
    pub fn save(&self, setup: &Setup, directory: &Path) -> Result<Vec<String>> {
        let (place, socket) = (self.at(""), self.at("socket"));
        let api = |flag: &str, requests: &[(&str, serde_json::Value)]| {
            let mut words = vec!["freeze".to_owned(), place.clone(), socket.clone()];
            for (path, body) in requests {
                // Some requests have no body.
                let body = (!body.is_null()).then(|| body.to_string());
                words.extend([(*path).to_owned(), body.unwrap_or_default()]);
            }
            words.push("--".to_owned());
            let program = self.subject.words(setup, directory)?;
            words.extend(program.into_iter().filter(|word| word != "--no-api"));
            words.extend([flag.to_owned(), socket.clone()]);
            anyhow::Ok(words)
        };
        match self.subject.kind {
            Kind::Firecracker => {
                let create = json!({
                    "snapshot_type": "Diff",
                    "snapshot_path": self.at("state"),
                    "mem_file_path": self.at("memory"),
                });
                let pause = ("/vm", json!({ "state": "Paused" }));
                api("--api-sock", &[pause, ("/snapshot/create", create)])
            }
            Kind::CloudHypervisor => {
                let to = json!({ "destination_url": format!("file://{place}") });
                let pause = ("/api/v1/vm.pause", json!(null));
                api("--api-socket", &[pause, ("/api/v1/vm.snapshot", to)])
            }
            Kind::Floor => Ok(vec![
                "freeze-floor".to_owned(),
                place,
                setup.memory.to_string(),
            ]),
            _ => {
                let to = json!({ "directory": self.at("snapshot") });
                api("--api-sock", &[("/snapshot", to)])
            }
        }
    }

    /// The command line that goes on with it; for Firecracker, one that then has to be asked.
    fn program(&self, setup: &Setup) -> Vec<String> {
        let place = self.at("");
        let program = self.subject.program.to_string_lossy().into_owned();
        let words = match self.subject.kind {
            Kind::Firecracker => vec!["--api-sock".to_owned(), self.at("socket")],
            Kind::CloudHypervisor => vec![
                "--restore".to_owned(),
                format!("source_url=file://{place},memory_restore_mode=ondemand,resume=true"),
            ],
            Kind::Floor => vec!["thaw-floor".to_owned(), place, setup.memory.to_string()],
            _ => ["--restore", &self.at("snapshot"), "--resume"]
                .map(str::to_owned)
                .to_vec(),
        };
        [program].into_iter().chain(words).collect()
    }

    /// The words by which the probe measures that.
    pub fn go_on(&self, setup: &Setup) -> Vec<String> {
        let mut words = vec!["first".to_owned()];
        if self.subject.kind == Kind::Firecracker {
            let load = json!({
                "snapshot_path": self.at("state"),
                "mem_backend": { "backend_type": "File", "backend_path": self.at("memory") },
                "resume_vm": true,
            });
            words.extend(["--load".to_owned(), self.at("socket"), load.to_string()]);
        }
        words.extend(self.program(setup));
        words
    }
}

impl Host<'_> {
    /// From exec to the guest's next byte.
    pub fn restores(&mut self) {
        let rounds = self.effort.rounds.min(20);
        for memory in SIZES {
            let setup = saved(memory);
            let what = format!("restore, {memory} MiB");
            self.turns(&what, 0..=rounds, Some(memory), can, |host, subject| {
                let frozen = Frozen::new(subject, &setup, &host.directory);
                if !frozen.place.exists() {
                    host.ask_probe(&frozen.save(&setup, &host.directory)?)?;
                }
                let text = host.ask_probe(&frozen.go_on(&setup))?;
                let sample = parse_sample(&text).with_context(|| text.clone())?;
                Ok(vec![
                    ("restore-wall", sample.wall / MS),
                    ("restore-cpu", sample.cpu / MS),
                ])
            });
            for subject in self.subjects {
                // Cloud Hypervisor's is as large as its memory. There may be none.
                let frozen = Frozen::new(subject, &setup, &self.directory);
                let _ = fs::remove_dir_all(frozen.place);
            }
        }
    }

    /// Clones of one snapshot at once.
    pub fn clones(&mut self) {
        let is_ours = |subject: &Subject| subject.kind == Kind::MiniVmm;
        let what = format!("{CLONES} clones");
        let rounds = 0..=self.effort.growth_rounds.min(5);
        self.turns(&what, rounds, Some(CLONES), is_ours, |host, subject| {
            host.clones_at_once(subject)
        });
    }

    fn clones_at_once(&self, subject: &Subject) -> Result<Found> {
        let setup = Setup::of(Work::Reread(READ));
        let frozen = Frozen::new(subject, &setup, &self.directory);
        if !frozen.place.exists() {
            self.ask_probe(&frozen.save(&setup, &self.directory)?)?;
        }
        let started = Instant::now();
        let start = |_| Living::run(frozen.program(&setup));
        let mut clones = (0..CLONES).map(start).collect::<Result<Vec<_>>>()?;
        for clone in &mut clones {
            clone.await_byte()?;
        }
        let up = started.elapsed().as_secs_f64() * 1e3;
        let (mut private, mut shared) = (0, 0);
        for clone in &clones {
            let of = memory_of(&clone.process()?, &frozen.place)?;
            private += of.0;
            shared += of.1;
        }
        let each = |bytes: u64| mb(bytes) / f64::from(CLONES);
        Ok(vec![
            ("clones-up", up),
            ("clones-private", each(private)),
            ("clones-shared", each(shared)),
        ])
    }
}

/// Bytes that a process has for itself, and bytes of files below `place` that it shares.
fn memory_of(process: &Process, place: &Path) -> Result<(u64, u64)> {
    let (mut private, mut shared) = (0, 0);
    for map in process.smaps()? {
        let bytes = |name| map.extension.map.get(name).copied().unwrap_or_default();
        private += bytes("Private_Dirty");
        if matches!(&map.pathname, MMapPath::Path(path) if path.starts_with(place)) {
            shared += bytes("Shared_Clean");
        }
    }
    Ok((private, shared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn each_subject_saves_in_its_own_words_and_goes_on_from_there() {
        let scratch = Scratch::new().unwrap();
        let directory = scratch.path("");
        let setup = saved(77);
        for (kind, save, go_on) in [
            (Kind::MiniVmm, "/snapshot {", "--resume"),
            (Kind::Floor, "freeze-floor", "thaw-floor"),
            (Kind::Firecracker, "Paused", "backend_type"),
            (Kind::CloudHypervisor, "vm.snapshot", "ondemand"),
        ] {
            let subject = Subject::new("s", kind, Path::new("/x"));
            let frozen = Frozen::new(&subject, &setup, &directory);
            let words = frozen.save(&setup, &directory).unwrap().join(" ");
            assert!(
                words.contains(save) && !words.contains("--no-api"),
                "{words}"
            );
            assert!(words.contains("frozen-s-77"), "{words}");
            let words = frozen.go_on(&setup).join(" ");
            assert!(
                words.contains(go_on) && words.contains("frozen-s-77"),
                "{words}"
            );
        }
    }
}
