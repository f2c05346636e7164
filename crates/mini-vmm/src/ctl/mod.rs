// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm ctl`: what people ask of a machine whose API has a socket.

mod client;
mod devices;
mod exec;
mod memory;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::client::Client;
pub use self::exec::{EXIT_UNKNOWN, ExecError, ExecOrder, exec};
use crate::config::parse_size;
use crate::layout::MIB;
use crate::text::{one_line, shorten};

/// The most characters of a server's message.
const MAX_MESSAGE: usize = 1000;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Show the machine and its state.
    Info,
    /// Start the machine that was described.
    Start,
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the power button, and wait until the guest has powered off.
    PowerButton,
    /// End the machine at once.
    Stop,
    /// Write a snapshot.
    Snapshot,
    /// Show the description, as `--print-config` does.
    Config,
    /// Show the counters.
    Metrics,
    /// List pages of its memory.
    Memory,
    /// Add a disk or a network.
    Add,
    /// Remove one.
    Remove,
    /// Tell the guest the size of a disk's image.
    Resize,
    /// Change the size of its balloon, or show what its guest tells about its memory.
    Balloon,
}

impl Action {
    /// All actions: their words, and what they do.
    pub const WORDS: [(&str, Action, &str); 14] = [
        ("info", Action::Info, "Show the machine and its state"),
        (
            "start",
            Action::Start,
            "Start the machine that was described",
        ),
        ("pause", Action::Pause, "Stop its vCPUs"),
        ("resume", Action::Resume, "Let them go on"),
        (
            "power-button",
            Action::PowerButton,
            "Press the power button, and wait until the guest has powered off",
        ),
        (
            "stop",
            Action::Stop,
            "End the machine and its process at once",
        ),
        (
            "snapshot",
            Action::Snapshot,
            "Pause it and write a snapshot to the directory DIR",
        ),
        (
            "config",
            Action::Config,
            "Show its description, as --print-config does",
        ),
        ("metrics", Action::Metrics, "Show its counters"),
        (
            "memory",
            Action::Memory,
            "Show which pages of a paused machine are dirty or resident",
        ),
        (
            "add",
            Action::Add,
            "Add a disk or a network, which is called NAME, in a slot of --hotplug",
        ),
        (
            "remove",
            Action::Remove,
            "Remove it, and wait until the guest has given it up",
        ),
        (
            "resize",
            Action::Resize,
            "Tell the guest the size that the image of the disk NAME has now",
        ),
        (
            "balloon",
            Action::Balloon,
            "Take memory from the guest: SIZE in all, or show what it tells about its memory",
        ),
    ];
}

/// The pages of memory that can be listed: those that may have changed since the last snapshot, and those that the
/// machine's process has.
pub const PAGES: [&str; 2] = ["dirty", "resident"];

/// What a balloon can be asked for instead of a size: its statistics, or a round of hints at free pages.
pub const STATS: &str = "stats";
/// As [`STATS`].
pub const HINT: &str = "hint";

/// A command line of `mini-vmm ctl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The socket of the API.
    pub socket: PathBuf,
    /// What to do.
    pub action: Action,
    /// The directory of a snapshot, which pages of memory (one of [`PAGES`]), the name of a device, or the size of a
    /// balloon, [`STATS`] or [`HINT`].
    pub dir: Option<PathBuf>,
    /// The words of the disk or network to add, with the key that they are for.
    pub device: Option<(&'static str, String)>,
    /// Whether a device is taken from a guest that does not answer.
    pub force: bool,
    /// Whether the snapshot has only what changed since the last one.
    pub diff: bool,
    /// Whether a machine that runs goes on after its snapshot.
    pub keep_running: bool,
    /// Whether the result is JSON.
    pub json: bool,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody serves the API there.
    #[error("{}: can't connect to the API: {source}; {}", path.display(), next_step(source))]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The connection failed.
    #[error("{}: the connection failed: {source}; try again", path.display())]
    Connection {
        /// The socket's path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The other end speaks something else.
    #[error("{}: the answer is not one of the API; give the path of --api-sock", .0.display())]
    NotHttp(PathBuf),
    /// The connection ended before the answer.
    #[error("{}: the connection ended before the answer; has the machine ended?", .0.display())]
    Closed(PathBuf),
    /// There is no name of a device.
    #[error("say which device; `config` shows those of the command line as disk0, net0 and so on")]
    NoName,
    /// A snapshot needs a directory.
    #[error("a snapshot needs a directory; name one after the action")]
    NoDirectory,
    /// A balloon needs a size.
    #[error(
        "a balloon needs a size of whole MiB, such as 256M, or one of the words {STATS} and {HINT}; give one after the action"
    )]
    NoSize,
    /// The directory can't be found from here.
    #[error("{path:?} can't be used as a directory ({source}); give another path")]
    Directory {
        /// Its path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The API speaks UTF-8.
    #[error("{0:?} is not UTF-8, which the API needs; give another path")]
    NotText(PathBuf),
    /// The machine's process refused.
    #[error("{0}")]
    Refused(String),
}

