// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of Firecracker, for programs that start one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

use crate::api::{API_VERSION, Logger, MAX_BODY};
use crate::start_time::StartedAt;

/// The name that selects this command line: of the program, or of its first argument.
const NAME: &str = "firecracker";

/// A Firecracker command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firecracker {
    /// The socket of the API. `None` if nothing serves it.
    pub api_sock: Option<PathBuf>,
    /// The machine's name.
    pub id: String,
    /// The description of a machine that starts at once.
    pub config: Option<PathBuf>,
    /// Whether virtio devices are PCI functions.
    pub pci: bool,
    /// The most bytes of a request's body.
    pub max_body: usize,
    /// The file with the document of the metadata service.
    pub metadata: Option<PathBuf>,
    /// The most bytes of that document.
    pub max_metadata: usize,
    /// The file or FIFO for metrics.
    pub metrics: Option<PathBuf>,
    /// The log.
    pub logger: Logger,
    /// Whether the guest has a boot timer.
    pub boot_timer: bool,
    /// What the parent says about the start of the process.
    pub started: StartedAt,
}

/// mini-vmm with Firecracker's command line and API
#[derive(Parser, Debug)]
#[command(name = NAME, disable_version_flag = true, disable_help_subcommand = true)]
#[command(max_term_width = 100)]
pub(super) struct Flags {
    /// Path of the API's Unix socket
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    api_sock: PathBuf,

    /// Name of the machine: letters, digits and hyphens
    #[arg(long, value_name = "NAME", default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,

    /// Description of a machine that starts at once, in Firecracker's JSON
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,

    /// Serve no API
    #[arg(long, requires = "config_file")]
    no_api: bool,

    /// Use virtio devices by PCI, instead of by MMIO
    #[arg(long)]
    enable_pci: bool,

    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BODY)]
    http_api_max_payload_size: usize,

    /// JSON file for the metadata service
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,

    /// Most bytes of the metadata [default: as --http-api-max-payload-size]
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,

    /// File or FIFO for metrics
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,

    /// File or FIFO for the log
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,

    /// Level of the log: Off, Error, Warning, Info, Debug or Trace
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,

    /// Show the level in the log, which is the default
    #[arg(long)]
    show_level: bool,

    /// Show in the log where in the source its lines come from
    #[arg(long)]
    show_log_origin: bool,

    /// Log only modules whose path begins with this, such as mini_vmm::api
    #[arg(long, value_name = "PATH")]
    module: Option<String>,

    /// Give the guest a boot timer: it writes 123 to 0xc0000000 (MMIO), which is logged with the time since the start
    #[arg(long, conflicts_with = "enable_pci")]
    boot_timer: bool,

    /// When the process was started, in microseconds of the monotonic clock, for metrics
    #[arg(long, value_name = "TIME")]
    start_time_us: Option<u64>,

    /// The CPU time of the process at its start, in microseconds, for metrics
    #[arg(long, value_name = "TIME")]
    start_time_cpu_us: Option<u64>,

    /// The CPU time that the parent used for the start, in microseconds, for metrics
    #[arg(long, value_name = "TIME", requires = "start_time_cpu_us")]
    parent_cpu_time_us: Option<u64>,

    /// Use no system call filter; there is none
    #[arg(long)]
    no_seccomp: bool,

    /// Print the version
    #[arg(long, action = ArgAction::SetTrue)]
    version: bool,
}

/// Options of Firecracker that have no effect here, and why.
const REFUSED: [(&str, &str); 1] = [(
    "--seccomp-filter",
    "there is no system call filter; leave it out, and use a sandbox around the process",
)];

/// Firecracker's rule for names (`validate_instance_id`).
fn instance_id(word: &str) -> Result<String, String> {
    let is_name = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match is_name && (1..=64).contains(&word.len()) {
        true => Ok(word.to_owned()),
        false => Err("give 1 to 64 letters, digits and hyphens".to_owned()),
    }
}

/// The arguments of a Firecracker command line, with the program's name first. `None` if it is another one.
pub(super) fn arguments(args: &[OsString]) -> Option<&[OsString]> {
    let program = args.first().map(Path::new)?;
    if program.file_name().is_some_and(|name| name == NAME) {
        return Some(args);
    }
    let is_named = args.get(1).is_some_and(|word| word == NAME);
    is_named.then(|| &args[1..])
}

