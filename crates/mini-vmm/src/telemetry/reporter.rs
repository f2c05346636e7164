// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that writes metrics and events.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::events::Queue;
use super::sink::Sink;
use super::{Error, Event, EventLog, Meter, NotFlushed};
use crate::config::VmSpec;
use crate::inputs;
use crate::sync::{Stop, Worker, readable};

/// How often metrics are written, as in Firecracker.
const EVERY: Duration = Duration::from_secs(60);

/// Writes the metrics and events of a run until it is dropped. What has room by then is written.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    pub events: EventLog,
    _worker: Option<Worker>,
}

/// Opens a file of the reports.
pub(super) fn open(what: &'static str, path: &Path) -> Result<Sink, Error> {
    Sink::open(path).map_err(|source| Error::File {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The file of `--event-log`. `fd:N` is a descriptor that this process was started with.
fn event_path(word: &Path) -> Result<PathBuf, Error> {
    let Some(number) = word.to_str().and_then(|word| word.strip_prefix("fd:")) else {
        return Ok(word.to_owned());
    };
    match number.parse::<u16>() {
        // The new descriptor has flags of its own: the lender's may keep waiting.
        Ok(number) => Ok(PathBuf::from(format!("/proc/self/fd/{number}"))),
        Err(_) => Err(Error::Descriptor(number.to_owned())),
    }
}

impl Reporter {
    /// Opens what `spec` names, and starts the thread if it names something. Call it before the guest runs.
    ///
    /// # Errors
    /// [`Error`] names the file.
    pub fn start(spec: &VmSpec, meter: &Arc<Meter>) -> Result<Self, Error> {
        let metrics = spec.metrics.as_deref();
        let event_log = spec.event_log.as_deref().map(event_path).transpose()?;
        for (what, path) in [("metrics", metrics), ("events", event_log.as_deref())] {
            if let Some(path) = path {
                spare(what, path, spec)?;
            }
        }
        if let Some(path) = metrics {
            meter.write_to(path.to_owned(), open("metrics", path)?);
        }
        let event_log = match event_log {
            Some(path) => Some((
                open("events", &path)?,
                EventLog::to_queue().map_err(Error::Start)?,
            )),
            None => None,
        };
        let (sink, events) = event_log
            .map_or((None, EventLog::default()), |(sink, (log, queue))| {
                (Some((queue, sink)), log)
            });
        let has_work = sink.is_some() || metrics.is_some();
        let mut writer = Writer {
            events: sink,
            meter: metrics.is_some().then(|| Arc::clone(meter)),
        };
        let worker = has_work.then(|| Worker::spawn("reports", move |stop| writer.run(stop)));
        Ok(Reporter {
            events,
            _worker: worker.transpose().map_err(Error::Start)?,
        })
    }

    /// Notes how the run ended.
    pub fn end<E: std::error::Error + 'static>(&self, ended: Result<crate::outcome::Outcome, &E>) {
        self.events.say(&match ended {
            Ok(outcome) => Event::Exited(outcome),
            Err(error) => Event::Failed(crate::logging::sentence(error)),
        });
    }
}

/// Checks that a file is none of those that the machine is made from.
fn spare(what: &'static str, path: &Path, spec: &VmSpec) -> Result<(), Error> {
    match inputs::same_as(path, spec) {
        Some(_) => Err(Error::OwnInput {
            what,
            path: path.to_owned(),
        }),
        None => Ok(()),
    }
}

struct Writer {
    events: Option<(Arc<Queue>, Sink)>,
    meter: Option<Arc<Meter>>,
}

impl Writer {
    fn run(&mut self, stop: &Stop) {
        let mut due = Instant::now() + EVERY;
        loop {
            let is_over = stop.is_requested();
            self.write_events();
            if let Some(meter) = &self.meter
                && (is_over || Instant::now() >= due)
            {
                due = Instant::now() + EVERY;
                match meter.flush() {
                    Ok(()) | Err(NotFlushed::NoFile) => {}
                    Err(error) => log::warn!("{error}"),
                }
            }
            if is_over {
                return;
            }
            self.wait(stop, due);
        }
    }

    fn write_events(&mut self) {
        let Some((queue, sink)) = &mut self.events else {
            return;
        };
        queue.wake.clear();
        let mut result = sink.push();
        while !sink.is_full()
            && let Some(line) = queue.next()
        {
            result = result.and(sink.write(line.as_bytes()).map(drop));
        }
        if let Err(error) = result {
            log::warn!("events can't be written: {error}; they are lost until that is mended");
        }
    }

    /// Waits for an event, room for it, the next metrics, or the end.
    fn wait(&self, stop: &Stop, due: Instant) {
        let waits = self
            .events
            .as_ref()
            .map(|(queue, sink)| match sink.is_full() {
                true => (sink.fd(), PollFlags::OUT),
                false => readable(&queue.wake).expect("a file descriptor"),
            });
        let until = due.saturating_duration_since(Instant::now());
        stop.poll([waits], self.meter.is_some().then_some(until));
    }
}
