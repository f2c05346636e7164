// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Methods and paths, and what each does.

use serde_json::{Value, json};

use super::Identity;
use super::balloon;
use super::fields::{Fields, json as parse_json, wrong};
use super::http::{Answer, Data, Fault, Request};
use super::model::Model;
use super::server::Handler;
use super::snapshots::{self, Load};
use super::state::{Handled, Later, Machine};
use crate::vmm::control::{Asked, BalloonChange, Command, Listing, SnapshotOrder};

/// The paths with their methods, as messages list them.
pub(super) const PATHS: &[(&str, &str)] = &[
    ("/", "GET"),
    ("/actions", "PUT"),
    ("/balloon", "GET, PUT, PATCH"),
    ("/balloon/hinting/start", "PATCH"),
    ("/balloon/hinting/status", "GET"),
    ("/balloon/hinting/stop", "PATCH"),
    ("/balloon/statistics", "GET, PATCH"),
    ("/boot-source", "PUT"),
    ("/cpu-config", "PUT"),
    ("/devices/{id}", "PUT, DELETE"),
    ("/drives/{id}", "PUT, PATCH, DELETE"),
    ("/entropy", "PUT"),
    ("/logger", "PUT"),
    ("/machine-config", "GET, PUT, PATCH"),
    ("/memory/dirty", "GET"),
    ("/memory/resident", "GET"),
    ("/metrics", "GET, PUT"),
    ("/mmds", "GET, PUT, PATCH"),
    ("/mmds/config", "PUT"),
    ("/network-interfaces/{id}", "PUT, PATCH, DELETE"),
    ("/options", "GET, PATCH"),
    ("/serial", "PUT"),
    ("/snapshot", "PUT"),
    ("/snapshot/create", "PUT"),
    ("/snapshot/load", "PUT"),
    ("/snapshot/restore", "PUT"),
    ("/version", "GET"),
    ("/vm", "GET, PATCH"),
    ("/vm/config", "GET"),
    ("/vsock", "PUT"),
];

/// Paths of Firecracker's API for what this version does not have.
const ABSENT: [&str; 4] = ["hotplug", "memory-hotplug", "pmem", "snapshot"];

/// Answers the requests of all clients.
#[derive(Debug)]
pub(super) struct Routes {
    pub identity: Identity,
    pub machine: Machine,
}

/// A request whose answer comes later.
#[derive(Debug)]
pub(super) struct Awaited {
    method: String,
    path: String,
    later: Later,
}

impl Handler for Routes {
    type Awaited = Awaited;

    fn handle(&mut self, request: Request<'_>) -> Result<Answer, Awaited> {
        let (method, path) = (request.method, request.path);
        self.machine.meter().api.count(method, path);
        let answer = match self.answer(request) {
            Ok(Handled::Later(later)) => {
                return Err(Awaited {
                    method: method.to_owned(),
                    path: path.to_owned(),
                    later,
                });
            }
            Ok(Handled::Now(data)) => Ok(data),
            Err(fault) => Err(fault),
        };
        self.note(method, path, &answer);
        Ok(answer)
    }

    fn take(&mut self, awaited: &mut Awaited) -> Option<Answer> {
        let answer = self.machine.take(&mut awaited.later)?;
        self.note(&awaited.method, &awaited.path, &answer);
        Some(answer)
    }
}

impl Routes {
    /// Counts and logs how a request ended.
    fn note(&self, method: &str, path: &str, answer: &Answer) {
        match answer {
            Err(fault) => {
                self.machine.meter().api.count_failure(method, path);
                log::info!("API: {method} {path}: {}", fault.message);
            }
            Ok(_) => log::debug!("API: {method} {path}"),
        }
    }