/// Parses a Firecracker command line. `None` asks for the version.
pub(super) fn parse(args: &[OsString]) -> Result<Option<Firecracker>, clap::Error> {
    let mut command = Flags::command();
    for word in args.iter().skip(1).filter_map(|word| word.to_str()) {
        let name = word.split('=').next().unwrap_or(word);
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let message = format!("{name} has no effect here: {why}");
            return Err(command.error(clap::error::ErrorKind::UnknownArgument, message));
        }
    }
    let mut matches = command.try_get_matches_from(args)?;
    let flags = Flags::from_arg_matches_mut(&mut matches)?;
    Ok((!flags.version).then_some(Firecracker {
        api_sock: (!flags.no_api).then_some(flags.api_sock),
        id: flags.id,
        config: flags.config_file,
        pci: flags.enable_pci,
        max_body: flags.http_api_max_payload_size,
        metadata: flags.metadata,
        max_metadata: flags
            .mmds_size_limit
            .unwrap_or(flags.http_api_max_payload_size),
        metrics: flags.metrics_path,
        logger: Logger {
            path: flags.log_path,
            level: flags.level,
            show_level: flags.show_level.then_some(true),
            show_origin: flags.show_log_origin.then_some(true),
            module: flags.module,
        },
        boot_timer: flags.boot_timer,
        started: StartedAt {
            wall_us: flags.start_time_us,
            cpu_us: flags.start_time_cpu_us,
            parent_cpu_us: flags.parent_cpu_time_us,
        },
    }))
}

/// The text of `--version`. Programs look at its first words.
pub fn version() -> String {
    let ours = env!("CARGO_PKG_VERSION");
    format!(
        "Firecracker v{API_VERSION}\n\nThis is mini-vmm {ours}, which follows that version of the API.\n"
    )
}

#[cfg(test)]
mod tests {
    use crate::cli::{Command, parse_from};

    use super::*;

    fn firecracker(args: &[&str]) -> Firecracker {
        match parse_from(args) {
            Ok(Command::Firecracker(flags)) => *flags,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn the_name_of_the_program_or_its_first_word_selects_it() {
        let by_name = firecracker(&["/usr/bin/firecracker", "--api-sock", "s", "--id", "a-1"]);
        assert_eq!(
            by_name,
            firecracker(&["mini-vmm", "firecracker", "--api-sock=s", "--id=a-1"])
        );
        assert_eq!((by_name.api_sock, &*by_name.id), (Some("s".into()), "a-1"));
        let with_metrics = firecracker(&["firecracker", "--metrics-path", "m"]);
        assert_eq!(with_metrics.metrics, Some("m".into()));
        let limits = |args: &[&str]| {
            let flags = firecracker(&[&["firecracker"], args].concat());
            (flags.max_body, flags.max_metadata)
        };
        let body = ["--http-api-max-payload-size=7", "--mmds-size-limit=9"];
        assert_eq!(limits(&[]), (MAX_BODY, MAX_BODY));
        assert_eq!((limits(&body[..1]), limits(&body)), ((7, 7), (7, 9)));
        let with_metadata = firecracker(&["firecracker", "--metadata", "m"]);
        assert_eq!(with_metadata.metadata, Some("m".into()));
        let default = firecracker(&["firecracker"]);
        assert_eq!(default.api_sock, Some("/run/firecracker.socket".into()));
        assert!(!default.pci);
        let file = firecracker(&[
            "firecracker",
            "--no-api",
            "--config-file",
            "f",
            "--enable-pci",
            "--no-seccomp",
        ]);
        assert_eq!(
            (file.api_sock, file.config, file.pci),
            (None, Some("f".into()), true)
        );
        assert_eq!(
            parse_from(["firecracker", "--version"]).unwrap(),
            Command::FirecrackerVersion
        );
        assert!(version().starts_with("Firecracker v1."));
        let log = firecracker(&[
            "firecracker",
            "--module",
            "m",
            "--show-log-origin",
            "--show-level",
        ]);
        let (module, origin) = (log.logger.module.as_deref(), log.logger.show_origin);
        assert_eq!(
            (module, origin, log.logger.show_level),
            (Some("m"), Some(true), Some(true))
        );
        let times = [
            "firecracker",
            "--start-time-us=1",
            "--start-time-cpu-us=2",
            "--parent-cpu-time-us=3",
            "--boot-timer",
        ];
        let times = firecracker(&times);
        let started = StartedAt {
            wall_us: Some(1),
            cpu_us: Some(2),
            parent_cpu_us: Some(3),
        };
        assert_eq!((times.started, times.boot_timer), (started, true));
    }

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        for (flag, _) in REFUSED {
            let error = parse_from(["firecracker", flag, "x"]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flag), "{error}");
        }
        for wrong in [
            &["--no-api"][..],
            &["--id", "a_b"],
            &["--id", ""],
            &["--kernel", "k"],
            &["--start-time-us", "x"],
            &["--boot-timer", "--enable-pci"],
        ] {
            let args = [&["firecracker"], wrong].concat();
            assert_eq!(parse_from(args).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
