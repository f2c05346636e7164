// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines that are saved: a large one that has touched little, and one that goes on and saves what it changed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::client::Client;
use super::footprint::{Living, mb};
use super::guest::Work;
use super::host::Host;
use super::subject::{Kind, Setup, Subject};

/// The memory of the large machine, and what its guest touches, in MiB.
const LARGE: (u32, u32) = (4096, 1);
/// What the guest changes between two snapshots, in MiB: 10,240 pages.
const CHANGED: u32 = 40;
/// The limit for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn is_ours(subject: &Subject) -> bool {
    subject.kind == Kind::MiniVmm
}

impl Host<'_> {
    /// A large machine that has touched little.
    pub fn saves(&mut self) {
        let rounds = 0..=self.effort.growth_rounds;
        self.turns("save", rounds, None, is_ours, |host, subject| {
            let (memory, touched) = LARGE;
            let setup = Setup {
                memory,
                ..Setup::of(Work::Reread(touched))
            };
            let (machine, mut client) = host.with_api(subject, &setup)?;
            let (wall, place) = host.save(&mut client, "saved", false)?;
            drop(machine);
            let disk = blocks(&place)?;
            fs::remove_dir_all(&place)?;
            Ok(vec![("save-wall", wall), ("save-disk", mb(disk))])
        });
    }

    /// A Diff of a running machine, and a copy of as many bytes.
    pub fn diffs(&mut self) {
        let rounds = 0..=self.effort.growth_rounds;
        self.turns("diff", rounds, None, is_ours, |host, subject| {
            let setup = Setup::of(Work::Rewrite(CHANGED));
            let (mut machine, mut client) = host.with_api(subject, &setup)?;
            let (_, base) = host.save(&mut client, "base", true)?;
            machine.await_turn()?;
            let copied = || copy(&host.directory.join("copy"), (CHANGED as usize) << 20);
            // The snapshot and the measured copy both get pages for the cache that were just freed. On a virtual host,
            // others may take ten times as long.
            copied()?;
            let (wall, diff) = host.save(&mut client, "diff", true)?;
            drop(machine);
            let disk = blocks(&diff)?;
            fs::remove_dir_all(diff)?;
            let copy = copied()?;
            fs::remove_dir_all(base)?;
            Ok(vec![
                ("diff-wall", wall),
                ("diff-copy", wall / copy),
                ("diff-disk", mb(disk)),
            ])
        });
    }

    /// A machine whose guest has printed once, and a connection to its API.
    fn with_api(&self, subject: &Subject, setup: &Setup) -> Result<(Living, Client)> {
        let socket = self.directory.join("save.sock");
        let _ = fs::remove_file(&socket);
        let words = subject.words(setup, &self.directory)?;
        let words = words.into_iter().filter(|word| word != "--no-api");
        let socket_word = socket.to_string_lossy().into_owned();
        let api = ["--api-sock".to_owned(), socket_word];
        let mut machine = Living::run(words.chain(api))?;
        machine.await_byte()?;
        Ok((machine, Client::connect(&socket, PATIENCE)?))
    }

    /// Saves a machine, as a Diff if it goes on. Returns how long the answer took, in ms, and the place.
    fn save(&self, client: &mut Client, name: &str, goes_on: bool) -> Result<(f64, PathBuf)> {
        let place = self.directory.join(name);
        let body = json!({
            "directory": place.to_string_lossy(),
            "diff": goes_on,
            "keep_running": goes_on,
        });
        let started = Instant::now();
        client.done("PUT", "/snapshot", &body.to_string())?;
        Ok((started.elapsed().as_secs_f64() * 1e3, place))
    }
}

/// The bytes that a directory's files take on the disk.
fn blocks(place: &Path) -> Result<u64> {
    let files = fs::read_dir(place).with_context(|| place.display().to_string())?;
    let sizes = files.map(|file| Ok(file?.metadata()?.blocks() * 512));
    sizes.sum()
}

/// Writes so many bytes to a new file, until they are on the disk. Returns how long that took, in ms.
fn copy(to: &Path, size: usize) -> Result<f64> {
    let bytes = vec![0x5a; size];
    let started = Instant::now();
    let mut file = File::create(to)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    let took = started.elapsed();
    fs::remove_file(to)?;
    Ok(took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn holes_take_no_blocks() {
        let scratch = Scratch::new().unwrap();
        let place = scratch.path("");
        let file = File::create(scratch.path("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        let before = blocks(&place).unwrap();
        assert!(before < 1 << 20, "{before}");
        assert!(copy(&scratch.path("copy"), 1 << 20).unwrap() > 0.0);
        assert!(!scratch.path("copy").exists());
        let whole = scratch.path("whole");
        fs::write(&whole, vec![1; 1 << 20]).unwrap();
        File::open(whole).unwrap().sync_all().unwrap();
        assert!(blocks(&place).unwrap() >= before + (1 << 20));
    }
}