/// What to do about an error of connect(2).
fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "only the user that started mini-vmm can",
        ErrorKind::InvalidInput => "give the path of --api-sock",
        _ => "is mini-vmm running with --api-sock?",
    }
}

/// Carries out `order`, and returns the text to print. What takes longer than a second is told to `say` once.
///
/// # Errors
/// [`Error`] says why it failed.
pub fn run(order: &Order, say: &mut dyn FnMut(&str)) -> Result<String, Error> {
    let mut session = Session {
        path: &order.socket,
        client: Client::connect(&order.socket)?,
        say,
    };
    let (text, value) = match order.action {
        Action::Info => session.info()?,
        Action::Config => {
            let options = session.get("/options")?;
            (format!("{options:#}"), options)
        }
        Action::Metrics => session.metrics()?,
        Action::Memory => session.memory(order)?,
        Action::Balloon => session.balloon(order)?,
        Action::Start => {
            session.act("InstanceStart", "waiting until the guest runs")?;
            state("Running")
        }
        Action::Pause => {
            session.set_state("Paused", "waiting until the vCPUs have stopped")?;
            state("Paused")
        }
        Action::Resume => {
            session.set_state("Resumed", "waiting until the guest runs")?;
            state("Running")
        }
        Action::Snapshot => {
            session.snapshot(order)?;
            let about = session.object("/")?;
            state(about["state"].as_str().unwrap_or_default())
        }
        Action::PowerButton => {
            session.act("SendCtrlAltDel", "waiting for the machine's answer")?;
            session.until_ended(
                "waiting until the guest has powered off (Ctrl-C ends only the wait)",
            )?;
            state("Ended")
        }
        Action::Add => session.add(order)?,
        Action::Remove => session.remove(order)?,
        Action::Resize => session.resize(order)?,
        Action::Stop => {
            session.act("Stop", "waiting for the machine's answer")?;
            session.until_ended("waiting until the machine's process ends")?;
            state("Ended")
        }
    };
    Ok(if order.json { value.to_string() } else { text })
}

/// A size in whole MiB.
fn mib(word: &str) -> Option<u64> {
    let bytes = parse_size(word)?;
    (bytes % MIB == 0).then_some(bytes / MIB)
}

/// The result of an order that leads to a state.
fn state(name: &str) -> (String, Value) {
    (name.to_owned(), json!({ "state": name }))
}

/// A connection for one order.
struct Session<'a> {
    path: &'a Path,
    client: Client<'a>,
    say: &'a mut dyn FnMut(&str),
}

