// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The destination of COM1, and of a virtio console: nothing, the standard streams, a file, a pseudo-terminal or a Unix socket.
//!
//! A [`Console`] lives as long as the process, across machines. Each machine's serial device writes to
//! [`Console::output`] and gets input through [`Console::attach_input`].
//!
//! ```text
//! vCPU -> SerialDevice -> ConsoleOutput (bounded queue) -> thread "console-out" -> write(2)
//! read(2) -> thread "console-in" -> bounded queue -> ConsoleInput (event loop) -> SerialDevice
//! ```
//!
//! vCPUs never wait. If the reader is too slow, output beyond 1 MiB is dropped, oldest first, with a note in the
//! stream. Input waits for the guest. At the end, queued output is written while that makes progress, for at most 10
//! seconds.

mod escape;
mod hvc;
mod input;
mod margin;
mod output;
mod pty;
mod socket;
mod stdio;
mod terminal;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub(crate) use hvc::Hvc;
pub use input::{ConsoleInput, InputTarget};
pub use margin::line_start;
pub use output::ConsoleOutput;
pub use terminal::line_end;

use hvc::Screen;
use input::InputQueue;
use output::{Drain, FdSink, Output, Sink, WholeLines};
use pty::Pty;
pub(crate) use pty::make as make_pty;
use socket::Socket;
use stdio::StdoutSink;
use terminal::RawTerminal;

use crate::config::{Limit, SerialSpec, VmSpec};
use crate::inputs::{guest_outputs, is_overwritten};
use crate::outcome::OutcomeLatch;
use crate::socket_file::{SocketError, SocketFile};
use crate::sync::Worker;
use crate::sys;

/// Why a console can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output file can't be opened.
    #[error("{}: the serial output can't be written there: {source}; choose another path", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The output file is a FIFO without a reader.
    #[error("{}: nobody reads this FIFO; start its reader first", .0.display())]
    NoReader(PathBuf),
    /// The output file is a socket.
    #[error("{}: this is a socket, which is no place for a file; say `--serial socket=PATH` or choose another path", .0.display())]
    IsSocket(PathBuf),
    /// The output file is an input of the machine.
    #[error("{}: the serial output would overwrite this file, which the machine is made from; choose another path", .0.display())]
    OwnInput(PathBuf),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A pseudo-terminal can't be created.
    #[error("no pseudo-terminal could be made: {0}; is /dev/pts mounted?")]
    Pty(io::Error),
    /// The terminal on standard input can't be set up.
    #[error("the terminal on standard input can't be set up: {0}; try `--serial file=PATH`")]
    Terminal(io::Error),
    /// A thread can't be started, or no file descriptor is left.
    #[error("the console can't start: {0}; raise the limits on threads and open files")]
    Start(io::Error),
}

/// The console: opened once, closed when dropped.
#[derive(Debug, Default)]
pub struct Console {
    // Dropped in this order: stop input, write the remaining output, restore the terminal.
    reader: Option<Worker>,
    input: Option<Arc<InputQueue>>,
    output: Option<ConsoleOutput>,
    writer: Option<Output>,
    _terminal: Option<RawTerminal>,
    _socket: Option<SocketFile>,
    pty: Option<PathBuf>,
    screen: Option<Screen>,
    virtio: Virtio,
}

/// Where the virtio console goes.
#[derive(Debug, Default)]
enum Virtio {
    #[default]
    None,
    /// To the same place as COM1, which then has no input.
    Same,
    /// To a place of its own.
    Own(Box<Console>),
}

impl Console {
    /// Opens the consoles of a machine: that of COM1, and that of the virtio console. If both are the standard streams, the
    /// virtio console gets the input.
    ///
    /// # Errors
    /// [`Error`] says what can't be opened.
    pub fn open_all(spec: &VmSpec) -> Result<Console, Error> {
        let mut console = Console::open(&spec.serial)?.with_limit(spec.serial_bandwidth);
        console.virtio = match (&spec.serial, &spec.console) {
            (_, SerialSpec::Off) => Virtio::None,
            (SerialSpec::Stdio, SerialSpec::Stdio) => {
                console.watch_screen()?;
                Virtio::Same
            }
            (_, other) => {
                let mut own = Console::open_as(other, "virtio console")?;
                own.watch_screen()?;
                Virtio::Own(Box::new(own))
            }
        };
        Ok(console)
    }

