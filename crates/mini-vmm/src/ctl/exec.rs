//! `mini-vmm ctl SOCKET exec`: a command in the guest.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{Client, Error, Session, is_nobody, once};
use crate::exec::client::{self, Signals, Streams};
use crate::exec::frame::{Refusal, Start};

/// The exit code if it is not known how the command ended.
pub const EXIT_UNKNOWN: u8 = 255;
/// The exit codes of shells for programs that can't be started, and for absent ones.
const EXIT_FAILED: u8 = 126;
const EXIT_ABSENT: u8 = 127;
/// The exit code of a process that writes to nobody: 128 + SIGPIPE.
const EXIT_UNREAD: u8 = 141;

/// A command line of `mini-vmm ctl SOCKET exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOrder {
    /// The socket of the API.
    pub socket: PathBuf,
    /// The vsock port of the agent.
    pub port: u32,
    /// The command.
    pub start: Start,
}

/// Why it is not known how a command ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The machine's API fails.
    #[error(transparent)]
    Api(#[from] Error),
    /// The machine does not run.
    #[error("the machine has not started; start it with `mini-vmm ctl {} start`", .0.display())]
    NotStarted(PathBuf),
    /// The machine is paused.
    #[error("the machine is paused; let it go on with `mini-vmm ctl {} resume`", .0.display())]
    Paused(PathBuf),
    /// The machine has no socket device.
    #[error("the machine has no vsock device; start it with --vsock cid=3,socket=PATH")]
    NoVsock,
    /// Its socket can't be connected to.
    #[error("{}: can't connect to the machine's vsock socket: {source}; can this user reach the path?", path.display())]
    Vsock {
        /// The socket's path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The machine ended meanwhile.
    #[error("the machine ended before the command did; look at its own exit code")]
    MachineEnded,
    /// The host has no room for signals.
    #[error("can't take signals: {0}; try again")]
    Signals(io::Error),
    /// The agent or the connection to it fails.
    #[error(transparent)]
    Client(#[from] client::Error),
}

impl ExecError {
    /// The exit code that tells this.
    pub fn exit_code(&self) -> u8 {
        match self {
            ExecError::Client(client::Error::Refused(Refusal::Absent, _)) => EXIT_ABSENT,
            ExecError::Client(client::Error::Refused(Refusal::Failed, _)) => EXIT_FAILED,
            ExecError::Client(client::Error::Signal(signal)) => 128 + signal,
            _ => EXIT_UNKNOWN,
        }
    }
}

/// Runs a command in the guest, with this process's standard input, output and error. Returns the exit code that tells how
/// it ended. What takes longer than a second is told to `say` once.
///
/// # Errors
/// [`ExecError`] says why that is not known.
pub fn exec(order: &ExecOrder, say: &mut dyn FnMut(&str)) -> Result<u8, ExecError> {
    let socket = find(order, say)?;
    let awaited = "waiting until the guest has its vsock driver and answers";
    let socket = client::connect(socket, order.port, &mut once(say, awaited))?;
    let signals = Signals::register().map_err(ExecError::Signals)?;
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let streams = Streams {
        input: input.as_fd(),
        output: output.as_fd(),
        errors: errors.as_fd(),
    };
    match client::run(socket, &order.start, streams, signals) {
        Ok(end) => Ok(end.exit_code()),
        Err(client::Error::Unread) => Ok(EXIT_UNREAD),
        Err(client::Error::Lost) if has_ended(&order.socket, say) => Err(ExecError::MachineEnded),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the socket of the machine's vsock device.
fn find(order: &ExecOrder, say: &mut dyn FnMut(&str)) -> Result<UnixStream, ExecError> {
    let client = Client::connect(&order.socket)?;
    let process = client.process();
    let mut session = Session {
        path: &order.socket,
        client,
        say,
    };
    let about = session.object("/")?;
    match about.get("state").and_then(|state| state.as_str()) {
        Some("Not started") => return Err(ExecError::NotStarted(order.socket.clone())),
        Some("Paused") => return Err(ExecError::Paused(order.socket.clone())),
        _ => {}
    }
    let options = session.object("/options")?;
    let socket = options
        .get("vsock")
        .and_then(|vsock| vsock["socket"].as_str());
    let mut path = PathBuf::from(socket.ok_or(ExecError::NoVsock)?);
    if let Some(process) = process.filter(|_| path.is_relative()) {
        // It is relative to where the machine's process is.
        path = Path::new(&format!("/proc/{process}/cwd")).join(path);
    }
    UnixStream::connect(&path).map_err(|source| ExecError::Vsock { path, source })
}

/// Whether the machine has ended. Its socket goes last, but no machine describes itself after its end.
fn has_ended(socket: &Path, say: &mut dyn FnMut(&str)) -> bool {
    let awaited = "waiting for the machine's answer";
    let answer = Client::connect(socket)
        .and_then(|mut client| client.ask("GET", "/vm", "", &mut once(say, awaited)));
    match answer {
        Ok(answer) => answer.status != 200,
        Err(Error::Connect { source, .. }) => is_nobody(&source),
        Err(_) => true,
    }
}
