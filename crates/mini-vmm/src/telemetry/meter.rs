// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads the counters of a run, over all of its machines.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vcpu_loop::{ExitCounters, ExitKind};
use virtio_models::{balloon, block, net, vsock};

use super::sample::{self, Family, Sample};
use super::sink::Sink;
use super::{ApiCounts, json, prometheus};
use crate::console::ConsoleOutput;
use crate::hypercall::calls::Hypercalls;
use crate::start_time;
use crate::sync::lock;

/// The counters of one machine.
#[derive(Debug)]
pub(crate) struct Sources {
    pub exits: Vec<Arc<ExitCounters>>,
    pub calls: Arc<Hypercalls>,
    /// Those of disks, by name.
    pub disks: Vec<(String, Arc<block::Counters>)>,
    /// Those of networks, by name.
    pub nets: Vec<(String, Arc<net::Counters>)>,
    /// Those of the socket device.
    pub vsock: Option<Arc<vsock::Counters>>,
    /// Those of the balloon.
    pub balloon: Option<Arc<balloon::Counters>>,
}

/// The counters of a run.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub api: ApiCounts,
    machine: Mutex<OfMachine>,
    console: Mutex<Option<ConsoleOutput>>,
    file: Mutex<Option<MetricsFile>>,
}

#[derive(Debug, Default)]
struct OfMachine {
    sources: Option<Sources>,
    /// The sums of earlier machines.
    before: Vec<Sample>,
    resets: u64,
}

/// The file or FIFO of `--metrics`.
#[derive(Debug)]
struct MetricsFile {
    path: PathBuf,
    sink: Sink,
    /// What the last line was made from.
    last: Vec<Sample>,
    /// Lines that had no room.
    missed: u64,
}

/// Why no line was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFlushed {
    #[error(
        "there is no file for metrics; name one by PUT /metrics before the start, or ask GET /metrics"
    )]
    NoFile,
    #[error("{}: this FIFO is full; read it", .0.display())]
    Full(PathBuf),
    #[error("{}: metrics can't be written: {source}; make room, or stop the machine", path.display())]
    Failed {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Meter {
    /// Counts a new machine from now on. The sums of the earlier ones stay.
    pub fn attach(&self, sources: Sources) {
        let mut machine = lock(&self.machine);
        if machine.sources.is_some() {
            machine.before = machine.samples();
            machine.resets += 1;
        }
        machine.sources = Some(sources);
    }

    /// Counts the same machine with other devices.
    pub fn update(&self, sources: Sources) {
        lock(&self.machine).sources = Some(sources);
    }

    /// Counts what the limit of the console's output drops.
    pub fn attach_console(&self, output: Option<ConsoleOutput>) {
        *lock(&self.console) = output;
    }

    /// Begins to write to a file. After a failed start this is the next one, and goes on where the last one ended.
    pub(super) fn write_to(&self, path: PathBuf, sink: Sink) {
        let mut file = lock(&self.file);
        let (last, missed) = file
            .take()
            .map_or_else(Default::default, |file| (file.last, file.missed));
        *file = Some(MetricsFile {
            path,
            sink,
            last,
            missed,
        });
    }

    /// All values now.
    fn samples(&self, missed: u64) -> Vec<Sample> {
        let machine = lock(&self.machine);
        let mut samples = machine.samples();
        let single = |family, group: &str, key: &str, value| Sample {
            family,
            labels: Vec::new(),
            group: group.to_owned(),
            key: key.to_owned(),
            value,
        };
        samples.push(single(
            &sample::RESETS,
            "vmm",
            "reset_count",
            machine.resets,
        ));
        let limited = lock(&self.console)
            .as_ref()
            .map_or(0, ConsoleOutput::limited);
        let key = "rate_limiter_dropped_bytes";
        samples.push(single(&sample::SERIAL_LIMITED, "uart", key, limited));
        samples.push(single(
            &sample::MISSED,
            "logger",
            "missed_metrics_count",
            missed,
        ));
        let startup = [
            (&sample::STARTUP, "process_startup_time_us"),
            (&sample::STARTUP_CPU, "process_startup_time_cpu_us"),
        ];
        for ((family, key), time) in startup.into_iter().zip(start_time::until_ready()) {
            samples.push(single(family, "api_server", key, time.as_nanos() as u64));
        }
        self.api.samples(&mut samples);
        samples
    }

    /// All values, in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        let missed = lock(&self.file).as_ref().map_or(0, |file| file.missed);
        prometheus::text(&self.samples(missed))
    }

    /// Writes a line to the file now.
    ///
    /// # Errors
    /// [`NotFlushed`] says why there is none.
    pub fn flush(&self) -> Result<(), NotFlushed> {
        let mut file = lock(&self.file);
        let file = file.as_mut().ok_or(NotFlushed::NoFile)?;
        let path = || file.path.clone();
        let failed = |source| NotFlushed::Failed {
            path: path(),
            source,
        };
        file.sink.push().map_err(failed)?;
        if file.sink.is_full() {
            file.missed += 1;
            return Err(NotFlushed::Full(path()));
        }
        let samples = self.samples(file.missed);
        let line = json::line(&samples, &file.last);
        file.sink.write(&line).map_err(failed)?;
        // The next line has what a lost line would have had.
        file.last = samples;
        Ok(())
    }
}