    /// Lets the guest learn the size of the terminal on standard input, if there is one.
    fn watch_screen(&mut self) -> Result<(), Error> {
        if self._terminal.is_some() {
            let resized = terminal::resized().map_err(Error::Start)?;
            self.screen = Some(Screen::Stdin(resized));
        }
        Ok(())
    }

    /// The console that the virtio console goes to.
    fn virtio(&self) -> Option<&Console> {
        match &self.virtio {
            Virtio::None => None,
            Virtio::Same => Some(self),
            Virtio::Own(own) => Some(own),
        }
    }

    /// Tells what the virtio console is connected to, if there is one.
    pub(crate) fn connect_hvc(&self, slot: &OnceLock<Hvc>) {
        if let Some(console) = self.virtio() {
            let output = console.output.clone();
            let _ = slot.set(Hvc {
                output: output.unwrap_or_else(ConsoleOutput::discard),
                screen: console.screen.clone(),
            });
        }
    }

    /// As [`attach_input`](Self::attach_input), for the virtio console.
    pub fn attach_hvc_input(
        &self,
        target: Arc<dyn InputTarget>,
        outcome: OutcomeLatch,
    ) -> Option<ConsoleInput> {
        self.virtio()?.input_for(target, outcome)
    }

    /// Opens the console that `spec` describes. A terminal on standard input is set to raw mode. The name of a
    /// pseudo-terminal is printed on standard error. A file is created, or truncated if it exists.
    ///
    /// Call it after the signals that the process handles are blocked or have their handlers.
    ///
    /// # Errors
    /// [`Error`] says what can't be opened.
    pub fn open(spec: &SerialSpec) -> Result<Console, Error> {
        Console::open_as(spec, "serial console")
    }

    fn open_as(spec: &SerialSpec, what: &str) -> Result<Console, Error> {
        sys::terminal::ignore_file_size_signal();
        match spec {
            SerialSpec::Off => Ok(Console::default()),
            SerialSpec::Stdio => Console::stdio(),
            SerialSpec::File(path) => Console::file(path),
            SerialSpec::Pty => Console::pty(what),
            SerialSpec::Socket(path) => Console::socket(path),
        }
    }

    /// Drops what a guest writes beyond `limit`. What was dropped is counted anew.
    #[must_use]
    pub fn with_limit(self, limit: Option<Limit>) -> Self {
        if let Some(output) = &self.output {
            output.limit(limit);
        }
        self
    }

    /// A console that writes to standard output, ends with a complete line, and reads nothing. The terminal's settings
    /// stay.
    ///
    /// # Errors
    /// [`Error::Start`] when a thread can't be started, or no file descriptor is left.
    pub fn standard_output() -> Result<Console, Error> {
        sys::terminal::ignore_file_size_signal();
        let mut console = Console::default();
        console.write_to_stdout(WholeLines::new)?;
        Ok(console)
    }

    /// Where a serial device writes to. `None` if there is no serial device.
    pub fn output(&self) -> Option<ConsoleOutput> {
        self.output.clone()
    }

    /// Creates the subscriber that feeds the console's input to a machine's serial device, and reports
    /// [`crate::outcome::Outcome::ConsoleQuit`]. `None` if this console has no input. For the next machine, remove the
    /// old subscriber and attach again.
    pub fn attach_input(
        &self,
        target: Arc<dyn InputTarget>,
        outcome: OutcomeLatch,
    ) -> Option<ConsoleInput> {
        match self.virtio {
            Virtio::Same => None,
            _ => self.input_for(target, outcome),
        }
    }

    fn input_for(
        &self,
        target: Arc<dyn InputTarget>,
        outcome: OutcomeLatch,
    ) -> Option<ConsoleInput> {
        let queue = Arc::clone(self.input.as_ref()?);
        Some(ConsoleInput::new(queue, target, outcome))
    }

    /// A console without output, on which `bytes` were typed.
    #[cfg(test)]
    pub(crate) fn with_input(bytes: &[u8]) -> Self {
        let queue = InputQueue::new().unwrap();
        queue.push(bytes);
        Console {
            input: Some(Arc::new(queue)),
            ..Console::default()
        }
    }

    /// Types on it later.
    #[cfg(test)]
    pub(crate) fn typist(&self) -> impl Fn(&[u8]) + use<> {
        let queue = self.input.clone().unwrap();
        move |bytes| queue.push(bytes)
    }

    /// Types the escape sequence on it.
    #[cfg(test)]
    pub(crate) fn quitter(&self) -> impl Fn() + use<> {
        let queue = self.input.clone().unwrap();
        move || queue.quit()
    }

