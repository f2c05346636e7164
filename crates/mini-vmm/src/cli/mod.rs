// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: parses arguments into a [`Command`]. This module doesn't read files, print or exit, except for
//! [`Error::print`].

mod ctl;
pub mod firecracker;
mod flags;
mod hints;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueHint};
pub use clap_complete::Shell;

pub use self::firecracker::Firecracker;
use self::flags::MachineFlags;
use crate::config::HypercallRoute;
use crate::ctl::{ExecOrder, Order};
use crate::exec::PORT;
use crate::outcome::EXIT_USAGE;
use crate::snapshot::CloneId;

/// The exit codes, as `--help` shows them.
const EXIT_CODES: &str = "\
Exit codes:
    0  the guest powered off
    1  start-up or configuration error
    2  usage error on the command line
   32  the guest asked for a reset, and --on-reboot is exit
   33  vCPU failure: triple fault, KVM internal error (registers are on stderr);
       or a device's thread failed
   34  the guest reported a panic (pvpanic), and --on-panic is exit
   36  --timeout ran out
  130  Ctrl-A x on the console
  143  SIGTERM, and the guest did not power off in time (SIGINT: 130, SIGHUP: 129)
    n  the guest wrote v to the debug-exit port: n = (v << 1) | 1
    n  the guest chose n by the hypercall VMM_HC_EXIT (--hypercall pio or forward)
";

/// Examples, as `--help` shows them.
const EXAMPLES: &str = "\
Examples:
  mini-vmm --kernel vmlinuz --initrd initrd.img
      Boots with 1 vCPU and 512M; the console is this terminal (Ctrl-A x quits).
  mini-vmm --kernel vmlinux --cpus 2 --memory 1G --cmdline \"console=ttyS0 quiet panic=-1\"
  mini-vmm --kernel test.elf --serial file=log --debug-exit --timeout 5m
      Runs a test that reports its status through the debug-exit port.
  mini-vmm --kernel vmlinuz --print-config > vm.json; mini-vmm --config vm.json --cpus 4
      Keeps a machine in a file; flags override the file.
  mini-vmm --api-sock api.sock
      Waits until clients describe a machine and start it, by HTTP.
  mini-vmm ctl api.sock power-button
      Asks its guest to power off, and waits until it has.
  mini-vmm ctl api.sock snapshot snap; mini-vmm --restore snap --resume
      Saves its guest, and goes on with it in another process.
  mini-vmm check
      Shows what this host can do.
  mini-vmm demo
      Shows a tiny guest that registers for hypercalls, and how long one takes.
";