impl OfMachine {
    fn samples(&self) -> Vec<Sample> {
        let mut samples = self
            .sources
            .as_ref()
            .map_or_else(Vec::new, Sources::samples);
        for (at, sample) in samples.iter_mut().enumerate() {
            // The place is another one only if devices have come or gone.
            let before = self.before.get(at).filter(|before| sample.is_same(before));
            let before =
                before.or_else(|| self.before.iter().find(|before| sample.is_same(before)));
            if let Some(before) = before {
                sample.add(before.value);
            }
        }
        samples
    }
}

impl Sources {
    /// The values, always in the same order.
    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (vcpu, exits) in self.exits.iter().enumerate() {
            samples.extend(exits.iter().map(|(kind, value)| Sample {
                family: &sample::EXITS,
                labels: vec![("vcpu", vcpu.to_string()), ("kind", snake(kind))],
                group: format!("vcpu_{vcpu}"),
                key: exit_key(kind),
                value,
            }));
        }
        samples.push(Sample {
            family: &sample::HYPERCALLS,
            labels: Vec::new(),
            group: "vmm".to_owned(),
            key: "hypercall_count".to_owned(),
            value: self.calls.counters().total(),
        });
        for (id, counters) in &self.disks {
            let values = disk(counters.get());
            samples.extend(of_device("block", id, &values));
        }
        for (id, counters) in &self.nets {
            samples.extend(of_device("net", id, &net(counters)));
        }
        if let Some(counters) = &self.vsock {
            samples.extend(of_single("vsock", &vsock(counters)));
        }
        if let Some(counters) = &self.balloon {
            samples.extend(of_single("balloon", &balloon(counters.get())));
        }
        samples
    }
}

type Value = (&'static Family, &'static str, u64);

fn of_device(kind: &str, id: &str, values: &[Value]) -> Vec<Sample> {
    let values = values.iter().map(|(family, key, value)| Sample {
        family,
        labels: vec![("device", id.to_owned())],
        group: format!("{kind}_{id}"),
        key: (*key).to_owned(),
        value: *value,
    });
    values.collect()
}

/// The values of a device of which a machine has one.
fn of_single(group: &str, values: &[Value]) -> Vec<Sample> {
    let values = values.iter().map(|(family, key, value)| Sample {
        family,
        labels: Vec::new(),
        group: group.to_owned(),
        key: (*key).to_owned(),
        value: *value,
    });
    values.collect()
}