    /// The path of the pseudo-terminal, if the console is one.
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty.as_deref()
    }

    /// Closes the console, as dropping it does. Queued output is written while that makes progress, for at most 10
    /// seconds. The terminal is restored, and the socket's file removed.
    pub fn close(self) {}

    /// Like [`close`](Self::close), but quick: what is not written within 200 milliseconds is lost.
    pub fn close_soon(mut self) {
        if let Virtio::Own(own) = std::mem::take(&mut self.virtio) {
            own.close_soon();
        }
        self.reader = None;
        if let Some(writer) = &mut self.writer {
            writer.close(Drain::SOON);
        }
    }

    fn stdio() -> Result<Console, Error> {
        let mut console = Console::default();
        console.write_to_stdout(|output| output)?;
        let queue = Arc::new(InputQueue::new().map_err(Error::Start)?);
        (console.reader, console._terminal) = stdio::input(&queue)?;
        console.input = Some(queue);
        Ok(console)
    }

    fn file(path: &Path) -> Result<Console, Error> {
        // Without O_NONBLOCK, opening a FIFO would wait for its reader.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = file.map_err(|source| not_opened(path, source))?;
        let mut console = Console::default();
        // Non-blocking is fine: the writer waits when it is full.
        console.write_to(Output::start(FdSink(file.into())).map_err(Error::Start)?);
        Ok(console)
    }

    fn pty(what: &str) -> Result<Console, Error> {
        let queue = Arc::new(InputQueue::new().map_err(Error::Start)?);
        let Pty {
            name,
            ours,
            output,
            reader,
        } = Pty::open(&queue)?;
        tell(&format!("the {what} is on {}", name.display()));
        Ok(Console {
            pty: Some(name),
            screen: Some(Screen::Pty(Arc::new(ours))),
            ..Console::two_way(output, reader, queue)
        })
    }

    fn socket(path: &Path) -> Result<Console, Error> {
        let queue = Arc::new(InputQueue::new().map_err(Error::Start)?);
        let Socket {
            file,
            output,
            reader,
        } = Socket::open(path, &queue)?;
        Ok(Console {
            _socket: Some(file),
            ..Console::two_way(output, reader, queue)
        })
    }

    fn two_way(writer: Output, reader: Worker, queue: Arc<InputQueue>) -> Console {
        let mut console = Console {
            reader: Some(reader),
            input: Some(queue),
            ..Console::default()
        };
        console.write_to(writer);
        console
    }

    fn write_to_stdout<S: Sink + 'static>(
        &mut self,
        sink: impl FnOnce(StdoutSink) -> S,
    ) -> Result<(), Error> {
        match stdio::output().map_err(Error::Start)? {
            Some(output) => self.write_to(Output::start(sink(output)).map_err(Error::Start)?),
            None => {
                log::warn!("standard output is closed: the guest's output is discarded");
                self.output = Some(ConsoleOutput::discard());
            }
        }
        Ok(())
    }

    fn write_to(&mut self, writer: Output) {
        self.output = Some(writer.handle());
        self.writer = Some(writer);
    }
}

/// Checks that no console or port writes to one of `inputs`, the files that a machine is made from. Opens nothing.
///
/// # Errors
/// [`Error::OwnInput`] names that file.
pub fn spare<'a>(spec: &VmSpec, inputs: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
    let is_output = |input: &Path| guest_outputs(spec).any(|output| is_overwritten(input, output));
    match inputs.into_iter().find(|input| is_output(input)) {
        Some(path) => Err(Error::OwnInput(path.to_owned())),
        None => Ok(()),
    }
}

/// Why the output file at `path` can't be opened.
fn not_opened(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    // open(2) returns the same error for a FIFO without a reader, for sockets, and for devices without a driver.
    let is_enxio = source.raw_os_error() == Some(libc::ENXIO);
    match fs::metadata(&path).map(|metadata| metadata.file_type()) {
        Ok(kind) if is_enxio && kind.is_fifo() => Error::NoReader(path),
        Ok(kind) if is_enxio && kind.is_socket() => Error::IsSocket(path),
        _ => Error::File { path, source },
    }
}

/// Prints a line for the user. Ignores a closed standard error.
pub(crate) fn tell(line: &str) {
    let _ = write!(
        io::stderr(),
        "{}mini-vmm: {line}{}",
        line_start(),
        line_end()
    );
}
