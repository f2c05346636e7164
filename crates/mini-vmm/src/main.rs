// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `mini-vmm` command: parses arguments, runs a machine, returns an exit code.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use mini_vmm::api::{self, Api, Model};
use mini_vmm::cli::firecracker::{self, Firecracker};
use mini_vmm::cli::{self, Command};
use mini_vmm::config::file as config_file;
use mini_vmm::ctl::ExecOrder;
use mini_vmm::exec::agent;
use mini_vmm::machine::Clock;
use mini_vmm::outcome::{EXIT_ERROR, Outcome};
use mini_vmm::snapshot::{self, Place, Recorder, Snapshot};
use mini_vmm::vmm::Saved;
use mini_vmm::{check, console, ctl, demo, logging, start_time, vmm};

fn main() -> ExitCode {
    start_time::mark();
    mini_vmm::share_heap();
    let command = match cli::parse_from(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            error.print();
            return error.exit_code().into();
        }
    };
    logging::init(command.verbosity());
    match execute(command) {
        Ok(code) => code.into(),
        Err(error) => {
            complain(&*error);
            EXIT_ERROR.into()
        }
    }
}

/// Says why. If standard error is closed, there is still the exit code.
fn complain(error: &(dyn Error + 'static)) {
    let _ = writeln!(
        io::stderr(),
        "{}mini-vmm: error: {}",
        console::line_start(),
        logging::sentence(error)
    );
}

/// Says what is waited for.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "mini-vmm: {what}");
}

fn execute(command: Command) -> Result<u8, Box<dyn Error>> {
    match command {
        Command::Run(run) if run.restore.is_some() => restore(*run),
        Command::Run(run) => {
            let config = run.config.as_deref();
            // Clients of the API may name a kernel later.
            let spec = match &run.api_sock {
                None => config_file::resolve(&run.flags, config)?,
                Some(_) => config_file::resolve_partly(&run.flags, config)?,
            };
            log::debug!("{spec:?}");
            if run.print_config {
                print(config_file::to_json(&spec)?.as_bytes())?;
                return Ok(0);
            }
            console::spare(&spec, config)?;
            let outcome = match &run.api_sock {
                None => vmm::run(&spec)?,
                Some(socket) => {
                    let settings = settings(socket, run.max_body);
                    let mut model = Model::new(spec, "");
                    model.set_mmds_limit(settings.max_body);
                    serve(settings, model)?
                }
            };
            Ok(outcome.exit_code())
        }
        Command::Check { json, .. } => {
            let report = check::probe(Path::new(vmm::KVM));
            let text = match json {
                true => serde_json::to_string_pretty(&report)?,
                false => report.to_string(),
            };
            print(format!("{}\n", text.trim_end()).as_bytes())?;
            Ok(if report.ok() { 0 } else { EXIT_ERROR })
        }
        Command::Demo { route, .. } => Ok(demo::run(route)?),
        Command::Ctl { order, .. } => {
            let text = ctl::run(&order, &mut say)?;
            print(format!("{text}\n").as_bytes())?;
            Ok(0)
        }
        Command::Exec { order, .. } => Ok(exec(&order)),
        Command::Agent { port, .. } => Err(agent::run(port).into()),
        Command::Merge {
            base, diff, out, ..
        } => {
            snapshot::merge(&base, &diff, &out)?;
            Ok(0)
        }
        Command::Firecracker(flags) => firecracker(*flags),
        Command::FirecrackerVersion => {
            print(firecracker::version().as_bytes())?;
            Ok(0)
        }
        Command::Completions(shell) => {
            print(&cli::completions(shell))?;
            Ok(0)
        }
    }
}

/// Runs a command in a guest. Returns its exit code, or the one that tells why there is none.
fn exec(order: &ExecOrder) -> u8 {
    ctl::exec(order, &mut say).unwrap_or_else(|error| {
        complain(&error);
        error.exit_code()
    })
}

/// Goes on with a saved machine.
fn restore(run: cli::Run) -> Result<u8, Box<dyn Error>> {
    let dir = run.restore.unwrap_or_default();
    let place = Place::Directory(dir.clone());
    let mut snapshot = match run.handler {
        None => Snapshot::open(&place)?,
        Some(socket) => Snapshot::open_served(&place, &socket)?,
    };
    if let Some(id) = run.clone_id {
        snapshot.number(id)?;
    }
    if run.record_working_set {
        snapshot.read_nothing_ahead();
    }
    let (id, labels) = (snapshot.manifest.id, snapshot.labels.clone());
    let (old, mut frozen, tracker) = snapshot.map()?;
    if run.clock_goes_on {
        frozen.clock = Clock::GoesOn;
    }
    let spec = snapshot::adapt(old, &run.flags)?;
    log::debug!("{spec:?}");
    let recorder = run
        .record_working_set
        .then(|| Recorder::new(id, &dir, &frozen.memory));
    if spec.sealed && recorder.is_some() {
        return Err(
            "a sealed machine opens no files, so leave out --sealed or --record-working-set".into(),
        );
    }
    let runs = run.resume;
    let saved = Saved {
        frozen,
        tracker,
        runs,
    };
    let outcome = match run.api_sock {
        None => vmm::restore(&spec, saved)?,
        Some(socket) => {
            let (remote, orders) = vmm::remote()?;
            let settings = settings(&socket, run.max_body);
            let model = Model::restored(spec, &labels)?;
            let api = Api::serve_thawed(settings, model, remote, saved)?;
            let outcome = orders.run();
            drop(api);
            outcome?
        }
    };
    if let Some(recorder) = recorder {
        recorder.finish();
    }
    Ok(outcome.exit_code())
}

/// The settings of an API at `socket`.
fn settings(socket: &Path, max_body: Option<usize>) -> api::Settings {
    let settings = api::Settings::new(socket);
    api::Settings {
        max_body: max_body.unwrap_or(settings.max_body),
        ..settings
    }
}

/// Runs a machine that clients control, and may also describe and start.
fn serve(settings: api::Settings, model: Model) -> Result<Outcome, Box<dyn Error>> {
    let (remote, orders) = vmm::remote()?;
    let api = Api::serve(settings, model, remote)?;
    let outcome = orders.run();
    drop(api);
    Ok(outcome?)
}

/// Runs a machine as Firecracker does.
fn firecracker(mut flags: Firecracker) -> Result<u8, Box<dyn Error>> {
    if flags.boot_timer && flags.logger.level.is_none() {
        // Otherwise its line would not be seen.
        flags.logger.level = Some("Info".to_owned());
    }
    flags.logger.apply()?;
    let mut model = Model::firecracker(flags.pci);
    model.set_logger(flags.logger);
    model.set_metrics(flags.metrics);
    model.set_boot_timer(flags.boot_timer);
    model.set_mmds_limit(flags.max_metadata);
    if let Some(metadata) = &flags.metadata {
        model.read_metadata(metadata)?;
    }
    if let Some(config) = &flags.config {
        model.read_config(config)?;
    }
    start_time::ready(flags.started);
    let outcome = match flags.api_sock {
        None => vmm::run(&model.finish()?)?,
        Some(socket) => {
            let mut settings = api::Settings::firecracker(socket, flags.id);
            settings.max_body = flags.max_body;
            serve(settings, model)?
        }
    };
    Ok(match outcome {
        // There, a reset is how guests end.
        Outcome::Reset => 0,
        outcome => outcome.exit_code(),
    })
}

/// Writes to standard output. A reader that stops early (EPIPE) is not an error.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("can't write to standard output: {error}"),
            )
        }),
    }
}