/// Usage lines of the program itself.
const USAGE: &str = "\
mini-vmm --kernel <FILE> [OPTIONS]
       mini-vmm --config <FILE> [OPTIONS]
       mini-vmm --api-sock <PATH> [OPTIONS]
       mini-vmm --restore <DIR> [--resume] [OPTIONS]
       mini-vmm ctl <SOCKET> <ACTION> [--json]
       mini-vmm agent [--port <N>]
       mini-vmm check [--json]
       mini-vmm demo [--hypercall <ROUTE>]
       mini-vmm firecracker [FIRECRACKER'S OPTIONS]
       mini-vmm completions <SHELL>";

/// What a command line requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a machine, or print its description.
    Run(Box<Run>),
    /// Show what this host can do.
    Check {
        /// As JSON.
        json: bool,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Run the built-in guest that registers for hypercalls.
    Demo {
        /// The route of its hypercalls.
        route: HypercallRoute,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Ask something of a machine that serves its API.
    Ctl {
        /// What, and of which machine.
        order: Order,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Run a command in the guest of such a machine.
    Exec {
        /// Which one, and of which machine.
        order: ExecOrder,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Run commands for the host, in a guest.
    Agent {
        /// The vsock port.
        port: u32,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Make a Diff whole.
    Merge {
        /// The snapshot that it continues.
        base: PathBuf,
        /// It.
        diff: PathBuf,
        /// Where the result goes.
        out: PathBuf,
        /// How often `-v` was given.
        verbosity: u8,
    },
    /// Print the completion script of a shell.
    Completions(Shell),
    /// Be Firecracker.
    Firecracker(Box<Firecracker>),
    /// Print Firecracker's version.
    FirecrackerVersion,
}

/// A choice of `--clock`.
const CLOCK_GOES_ON: &str = "goes-on";

/// A command line that describes a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The flags that describe the machine: their names, which are also keys of the config file, and their words.
    pub flags: Vec<(&'static str, OsString)>,
    /// The config file. Flags override it.
    pub config: Option<PathBuf>,
    /// Print the machine's description instead of running it.
    pub print_config: bool,
    /// The socket of the API, if there is one. Then the kernel may be missing.
    pub api_sock: Option<PathBuf>,
    /// The directory of the snapshot with which the machine goes on.
    pub restore: Option<PathBuf>,
    /// Which clone the machine is, for a guest that asked for the snapshot.
    pub clone_id: Option<CloneId>,
    /// The socket of the process that brings its memory, if that is not in the snapshot's file.
    pub handler: Option<PathBuf>,
    /// Whether what it touches is recorded in the snapshot's directory.
    pub record_working_set: bool,
    /// Whether it runs at once.
    pub resume: bool,
    /// Whether its clock goes on with the time since the snapshot, instead of from where it stood.
    pub clock_goes_on: bool,
    /// The most bytes of a request's body, if not the default.
    pub max_body: Option<usize>,
    /// How often `-v` was given.
    pub verbosity: u8,
}

impl Command {
    /// How often `-v` was given.
    pub fn verbosity(&self) -> u8 {
        match self {
            Command::Run(run) => run.verbosity,
            Command::Check { verbosity, .. }
            | Command::Demo { verbosity, .. }
            | Command::Ctl { verbosity, .. }
            | Command::Exec { verbosity, .. }
            | Command::Agent { verbosity, .. }
            | Command::Merge { verbosity, .. } => *verbosity,
            Command::Completions(_) | Command::Firecracker(_) | Command::FirecrackerVersion => 0,
        }
    }
}

/// A command line without a [`Command`]: a mistake, or a request for help or the version.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<clap::Error>);

impl Error {
    /// The exit code: 0 if help or the version was requested, else that of a usage error.
    pub fn exit_code(&self) -> u8 {
        match self.0.use_stderr() {
            true => EXIT_USAGE,
            false => 0,
        }
    }

    /// Prints help or version to standard output, or the mistake to standard error. Ignores a failed write.
    pub fn print(&self) {
        let _ = match self.0.use_stderr() {
            true => write!(io::stderr(), "mini-vmm: {}", self.0.render()),
            false => self.0.print(),
        };
    }
}

/// A small KVM virtual machine monitor that boots stock Linux kernels
#[derive(Parser, Debug)]
#[command(name = "mini-vmm", version, override_usage = USAGE, max_term_width = 100)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
#[command(
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true
)]
#[command(after_help = "Examples and exit codes: mini-vmm --help")]
#[command(after_long_help = format!("{EXAMPLES}\n{EXIT_CODES}"))]
struct Arguments {
    #[command(flatten)]
    machine: MachineFlags,

    /// Description of the machine in JSON; flags override it
    ///
    /// Its keys are the names of the flags above; --print-config writes such a file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(help_heading = "Configuration")]
    config: Option<PathBuf>,

    /// Print the description that the command line means, and run nothing
    #[arg(long, help_heading = "Configuration")]
    print_config: bool,

    /// Go on with a machine that was saved by `mini-vmm ctl SOCKET snapshot DIR`
    ///
    /// Give its disks, networks, sockets and shared memory again (--disk, --net, --cloud-init, --vsock,
    /// --shared-memory), in their order. --serial, --on-panic, --timeout, --metrics, --event-log, --snapshot-dir and --sealed may differ; nothing else can. The directory
    /// must not be changed meanwhile.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Configuration")]
    #[arg(conflicts_with_all = ["config", "print_config"])]
    restore: Option<PathBuf>,

    /// Tell a guest that asked for the snapshot which clone it is [default: 1]
    ///
    /// Its hypercall VMM_HC_SNAPSHOT returns this number, 1 to 2147483647. In the original it returned 0.
    #[arg(
        long,
        value_name = "N",
        requires = "restore",
        help_heading = "Configuration",
        hide_short_help = true
    )]
    clone_id: Option<CloneId>,

    /// Where its memory comes from: `file`, or `uffd=SOCKET`
    ///
    /// With uffd, a page fault handler of Firecracker's protocol listens at the socket and brings the pages that the guest
    /// touches. The snapshot needs no memory file then. The host must let this process have a userfaultfd.
    #[arg(
        long,
        value_name = "FROM",
        requires = "restore",
        help_heading = "Configuration"
    )]
    #[arg(value_parser = memory_from, hide_short_help = true)]
    restore_memory: Option<MemoryFrom>,

    /// Record which memory it touches until its end, for the next restores
    ///
    /// The file working-set in the snapshot's directory then lets the host read that memory ahead of the guest. It helps if
    /// the memory file is not in the host's cache.
    #[arg(
        long,
        requires = "restore",
        conflicts_with = "restore_memory",
        help_heading = "Configuration",
        hide_short_help = true
    )]
    record_working_set: bool,

    /// Let it run at once, instead of waiting for `mini-vmm ctl SOCKET resume`
    #[arg(long, requires = "restore", help_heading = "Configuration")]
    resume: bool,

    /// How a saved machine's clock goes on
    ///
    /// stands: from where it stood, as if no time had passed. goes-on: with the time since the snapshot, by the hosts' time
    /// of day.
    #[arg(
        long,
        value_name = "HOW",
        default_value = "stands",
        hide_short_help = true,
        requires = "restore",
        help_heading = "Configuration"
    )]
    #[arg(value_parser = ["stands", CLOCK_GOES_ON])]
    clock: String,

    /// Serve Firecracker's API on a Unix socket
    ///
    /// Without --kernel, a client describes and starts the machine. Nothing may be at the path. Only the owner can connect.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "API")]
    api_sock: Option<PathBuf>,

    /// Most bytes of a request's body [default: 51200]
    #[arg(
        long,
        value_name = "BYTES",
        requires = "api_sock",
        help_heading = "API",
        hide_short_help = true
    )]
    http_api_max_payload_size: Option<usize>,

    /// Log more to stderr: -v info, -vv debug, -vvv trace
    ///
    /// MINI_VMM_LOG selects by module instead, such as MINI_VMM_LOG=mini_vmm::boot=debug.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Output")]
    verbose: u8,

    /// Print help: -h a summary, --help all of it
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = "Output")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Output")]
    version: Option<bool>,

    #[command(subcommand)]
    command: Option<Subcommand>,
}

