// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to a run, as lines of JSON.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};

use super::json::timestamp_ms;
use crate::logging::Budget;
use crate::outcome::Outcome;
use crate::sync::{Wake, lock};
use crate::text::shorten;

/// The most lines that wait for their reader. Later ones are counted only.
const MAX_WAITING: usize = 256;
/// The most characters of a device's message.
const MAX_MESSAGE: usize = 300;
/// How many events of a kind a guest may cause at once. One more follows every ten seconds.
const BURST: u32 = 64;

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The guest began to run.
    Started,
    Paused,
    Resumed,
    /// The guest reset the machine, and it starts again.
    Reset,
    /// The guest reported a panic.
    GuestPanic,
    /// A device was added while the guest runs, or removed, in this slot.
    DeviceAdded(u8),
    DeviceRemoved(u8),
    /// A device reported a problem of the host.
    DeviceError {
        device: String,
        message: String,
    },
    Exited(Outcome),
    /// The host failed.
    Failed(String),
}

impl Event {
    fn json(&self) -> Value {
        match self {
            Event::Started => json!({ "event": "started" }),
            Event::Paused => json!({ "event": "paused" }),
            Event::Resumed => json!({ "event": "resumed" }),
            Event::Reset => json!({ "event": "reset" }),
            Event::GuestPanic => json!({ "event": "guest-panic" }),
            Event::DeviceAdded(slot) => json!({ "event": "device-added", "slot": slot }),
            Event::DeviceRemoved(slot) => json!({ "event": "device-removed", "slot": slot }),
            Event::DeviceError { device, message } => json!({
                "event": "device-error",
                "device": device,
                "message": shorten(message, MAX_MESSAGE),
            }),
            Event::Exited(outcome) => json!({
                "event": "exited",
                "outcome": outcome.name(),
                "code": outcome.exit_code(),
            }),
            Event::Failed(message) => json!({
                "event": "failed",
                "message": shorten(message, MAX_MESSAGE),
                "code": crate::outcome::EXIT_ERROR,
            }),
        }
    }

    /// The budget of events that a guest causes.
    fn budget(&self) -> Option<usize> {
        match self {
            Event::Reset => Some(0),
            Event::GuestPanic => Some(1),
            Event::DeviceError { .. } => Some(2),
            _ => None,
        }
    }
}

/// Takes the events of a run, from any thread. Without `--event-log` it does nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventLog(Option<Arc<Queue>>);

/// Lines on their way to the thread that writes them.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    pub(super) wake: Wake,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<String>,
    budgets: [Budget; 3],
    /// Events that were left out since the last line.
    left_out: u64,
}

impl EventLog {
    /// Events go to the queue, which is returned, too.
    pub(super) fn to_queue() -> io::Result<(Self, Arc<Queue>)> {
        let now = Instant::now();
        let queue = Arc::new(Queue {
            state: Mutex::new(Waiting {
                lines: VecDeque::new(),
                budgets: [(); 3].map(|()| Budget::new(BURST, now)),
                left_out: 0,
            }),
            wake: Wake::new()?,
        });
        Ok((EventLog(Some(Arc::clone(&queue))), queue))
    }

    /// Notes an event. Never waits for the writer.
    pub fn say(&self, event: &Event) {
        if let Some(queue) = &self.0 {
            queue.say(event, Instant::now());
        }
    }
}

impl Queue {
    fn say(&self, event: &Event, now: Instant) {
        let mut waiting = lock(&self.state);
        let budget = event.budget();
        let within = budget.is_none_or(|at| waiting.budgets[at].take(BURST, now).is_some());
        if !within || waiting.lines.len() >= MAX_WAITING {
            waiting.left_out += 1;
            return;
        }
        let mut json = event.json();
        json["timestamp_ms"] = timestamp_ms().into();
        let left_out = std::mem::take(&mut waiting.left_out);
        if left_out > 0 {
            json["left_out"] = left_out.into();
        }
        waiting.lines.push_back(format!("{json}\n"));
        self.wake.signal();
    }

    /// The next line to write.
    pub(super) fn next(&self) -> Option<String> {
        lock(&self.state).lines.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(queue: &Queue) -> Vec<Value> {
        let lines = std::iter::from_fn(|| queue.next());
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }

    #[test]
    fn a_guest_that_resets_all_day_fills_no_log() {
        let (_, queue) = EventLog::to_queue().unwrap();
        let now = Instant::now();
        for _ in 0..10_000 {
            queue.say(&Event::Reset, now);
            assert!(lock(&queue.state).lines.len() <= MAX_WAITING);
        }
        // Other kinds have their own budget, and the client's events have none.
        queue.say(&Event::GuestPanic, now);
        queue.say(&Event::Paused, now);
        let lines = lines(&queue);
        assert_eq!(lines.len(), BURST as usize + 2);
        assert_eq!(lines[BURST as usize]["left_out"], 10_000 - u64::from(BURST));
        assert_eq!(lines[BURST as usize + 1]["event"], "paused");
        assert_eq!(lines[BURST as usize + 1]["left_out"], Value::Null);
    }

    #[test]
    fn without_a_reader_the_queue_ends() {
        let (log, queue) = EventLog::to_queue().unwrap();
        for _ in 0..1000 {
            log.say(&Event::Paused);
        }
        assert_eq!(lines(&queue).len(), MAX_WAITING);
        log.say(&Event::Resumed);
        assert_eq!(lines(&queue)[0]["left_out"], 1000 - MAX_WAITING);
    }

    #[test]
    fn messages_are_one_short_line() {
        let (log, queue) = EventLog::to_queue().unwrap();
        log.say(&Event::DeviceError {
            device: "disk0".to_owned(),
            message: "\"a\nb".repeat(1000),
        });
        let line = queue.next().unwrap();
        assert!(line.len() < 1000 && line.ends_with("}\n"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        EventLog::default().say(&Event::Started);
    }

    #[test]
    fn the_end_has_its_outcome_and_code() {
        let json = Event::Exited(Outcome::DebugExit(3)).json();
        assert_eq!(
            (json["outcome"].as_str(), json["code"].as_u64()),
            (Some("debug-exit"), Some(7))
        );
        let json = Event::Failed("no room".to_owned()).json();
        assert_eq!(
            (json["event"].as_str(), json["code"].as_u64()),
            (Some("failed"), Some(1))
        );
    }
}