    fn answer(&mut self, request: Request<'_>) -> Result<Handled, Fault> {
        self.machine.look();
        let path = request.path.trim_end_matches('/');
        if let Some(id) = path.strip_prefix("/drives/") {
            return self.drive(request, id);
        }
        if let Some(id) = path.strip_prefix("/network-interfaces/") {
            return self.net(request, id);
        }
        if let Some(id) = path.strip_prefix("/devices/") {
            return self.device(request, id);
        }
        if path == "/balloon" || path.starts_with("/balloon/") {
            return self.balloon(request, path);
        }
        match (request.method, path) {
            ("GET", _) if !request.body.is_empty() => Err(no_body()),
            ("GET", "/vm") => self.command(Command::Describe),
            ("GET", "/memory/dirty") => self.command(Command::ListMemory(Listing::Dirty)),
            ("GET", "/memory/resident") => self.command(Command::ListMemory(Listing::Resident)),
            ("PUT", "/snapshot") => self.snapshot(request.body, snapshots::directory),
            ("PUT", "/snapshot/load") => self.load(request.body, Load::files),
            ("PUT", "/snapshot/restore") => self.load(request.body, Load::directory),
            ("PUT", "/snapshot/create") => self.snapshot(request.body, snapshots::files),
            ("PUT", "/actions") => self.act(Fields::parse(request.body)?),
            ("PATCH", "/vm") => self.set_state(Fields::parse(request.body)?),
            _ => self.answer_now(request, path).map(Handled::Now),
        }
    }

    fn command(&mut self, command: Command) -> Result<Handled, Fault> {
        self.machine.command(command).map(Handled::Later)
    }

    /// Answers a request that asks nothing of the machine itself.
    fn answer_now(&mut self, request: Request<'_>, path: &str) -> Answer {
        let machine = &mut self.machine;
        match (request.method, path) {
            ("GET", "") => self.instance(),
            ("GET", "/version") => {
                json_answer(json!({ "firecracker_version": super::API_VERSION }))
            }
            ("GET", "/machine-config") => json_answer(machine.model().machine()),
            ("GET", "/vm/config") => json_answer(machine.model().whole()),
            ("GET", "/options") => json_answer(machine.model().options()?),
            ("PUT", "/boot-source") => change(machine, request.body, Model::put_boot_source),
            ("PUT", "/machine-config") => change(machine, request.body, Model::put_machine),
            ("PATCH", "/machine-config") => change(machine, request.body, Model::patch_machine),
            ("PUT", "/cpu-config") => change(machine, request.body, Model::put_cpu_config),
            ("PUT", "/entropy") => change(machine, request.body, Model::put_entropy),
            ("PUT", "/vsock") => change(machine, request.body, Model::put_vsock),
            ("GET", "/metrics") => Ok(Some(Data::Metrics(machine.meter().prometheus()))),
            ("PUT", "/metrics") => change(machine, request.body, Model::put_metrics),
            ("PUT", "/serial") => change(machine, request.body, Model::put_serial),
            ("PATCH", "/options") => {
                machine.draft()?.patch_options(request.body)?;
                Ok(None)
            }
            ("PUT", "/logger") => {
                machine.put_logger(Fields::parse(request.body)?)?;
                Ok(None)
            }
            ("PUT", "/mmds/config") => change(machine, request.body, Model::put_mmds_config),
            (method, "/mmds") => metadata(machine.model(), method, request.body),
            (method, path) => Err(no_route(method, path)),
        }
    }

    /// `/drives/{id}`.
    fn drive(&mut self, request: Request<'_>, id: &str) -> Result<Handled, Fault> {
        match request.method {
            "PUT" if self.machine.has_started() => {
                let fields = Fields::parse(request.body)?;
                let (command, undo) = self.machine.running()?.add_drive(id, fields)?;
                self.machine.change(command, undo).map(Handled::Later)
            }
            "DELETE" => {
                let (command, undo) = self.machine.running()?.remove_drive(id)?;
                self.machine.change(command, undo).map(Handled::Later)
            }
            "PUT" => {
                let draft = self.machine.draft()?;
                draft.put_drive(id, Fields::parse(request.body)?)?;
                Ok(Handled::Now(None))
            }
            "PATCH" => {
                let fields = Fields::parse(request.body)?;
                let model = self.machine.model();
                if !model.drives.iter().any(|drive| drive.id == id) {
                    // Before the start it isn't the name that matters.
                    self.machine.running()?;
                }
                let patch = self.machine.model().read_drive_patch(id, fields)?;
                let (command, undo) = self.machine.running()?.change_drive(patch)?;
                self.machine.change(command, undo).map(Handled::Later)
            }
            method => Err(no_route(method, "/drives/{id}")),
        }
    }

