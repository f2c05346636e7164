// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Methods and paths, and what each does.

use serde_json::{Value, json};

use super::Identity;
use super::fields::{Fields, wrong};
use super::http::{Answer, Data, Fault, Request};
use super::model::Model;
use super::server::Handler;
use super::state::Machine;
use crate::vmm::control::Command;

/// The paths with their methods, as messages list them.
pub(super) const PATHS: &[(&str, &str)] = &[
    ("/", "GET"),
    ("/actions", "PUT"),
    ("/boot-source", "PUT"),
    ("/drives/{id}", "PUT, PATCH"),
    ("/entropy", "PUT"),
    ("/logger", "PUT"),
    ("/machine-config", "GET, PUT, PATCH"),
    ("/metrics", "GET, PUT"),
    ("/network-interfaces/{id}", "PUT"),
    ("/options", "GET, PATCH"),
    ("/serial", "PUT"),
    ("/version", "GET"),
    ("/vm", "GET, PATCH"),
    ("/vm/config", "GET"),
];

/// Paths of Firecracker's API for what this version does not have.
const ABSENT: [&str; 8] = [
    "balloon",
    "cpu-config",
    "hotplug",
    "memory-hotplug",
    "mmds",
    "pmem",
    "snapshot",
    "vsock",
];

/// Answers the requests of all clients.
#[derive(Debug)]
pub(super) struct Routes {
    pub identity: Identity,
    pub machine: Machine,
}

impl Handler for Routes {
    fn handle(&mut self, request: Request<'_>) -> Answer {
        let answer = self.answer(request);
        let meter = self.machine.meter();
        meter
            .api
            .count(request.method, request.path, answer.is_err());
        match &answer {
            Err(fault) => log::info!(
                "API: {} {}: {}",
                request.method,
                request.path,
                fault.message
            ),
            Ok(_) => log::debug!("API: {} {}", request.method, request.path),
        }
        answer
    }
}

impl Routes {
    fn answer(&mut self, request: Request<'_>) -> Answer {
        let path = request.path.trim_end_matches('/');
        if let Some(id) = path.strip_prefix("/drives/") {
            return self.drive(request, id);
        }
        if let Some(id) = path.strip_prefix("/network-interfaces/") {
            return self.net(request, id);
        }
        let machine = &mut self.machine;
        match (request.method, path) {
            ("GET", _) if !request.body.is_empty() => {
                Err(Fault::new("GET request cannot have a body: leave it out"))
            }
            ("GET", "") => self.instance(),
            ("GET", "/version") => {
                json_answer(json!({ "firecracker_version": super::API_VERSION }))
            }
            ("GET", "/machine-config") => json_answer(machine.model().machine()),
            ("GET", "/vm/config") => json_answer(machine.model().whole()),
            ("GET", "/options") => json_answer(machine.model().options()?),
            ("GET", "/vm") => json_answer(machine.report()?),
            ("PUT", "/boot-source") => change(machine, request.body, Model::put_boot_source),
            ("PUT", "/machine-config") => change(machine, request.body, Model::put_machine),
            ("PATCH", "/machine-config") => change(machine, request.body, Model::patch_machine),
            ("PUT", "/entropy") => change(machine, request.body, Model::put_entropy),
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
            ("PUT", "/actions") => self.act(Fields::parse(request.body)?),
            ("PATCH", "/vm") => self.set_state(Fields::parse(request.body)?),
            (method, path) => Err(no_route(method, path)),
        }
    }

    /// `/drives/{id}`.
    fn drive(&mut self, request: Request<'_>, id: &str) -> Answer {
        match request.method {
            "PUT" => {
                let draft = self.machine.draft()?;
                draft.put_drive(id, Fields::parse(request.body)?)?;
            }
            "PATCH" => {
                let fields = Fields::parse(request.body)?;
                self.machine.model().check_drive_patch(id, fields)?;
                self.machine.command(Command::ResizeDisks)?;
            }
            method => return Err(no_route(method, "/drives/{id}")),
        }
        Ok(None)
    }

    /// `/network-interfaces/{id}`.
    fn net(&mut self, request: Request<'_>, id: &str) -> Answer {
        match request.method {
            "PUT" => {
                let draft = self.machine.draft()?;
                draft.put_net(id, Fields::parse(request.body)?)?;
                Ok(None)
            }
            method => Err(no_route(method, "/network-interfaces/{id}")),
        }
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
    fn act(&mut self, mut fields: Fields) -> Answer {
        let action = fields.text("action_type")?;
        fields.finish()?;
        match Fields::required("action_type", action)?.as_str() {
            "InstanceStart" => self.machine.start()?,
            "SendCtrlAltDel" => self.machine.command(Command::PowerButton).map(drop)?,
            "FlushMetrics" => self.machine.flush_metrics()?,
            "Stop" => self.machine.stop()?,
            other => {
                let known = "InstanceStart, SendCtrlAltDel, FlushMetrics or Stop";
                return Err(wrong(
                    "action_type",
                    format_args!("{other:?} is not {known}"),
                ));
            }
        }
        Ok(None)
    }

    /// `PATCH /vm`.
    fn set_state(&mut self, mut fields: Fields) -> Answer {
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
        self.machine.command(command)?;
        Ok(None)
    }
}

fn json_answer(value: Value) -> Answer {
    Ok(Some(Data::Json(value)))
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
    let first = path.split('/').nth(1).unwrap_or_default();
    if ABSENT.contains(&first) {
        return Fault::new(format!(
            "{path}: this version does not have it; leave the request out"
        ));
    }
    let known = PATHS
        .iter()
        .find(|(known, _)| known.trim_end_matches('/') == path);
    match known {
        Some((path, methods)) => {
            Fault::new(format!("{method} is not possible on {path}; use {methods}"))
        }
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