fn disk(counts: block::Counts) -> [Value; 12] {
    let nanoseconds = |time: std::time::Duration| time.as_nanos() as u64;
    let block::Counts { reads, writes, .. } = counts;
    [
        (&sample::READS, "read_count", reads.requests),
        (&sample::READ_BYTES, "read_bytes", reads.bytes),
        (
            &sample::READ_TIME,
            "read_agg.sum_us",
            nanoseconds(reads.time),
        ),
        (
            &sample::READ_LONGEST,
            "read_agg.max_us",
            nanoseconds(reads.longest),
        ),
        (&sample::WRITES, "write_count", writes.requests),
        (&sample::WRITE_BYTES, "write_bytes", writes.bytes),
        (
            &sample::WRITE_TIME,
            "write_agg.sum_us",
            nanoseconds(writes.time),
        ),
        (
            &sample::WRITE_LONGEST,
            "write_agg.max_us",
            nanoseconds(writes.longest),
        ),
        (&sample::FLUSHES, "flush_count", counts.flushes),
        (&sample::ERASES, "erase_count", counts.erases),
        (&sample::DISK_ERRORS, "execute_fails", counts.failed),
        (&sample::DISK_INVALID, "invalid_reqs_count", counts.invalid),
    ]
}

fn net(counters: &net::Counters) -> [Value; 6] {
    [
        (&sample::RX_FRAMES, "rx_packets_count", counters.received()),
        (
            &sample::RX_BYTES,
            "rx_bytes_count",
            counters.received_bytes(),
        ),
        (&sample::RX_DROPPED, "rx_fails", counters.received_dropped()),
        (&sample::TX_FRAMES, "tx_packets_count", counters.sent()),
        (&sample::TX_BYTES, "tx_bytes_count", counters.sent_bytes()),
        (&sample::TX_DROPPED, "tx_fails", counters.sent_dropped()),
    ]
}

fn vsock(counters: &vsock::Counters) -> [Value; 10] {
    [
        (&sample::VSOCK_RX, "rx_packets_count", counters.received()),
        (
            &sample::VSOCK_RX_BYTES,
            "rx_bytes_count",
            counters.received_bytes(),
        ),
        (&sample::VSOCK_TX, "tx_packets_count", counters.sent()),
        (
            &sample::VSOCK_TX_BYTES,
            "tx_bytes_count",
            counters.sent_bytes(),
        ),
        (&sample::VSOCK_ADDED, "conns_added", counters.added()),
        (&sample::VSOCK_REMOVED, "conns_removed", counters.removed()),
        (&sample::VSOCK_KILLED, "conns_killed", counters.killed()),
        (
            &sample::VSOCK_REFUSED,
            "tx_refused_count",
            counters.refused(),
        ),
        (
            &sample::VSOCK_READ_FAILS,
            "rx_read_fails",
            counters.read_fails(),
        ),
        (
            &sample::VSOCK_WRITE_FAILS,
            "tx_write_fails",
            counters.write_fails(),
        ),
    ]
}

fn balloon(counts: balloon::Counts) -> [Value; 12] {
    use sample as s;
    [
        (&s::BALLOON_INFLATIONS, "inflate_count", counts.inflations),
        (&s::BALLOON_INFLATED, "inflate_freed", counts.inflated),
        (
            &s::BALLOON_BAD_INFLATIONS,
            "inflate_fails",
            counts.bad_inflations,
        ),
        (&s::BALLOON_DEFLATIONS, "deflate_count", counts.deflations),
        (&s::BALLOON_STATS, "stats_updates_count", counts.stats),
        (
            &s::BALLOON_BAD_STATS,
            "stats_update_fails",
            counts.bad_stats,
        ),
        (
            &s::BALLOON_REPORTS,
            "free_page_report_count",
            counts.reports,
        ),
        (
            &s::BALLOON_REPORTED,
            "free_page_report_freed",
            counts.reported,
        ),
        (
            &s::BALLOON_BAD_REPORTS,
            "free_page_report_fails",
            counts.bad_reports,
        ),
        (&s::BALLOON_HINTS, "free_page_hint_count", counts.hints),
        (&s::BALLOON_HINTED, "free_page_hint_freed", counts.hinted),
        (
            &s::BALLOON_BAD_HINTS,
            "free_page_hint_fails",
            counts.bad_hints,
        ),
    ]
}

/// The name of a kind with underscores, such as `pio_in`.
fn snake(kind: ExitKind) -> String {
    let mut name = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// Firecracker says "io" for ports.
fn exit_key(kind: ExitKind) -> String {
    format!("exit_{}", snake(kind).replace("pio_", "io_"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