    /// `/network-interfaces/{id}`.
    fn net(&mut self, request: Request<'_>, id: &str) -> Result<Handled, Fault> {
        match request.method {
            "PUT" if self.machine.has_started() => {
                let fields = Fields::parse(request.body)?;
                let (command, undo) = self.machine.running()?.add_net(id, fields)?;
                self.machine.change(command, undo).map(Handled::Later)
            }
            "DELETE" => {
                let (command, undo) = self.machine.running()?.remove_net(id)?;
                self.machine.change(command, undo).map(Handled::Later)
            }
            "PUT" => {
                let draft = self.machine.draft()?;
                draft.put_net(id, Fields::parse(request.body)?)?;
                Ok(Handled::Now(None))
            }
            "PATCH" => {
                let fields = Fields::parse(request.body)?;
                let model = self.machine.model();
                if !model.nets.iter().any(|net| net.id == id) {
                    self.machine.running()?;
                }
                let change = self.machine.model().read_net_patch(id, fields)?;
                let (command, undo) = self.machine.running()?.change_net(change);
                self.machine.change(command, undo).map(Handled::Later)
            }
            method => Err(no_route(method, "/network-interfaces/{id}")),
        }
    }

    /// `/balloon` and the paths below it.
    fn balloon(&mut self, request: Request<'_>, path: &str) -> Result<Handled, Fault> {
        let (method, body) = (request.method, request.body);
        let model = self.machine.model();
        match (method, path) {
            ("GET", _) if !body.is_empty() => Err(no_body()),
            ("GET", "/balloon") => {
                let balloon = balloon::json(model.balloon()?);
                json_answer(balloon).map(Handled::Now)
            }
            ("PUT", "/balloon") => {
                change(&mut self.machine, body, Model::put_balloon).map(Handled::Now)
            }
            ("PATCH", "/balloon") => {
                let patch = model.read_balloon_patch(Fields::parse(body)?)?;
                self.change_balloon(patch)
            }
            ("GET", "/balloon/statistics") => {
                model.balloon_with_stats()?;
                self.command(Command::AskBalloon(Asked::Statistics))
            }
            ("PATCH", "/balloon/statistics") => {
                let patch = model.read_stats_patch(Fields::parse(body)?)?;
                self.change_balloon(patch)
            }
            ("GET", "/balloon/hinting/status") => {
                model.balloon_with_hints()?;
                self.command(Command::AskBalloon(Asked::Hinting))
            }
            ("PATCH", "/balloon/hinting/start") => {
                let start = balloon::start(body)?;
                model.balloon_with_hints()?;
                self.change_balloon(start)
            }
            ("PATCH", "/balloon/hinting/stop") => {
                let stop = balloon::stop(body)?;
                model.balloon_with_hints()?;
                self.change_balloon(stop)
            }
            (method, path) => Err(no_route(method, path)),
        }
    }

    fn change_balloon(&mut self, change: BalloonChange) -> Result<Handled, Fault> {
        let (command, undo) = self.machine.running()?.change_balloon(change);
        self.machine.change(command, undo).map(Handled::Later)
    }

    /// `/devices/{id}`: disks and networks that come and go, in the words of their flags.
    fn device(&mut self, request: Request<'_>, id: &str) -> Result<Handled, Fault> {
        let (command, undo) = match request.method {
            "PUT" => {
                let fields = Fields::parse(request.body)?;
                self.machine.running()?.add_device(id, fields)?
            }
            "DELETE" => {
                let mut force = false;
                if !request.body.is_empty() {
                    let mut fields = Fields::parse(request.body)?;
                    force = fields.switch("force")?.unwrap_or(false);
                    fields.finish()?;
                }
                self.machine.running()?.remove_device(id, force)?
            }
            method => return Err(no_route(method, "/devices/{id}")),
        };
        self.machine.change(command, undo).map(Handled::Later)
    }