#[derive(clap::Subcommand, Debug)]
enum Subcommand {
    /// Show what this host can do; exit code 1 if a stock kernel can't run here
    #[command(override_usage = "mini-vmm check [--json]")]
    Check {
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a built-in guest that registers for hypercalls; exit code 1 if it can't
    #[command(override_usage = "mini-vmm demo [--hypercall <ROUTE>]")]
    Demo {
        /// How its hypercalls travel: auto, vendor, forward, pio or pio=PORT
        #[arg(long, value_name = "ROUTE", default_value = "auto")]
        hypercall: HypercallRoute,
    },
    /// Control a machine that was started with --api-sock
    ///
    /// Waits until it is done, and says what it waits for. Exit code 0: done. 1: not done; the reason is on stderr.
    /// With exec it is the command's exit code; see docs/exec.md.
    #[command(override_usage = "mini-vmm ctl <SOCKET> <ACTION> [--json]\n       \
                          mini-vmm ctl <SOCKET> snapshot <DIR> [--diff] [--keep-running]\n       \
                          mini-vmm ctl <SOCKET> memory <dirty|resident> [--json]\n       \
                          mini-vmm ctl <SOCKET> add <NAME> <--disk <WORDS>|--net <WORDS>>\n       \
                          mini-vmm ctl <SOCKET> remove <NAME> [--force]\n       \
                          mini-vmm ctl <SOCKET> resize <NAME>\n       \
                          mini-vmm ctl <SOCKET> balloon <SIZE|stats|hint> [--json]\n       \
                          mini-vmm ctl <SOCKET> exec [--env <NAME=VALUE>] [--cwd <DIR>] [--port <N>] -- <COMMAND>...")]
    Ctl(ctl::CtlWords),
    /// Run in a guest, and run commands there that `mini-vmm ctl SOCKET exec` asks for
    ///
    /// Listens for the host on vsock until it is killed. Commands run as the user that started it.
    #[command(override_usage = "mini-vmm agent [--port <N>]")]
    Agent {
        /// The vsock port
        #[arg(long, value_name = "N", default_value_t = PORT)]
        port: u32,
    },
    /// Make a snapshot that has only changes whole: snapshot merge <BASE> <DIFF> <OUT>
    #[command(override_usage = "mini-vmm snapshot merge <BASE> <DIFF> <OUT>")]
    Snapshot {
        #[command(subcommand)]
        action: SnapshotAction,
    },
    /// Take Firecracker's options instead, as the program does under that name
    #[command(
        override_usage = "mini-vmm firecracker [OPTIONS]",
        disable_help_flag = true
    )]
    Firecracker,
    /// Print the completion script of a shell
    #[command(override_usage = "mini-vmm completions <SHELL>")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(clap::Subcommand, Debug)]
enum SnapshotAction {
    /// Make a Diff whole, with the snapshot that it continues; for a chain, merge the first one, then the next onto OUT
    #[command(override_usage = "mini-vmm snapshot merge <BASE> <DIFF> <OUT>")]
    Merge {
        /// The directory of the snapshot that the Diff continues, or its memory file
        #[arg(value_hint = ValueHint::AnyPath)]
        base: PathBuf,
        /// The directory of a snapshot that was taken with --diff, or its memory file
        #[arg(value_hint = ValueHint::AnyPath)]
        diff: PathBuf,
        /// The result, a directory or a memory file; it may be BASE, which is then replaced at once
        #[arg(value_hint = ValueHint::AnyPath)]
        out: PathBuf,
    },
}