impl Session<'_> {
    /// Sends a request, and returns the body of its answer. A slow answer is `awaited`.
    fn ask(&mut self, request: (&str, &str, &str), awaited: &str) -> Result<Vec<u8>, Error> {
        let (method, target, body) = request;
        let mut wait = once(self.say, awaited);
        let answer = self.client.ask(method, target, body, &mut wait)?;
        if matches!(answer.status, 200 | 204) {
            return Ok(answer.body);
        }
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let message = value["fault_message"].as_str().map(one_line);
        let message =
            message.unwrap_or_else(|| format!("the answer is HTTP status {}", answer.status));
        Err(Error::Refused(shorten(&message, MAX_MESSAGE)))
    }

    /// The body of a path.
    fn body(&mut self, target: &str) -> Result<Vec<u8>, Error> {
        self.ask(("GET", target, ""), "waiting for the machine's answer")
    }

    /// The JSON of a path.
    fn get(&mut self, target: &str) -> Result<Value, Error> {
        let body = self.body(target)?;
        serde_json::from_slice(&body).map_err(|_| Error::NotHttp(self.path.to_owned()))
    }

    /// The counters, in Prometheus' text format and as an object.
    fn metrics(&mut self) -> Result<(String, Value), Error> {
        let body = self.body("/metrics")?;
        let text = String::from_utf8_lossy(&body);
        let lines: Vec<_> = text.lines().map(one_line).collect();
        let values = lines.iter().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let value = serde_json::from_str(value).ok()?;
            (!name.starts_with('#')).then(|| (name.to_owned(), value))
        });
        let values = Value::Object(values.collect());
        Ok((lines.join("\n"), values))
    }

    /// The pages that are asked for.
    fn memory(&mut self, order: &Order) -> Result<(String, Value), Error> {
        let which = order.dir.as_deref().and_then(Path::to_str);
        let which = which.ok_or(Error::NoDirectory)?;
        let pages = self.get(&format!("/memory/{which}"))?;
        let machine = self.get("/machine-config")?;
        let described = memory::describe(which, &pages, &machine);
        described.ok_or_else(|| Error::NotHttp(self.path.to_owned()))
    }

    /// Changes the size of the balloon, or shows its statistics.
    fn balloon(&mut self, order: &Order) -> Result<(String, Value), Error> {
        let word = order.dir.as_deref().and_then(Path::to_str);
        let awaited = "waiting for the machine's answer";
        if word == Some(HINT) {
            self.ask(("PATCH", "/balloon/hinting/start", ""), awaited)?;
            let status = self.get("/balloon/hinting/status")?;
            return Ok((format!("host_cmd: {}", status["host_cmd"]), status));
        }
        if word != Some(STATS) {
            let mib = word.and_then(mib).ok_or(Error::NoSize)?;
            let body = json!({ "amount_mib": mib }).to_string();
            self.ask(("PATCH", "/balloon", &body), awaited)?;
            return Ok((format!("target_mib: {mib}"), json!({ "target_mib": mib })));
        }
        let all = self.object("/balloon/statistics")?;
        let lines = all
            .iter()
            .map(|(name, value)| format!("{}: {value}", one_line(name)));
        Ok((lines.collect::<Vec<_>>().join("\n"), Value::Object(all)))
    }

    fn object(&mut self, target: &str) -> Result<Map<String, Value>, Error> {
        match self.get(target)? {
            Value::Object(object) => Ok(object),
            _ => Err(Error::NotHttp(self.path.to_owned())),
        }
    }

    fn act(&mut self, action: &str, awaited: &str) -> Result<(), Error> {
        let body = json!({ "action_type": action }).to_string();
        self.ask(("PUT", "/actions", &body), awaited).map(drop)
    }

    fn set_state(&mut self, state: &str, awaited: &str) -> Result<(), Error> {
        let body = json!({ "state": state }).to_string();
        self.ask(("PATCH", "/vm", &body), awaited).map(drop)
    }

    /// Asks for a snapshot. The machine's process may have another working directory.
    fn snapshot(&mut self, order: &Order) -> Result<(), Error> {
        let dir = order.dir.as_deref().ok_or(Error::NoDirectory)?;
        let path = std::path::absolute(dir).map_err(|source| Error::Directory {
            path: dir.to_owned(),
            source,
        })?;
        let text = path.to_str().ok_or_else(|| Error::NotText(path.clone()))?;
        let body = json!({
            "directory": text,
            "diff": order.diff,
            "keep_running": order.keep_running,
        });
        let awaited = "waiting until the snapshot is written";
        self.ask(("PUT", "/snapshot", &body.to_string()), awaited)
            .map(drop)
    }

    /// What is known about the machine, in lines and as one object.
    fn info(&mut self) -> Result<(String, Value), Error> {
        let mut all = self.object("/")?;
        all.extend(self.object("/machine-config")?);
        // Counters exist once the machine runs.
        if all.get("state").is_some_and(|state| state != "Not started") {
            all.extend(self.object("/vm")?);
        }
        let lines = all.iter().map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), one_line);
            format!("{}: {text}", one_line(name))
        });
        Ok((lines.collect::<Vec<_>>().join("\n"), Value::Object(all)))
    }

    /// Waits until nobody serves the API any more.
    fn until_ended(&mut self, awaited: &str) -> Result<(), Error> {
        loop {
            self.client.until_closed(&mut once(self.say, awaited))?;
            // The server also closes idle connections when it has too many.
            match Client::connect(self.path) {
                Ok(client) => self.client = client,
                Err(Error::Connect { source, .. }) if is_nobody(&source) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether nobody listens at a socket.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}

/// Says `what` the first time that it is called.
fn once(say: &mut dyn FnMut(&str), what: &str) -> impl FnMut() {
    let mut is_said = false;
    move || {
        if !std::mem::replace(&mut is_said, true) {
            say(what);
        }
    }
}

#[cfg(test)]
mod tests;