    /// `GET /`.
    fn instance(&mut self) -> Answer {
        let state = self.machine.state()?;
        let Identity { id, app, version } = &self.identity;
        json_answer(json!({
            "id": id,
            "state": state,
            "vmm_version": version,
            "app_name": app,
        }))
    }

    /// `PUT /actions`.
    fn act(&mut self, mut fields: Fields) -> Result<Handled, Fault> {
        let action = fields.text("action_type")?;
        fields.finish()?;
        match Fields::required("action_type", action)?.as_str() {
            "InstanceStart" => self.machine.start().map(Handled::Later),
            "SendCtrlAltDel" => self.command(Command::PowerButton),
            "FlushMetrics" => {
                self.machine.flush_metrics()?;
                Ok(Handled::Now(None))
            }
            "Stop" => self.machine.stop(),
            other => {
                let known = "InstanceStart, SendCtrlAltDel, FlushMetrics or Stop";
                let what = format_args!("{other:?} is not {known}");
                Err(wrong("action_type", what))
            }
        }
    }

    /// Writes a snapshot, which `read` finds in the body.
    fn snapshot(
        &mut self,
        body: &[u8],
        read: fn(Fields) -> Result<SnapshotOrder, Fault>,
    ) -> Result<Handled, Fault> {
        let mut order = read(Fields::parse(body)?)?;
        order.labels = self.machine.model().labels();
        self.command(Command::Snapshot(order))
    }

    /// Goes on with a snapshot, which `read` finds in the body.
    fn load(
        &mut self,
        body: &[u8],
        read: fn(Fields) -> Result<Load, Fault>,
    ) -> Result<Handled, Fault> {
        let load = read(Fields::parse(body)?)?;
        self.machine.load(&load).map(Handled::Later)
    }

    /// `PATCH /vm`.
    fn set_state(&mut self, mut fields: Fields) -> Result<Handled, Fault> {
        let state = fields.text("state")?;
        fields.finish()?;
        let command = match Fields::required("state", state)?.as_str() {
            "Paused" => Command::Pause,
            "Resumed" => Command::Resume,
            other => {
                return Err(wrong(
                    "state",
                    format_args!("{other:?} is not Paused or Resumed"),
                ));
            }
        };
        self.command(command)
    }
}

fn no_body() -> Fault {
    Fault::new("GET request cannot have a body: leave it out")
}

fn json_answer(value: Value) -> Answer {
    Ok(Some(Data::Json(value)))
}

/// `/mmds`.
fn metadata(model: &Model, method: &str, body: &[u8]) -> Answer {
    match method {
        "GET" => return json_answer(model.metadata()),
        "PUT" => model.put_metadata(parse_json(body)?)?,
        "PATCH" => model.patch_metadata(parse_json(body)?)?,
        method => return Err(no_route(method, "/mmds")),
    }
    Ok(None)
}

/// Changes the description. A fault leaves it as it was.
fn change(
    machine: &mut Machine,
    body: &[u8],
    change: fn(&mut Model, Fields) -> Result<(), Fault>,
) -> Answer {
    let draft = machine.draft()?;
    change(draft, Fields::parse(body)?)?;
    Ok(None)
}

/// Why nothing answers to a method and a path.
fn no_route(method: &str, path: &str) -> Fault {
    let known = PATHS
        .iter()
        .find(|(known, _)| known.trim_end_matches('/') == path);
    match known {
        Some((path, methods)) => {
            Fault::new(format!("{method} is not possible on {path}; use {methods}"))
        }
        None if ABSENT.contains(&path.split('/').nth(1).unwrap_or_default()) => Fault::new(
            format!("{path}: this version does not have it; leave the request out"),
        ),
        None => {
            let all = PATHS.iter().map(|(path, _)| *path).collect::<Vec<_>>();
            let message = format!(
                "there is no path {path}; the known ones are {}",
                all.join(", ")
            );
            Fault::with_status(404, message)
        }
    }
}