/// Parses a command line, with the program's name first. A pure function of its arguments.
///
/// # Errors
/// When the arguments are no command. The [`Error`] has the text to print.
///
/// # Example
/// ```
/// use mini_vmm::cli::{self, Command};
///
/// let Command::Run(run) = cli::parse_from(["mini-vmm", "--kernel", "vmlinux", "--cpus", "2"])?
/// else { unreachable!() };
/// assert_eq!(run.flags, [("kernel", "vmlinux".into()), ("cpus", "2".into())]);
/// assert_eq!(cli::parse_from(["mini-vmm", "--no-such"]).unwrap_err().exit_code(), 2);
/// # Ok::<(), cli::Error>(())
/// ```
pub fn parse_from<I>(args: I) -> Result<Command, Error>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    if let Some(args) = firecracker::arguments(&args) {
        let parsed = firecracker::parse(args).map_err(|error| Error(Box::new(error)))?;
        return Ok(parsed.map_or(Command::FirecrackerVersion, |flags| {
            Command::Firecracker(Box::new(flags))
        }));
    }
    let parsed = Arguments::command()
        .try_get_matches_from(&args)
        .and_then(|mut matches| {
            let flags = flags::given(&matches);
            command_from(Arguments::from_arg_matches_mut(&mut matches)?, flags)
        });
    parsed.map_err(|error| Error(Box::new(hints::add(error, &args))))
}

/// The word of `--restore-memory`: the socket of a page fault handler, or none for the file.
#[derive(Clone, Debug)]
struct MemoryFrom(Option<PathBuf>);

fn memory_from(word: &str) -> Result<MemoryFrom, &'static str> {
    match (word, word.strip_prefix("uffd=")) {
        ("file", _) => Ok(MemoryFrom(None)),
        (_, Some(socket)) if !socket.is_empty() => Ok(MemoryFrom(Some(socket.into()))),
        _ => Err("say file or uffd=SOCKET"),
    }
}

/// The completion script of `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mini-vmm", &mut script);
    script
}

fn command_from(
    arguments: Arguments,
    flags: Vec<(&'static str, OsString)>,
) -> Result<Command, clap::Error> {
    let run = Run {
        flags,
        config: arguments.config,
        print_config: arguments.print_config,
        api_sock: arguments.api_sock,
        restore: arguments.restore,
        clone_id: arguments.clone_id,
        handler: arguments.restore_memory.and_then(|from| from.0),
        record_working_set: arguments.record_working_set,
        resume: arguments.resume,
        clock_goes_on: arguments.clock == CLOCK_GOES_ON,
        max_body: arguments.http_api_max_payload_size,
        verbosity: 0,
    };
    if run.restore.is_some() && !run.resume && run.api_sock.is_none() {
        let what = "nothing could let this machine run; add --resume or --api-sock";
        return Err(Arguments::command().error(ErrorKind::MissingRequiredArgument, what));
    }
    let Some(subcommand) = arguments.command else {
        let verbosity = arguments.verbose;
        return Ok(Command::Run(Box::new(Run { verbosity, ..run })));
    };
    if run != Run::default() {
        let what = "a subcommand runs no machine; leave out the options that describe one";
        return Err(Arguments::command().error(ErrorKind::ArgumentConflict, what));
    }
    command_of(subcommand, arguments.verbose)
}

/// The command of a subcommand.
fn command_of(subcommand: Subcommand, verbosity: u8) -> Result<Command, clap::Error> {
    Ok(match subcommand {
        Subcommand::Check { json } => Command::Check { json, verbosity },
        Subcommand::Demo { hypercall } => Command::Demo {
            route: hypercall,
            verbosity,
        },
        Subcommand::Ctl(words) => words
            .command(verbosity)
            .map_err(|what| Arguments::command().error(ErrorKind::ArgumentConflict, what))?,
        Subcommand::Agent { port } => Command::Agent { port, verbosity },
        Subcommand::Snapshot {
            action: SnapshotAction::Merge { base, diff, out },
        } => Command::Merge {
            base,
            diff,
            out,
            verbosity,
        },
        Subcommand::Completions { shell } => Command::Completions(shell),
        // Its name is the first word, or a mistake.
        Subcommand::Firecracker => {
            let what = "write 'mini-vmm firecracker' first, and then Firecracker's options";
            return Err(Arguments::command().error(ErrorKind::ArgumentConflict, what));
        }
    })
}

#[cfg(test)]
mod tests;
