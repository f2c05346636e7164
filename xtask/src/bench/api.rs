// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the API costs: until it answers, until a guest runs, in memory, and a guest beside a storm of requests.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use procfs::process::Process;

use super::client::{Client, storm};
use super::footprint::{Living, SETTLE, mb};
use super::guest::Work;
use super::host::{Found, Host};
use super::image;
use super::subject::{Kind, Setup, Subject};
use crate::process::write;

/// The limit for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The parts of a storm, with as much silence between them.
const SLICES: usize = 10;
const SLICE: Duration = Duration::from_secs(1);

fn is_ours(subject: &Subject) -> bool {
    subject.kind == Kind::MiniVmm
}

impl Host<'_> {
    /// All of it.
    pub fn api(&mut self) {
        let rounds = self.effort.rounds;
        self.turns("API, start", 0..=rounds, None, is_ours, |host, subject| {
            host.api_start(subject)
        });
        let idle = 1..=self.effort.growth_rounds;
        self.turns("API, idle", idle, None, is_ours, |host, subject| {
            host.api_idle(subject)
        });
        let storms = 1..=self.effort.growth_rounds.min(3);
        self.turns("API, storm", storms, None, is_ours, |host, subject| {
            host.api_storm(subject)
        });
    }

    /// Waits for a client at a socket of its own.
    fn waiting(&self, subject: &Subject) -> Result<(Living, PathBuf)> {
        let socket = self.directory.join("api");
        let _ = fs::remove_file(&socket);
        let words = [&subject.program, &PathBuf::from("--api-sock"), &socket];
        let machine = Living::run(words)?;
        Ok((machine, socket))
    }

    /// From exec to the first answer, and to a guest that four requests start, in relation to a plain start.
    fn api_start(&self, subject: &Subject) -> Result<Found> {
        let setup = Setup::of(Work::Say);
        let started = Instant::now();
        let mut machine = Living::start(self, subject, &setup)?;
        machine.await_byte()?;
        let plain = started.elapsed();
        drop(machine);

        let started = Instant::now();
        let (machine, socket) = self.waiting(subject)?;
        Client::connect(&socket, PATIENCE)?.done("GET", "/version", "")?;
        let answer = started.elapsed();
        drop(machine);

        let kernel = self.directory.join("api.elf");
        write(&kernel, image::elf(setup.work, subject.end()))?;
        let boot = serde_json::json!({ "kernel_image_path": kernel.to_string_lossy() });
        let size = serde_json::json!({ "vcpu_count": setup.cpus, "mem_size_mib": setup.memory });
        let started = Instant::now();
        let (mut machine, socket) = self.waiting(subject)?;
        let mut client = Client::connect(&socket, PATIENCE)?;
        client.done("GET", "/", "")?;
        client.done("PUT", "/machine-config", &size.to_string())?;
        client.done("PUT", "/boot-source", &boot.to_string())?;
        client.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#)?;
        machine.await_byte()?;
        let start = started.elapsed();
        let of_plain = |time: Duration| time.as_secs_f64() / plain.as_secs_f64();
        Ok(vec![
            ("api-plain", plain.as_secs_f64() * 1e3),
            ("api-answer", of_plain(answer)),
            ("api-start", of_plain(start)),
        ])
    }

    /// A process that waits for a machine, after its first answer.
    fn api_idle(&self, subject: &Subject) -> Result<Found> {
        let (machine, socket) = self.waiting(subject)?;
        Client::connect(&socket, PATIENCE)?.done("GET", "/version", "")?;
        thread::sleep(SETTLE);
        Ok(vec![("api-idle", resident(&machine)?)])
    }

    /// Exits per second of the vCPU's CPU time beside a storm of requests, in relation to silence, and what the process
    /// grows meanwhile.
    fn api_storm(&mut self, subject: &Subject) -> Result<Found> {
        let (machine, socket) = self.waiting(subject)?;
        let kernel = self.directory.join("busy.elf");
        write(&kernel, image::elf(Work::Port(u32::MAX), subject.end()))?;
        let boot = serde_json::json!({ "kernel_image_path": kernel.to_string_lossy() });
        let mut client = Client::connect(&socket, PATIENCE)?;
        client.done("PUT", "/boot-source", &boot.to_string())?;
        client.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#)?;
        drop(client);
        // The first storm is not counted: it makes the heap as large as it gets.
        storm(&socket, SLICE)?;
        let before = resident(&machine)?;
        let (mut silent, mut stormy, mut answers) = (Rate::default(), Rate::default(), 0);
        for _ in 0..SLICES {
            silent.add(&machine, &socket, || {
                thread::sleep(SLICE);
                Ok(())
            })?;
            stormy.add(&machine, &socket, || {
                answers += storm(&socket, SLICE)?;
                Ok(())
            })?;
        }
        let growth = resident(&machine)? - before;
        let note = format!("{}: {answers} answers in the storm", subject.name);
        self.report.notes.push(note);
        let loss = 100.0 * (1.0 - stormy.of_cpu() / silent.of_cpu());
        Ok(vec![("api-storm", loss), ("api-growth", growth)])
    }
}

/// Resident memory in MB.
fn resident(machine: &Living) -> Result<f64> {
    let pages = machine.process()?.statm()?.resident;
    Ok(mb(pages * procfs::page_size()))
}

/// Exits, and the CPU time of the vCPU's thread in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    exits: f64,
    cpu: f64,
}

impl Rate {
    fn now(machine: &Living, socket: &std::path::Path) -> Result<Rate> {
        let about = Client::connect(socket, PATIENCE)?.done("GET", "/vm", "")?;
        let exits = about["exits"][0].as_u64().context("exits of the vCPU")?;
        Ok(Rate {
            exits: exits as f64,
            cpu: vcpu_seconds(&machine.process()?)?,
        })
    }

    /// Adds what happens during `time`.
    fn add(
        &mut self,
        machine: &Living,
        socket: &std::path::Path,
        time: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = Rate::now(machine, socket)?;
        time()?;
        let after = Rate::now(machine, socket)?;
        self.exits += after.exits - before.exits;
        self.cpu += after.cpu - before.cpu;
        Ok(())
    }

    fn of_cpu(&self) -> f64 {
        self.exits / self.cpu
    }
}

/// CPU time of the first vCPU's thread, from the scheduler, which counts nanoseconds.
fn vcpu_seconds(process: &Process) -> Result<f64> {
    for task in process.tasks()? {
        let task = task?;
        let directory = format!("/proc/{}/task/{}", process.pid, task.tid);
        let name = fs::read_to_string(format!("{directory}/comm"))?;
        if name.trim_end() == "vcpu0" {
            let text = fs::read_to_string(format!("{directory}/schedstat"))?;
            let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
            return Ok(nanoseconds / 1e9);
        }
    }
    anyhow::bail!("there is no thread vcpu0")
}
