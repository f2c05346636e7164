//! The client on the host. The agent may be hostile: its frames are checked, and no more than one of them is kept.

mod connect;
mod signals;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr, write};

pub use self::connect::connect;
pub use self::signals::Signals;
use super::WINDOW;
use super::frame::{Bad, End, Frame, Kind, Refusal, Start};
use super::wire::{Peer, Wire};
use crate::text::one_line;

/// How much is written at once. A pipe that is ready has room for this (pipe(7)), so the write does not wait.
const WRITE: usize = 4096;

/// Why it is not known how a command ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens in the guest.
    #[error("no agent listens on vsock port {0} of the guest; run `mini-vmm agent` there")]
    NoAgent(u32),
    /// The socket is none of a vsock device.
    #[error("the vsock socket does not answer like a machine's; find out who listens there")]
    NotVsock,
    /// The agent did not start it.
    #[error("{}", one_line(.1))]
    Refused(Refusal, String),
    /// What came is not this protocol.
    #[error("{0}, so this is no agent's answer; find out what listens on this port of the guest")]
    Protocol(#[from] Bad),
    /// The connection ended before the command.
    #[error("the agent in the guest ended before the command did; start it again")]
    Lost,
    /// Nobody reads its output any more.
    #[error("nobody reads the command's output")]
    Unread,
    /// No agent would take the command.
    #[error("the command with its environment and directory is too long; shorten it to 128 KiB")]
    Command,
    /// The host refuses something.
    #[error("{0}: {1}; try again")]
    Host(&'static str, io::Error),
    /// A signal ended the wait.
    #[error("signal {0} ended the wait for the command, which the agent ends")]
    Signal(u8),
}

/// Standard input, output and error of a command.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// What it reads.
    pub input: BorrowedFd<'a>,
    /// Where its output goes.
    pub output: BorrowedFd<'a>,
    /// Where its messages go.
    pub errors: BorrowedFd<'a>,
}

/// Runs a command by the agent at the other end of `socket`. Returns how it ended.
///
/// # Errors
/// [`Error`] says why that is not known. The agent then ends the command.
pub fn run(
    socket: UnixStream,
    start: &Start,
    streams: Streams<'_>,
    signals: Signals,
) -> Result<End, Error> {
    let payload = start.payload().ok_or(Error::Command)?;
    let mut wire = Wire::new(socket.into()).map_err(connection)?;
    wire.push(Kind::Start, &payload);
    let mut client = Client {
        wire,
        streams,
        signals,
        is_started: false,
        credit: WINDOW,
        is_over: false,
        output: Vec::new(),
        written: 0,
        is_error: false,
    };
    loop {
        if let Some(end) = client.hear()? {
            return Ok(end);
        }
        // A connection that has ended may still bring the reason.
        client.wire.flush().map_err(connection)?;
        client.turn()?;
    }
}

fn connection(error: io::Error) -> Error {
    Error::Host("the connection to the guest failed", error)
}

/// A command that is under way.
#[derive(Debug)]
struct Client<'a> {
    wire: Wire,
    streams: Streams<'a>,
    signals: Signals,
    is_started: bool,
    /// How many bytes of input may be sent.
    credit: usize,
    /// There is no more input.
    is_over: bool,
    /// Data of the command, and how much of it was written. No frame is heard before all was.
    output: Vec<u8>,
    written: usize,
    /// It is for standard error.
    is_error: bool,
}

impl Client<'_> {
    /// Does what the frames say that have come. Returns how the command ended.
    fn hear(&mut self) -> Result<Option<End>, Error> {
        while self.output.is_empty()
            && let Some(Frame { kind, payload }) = self.wire.next()?
        {
            match (kind, self.is_started) {
                (Kind::Refused, false) => {
                    let (refusal, reason) = Refusal::parse(payload)?;
                    return Err(Error::Refused(refusal, reason.to_owned()));
                }
                (Kind::Started, false) => self.is_started = true,
                (Kind::Output | Kind::Errors, true) => {
                    self.output.extend(payload);
                    self.is_error = kind == Kind::Errors;
                }
                (Kind::Taken, true) => {
                    let count = Frame { kind, payload }.number()? as usize;
                    // What was not sent can't be taken.
                    if count > WINDOW - self.credit {
                        return Err(Bad::Payload(kind).into());
                    }
                    self.credit += count;
                }
                (Kind::End, true) => return Ok(Some(End::parse(payload)?)),
                _ => return Err(Bad::Order(kind).into()),
            }
        }
        Ok(None)
    }

    /// Waits until something can be passed on, and does so.
    fn turn(&mut self) -> Result<(), Error> {
        let is_written = self.output.is_empty();
        let target = match self.is_error {
            true => self.streams.errors,
            false => self.streams.output,
        };
        let has_room = self.credit > 0 && self.wire.has_room();
        let reads = self.is_started && !self.is_over && has_room;
        // Nobody waits for what may be passed on later: a connection's end would be told again and again.
        let flags = self.wire.interest(is_written);
        let all = [
            (!flags.is_empty(), self.wire.socket(), flags),
            (!is_written, target, PollFlags::OUT),
            (reads, self.streams.input, PollFlags::IN),
        ];
        let wanted = all.iter().filter(|(wanted, ..)| *wanted);
        let wanted = wanted.map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags));
        let signals = self.signals.sources();
        let signals = signals.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut fds: Vec<_> = wanted.chain(signals).collect();
        retry_on_intr(|| poll(&mut fds, None)).map_err(|error| connection(error.into()))?;
        let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut is_ready = |(wanted, ..): (bool, _, _)| wanted && events.next() == Some(true);
        let [connection_is, target_is, input_is] = all.map(&mut is_ready);
        drop(fds);
        self.pass_signals()?;
        if target_is {
            self.write()?;
        }
        if input_is {
            self.read()?;
        }
        if connection_is && is_written && self.wire.fill().map_err(connection)? == Peer::Gone {
            return Err(Error::Lost);
        }
        Ok(())
    }

    /// Passes signals on. Before the start the first ends the wait, and afterwards the third of a kind.
    fn pass_signals(&mut self) -> Result<(), Error> {
        while let Some((signal, count)) = self.signals.take() {
            if !self.is_started || count >= 3 {
                return Err(Error::Signal(signal));
            }
            let number = u32::from(signal).to_le_bytes();
            self.wire.push(Kind::Signal, &number);
        }
        Ok(())
    }

    /// Writes some of the command's output.
    fn write(&mut self) -> Result<(), Error> {
        let target = match self.is_error {
            true => self.streams.errors,
            false => self.streams.output,
        };
        let end = self.output.len().min(self.written + WRITE);
        match retry_on_intr(|| write(target, &self.output[self.written..end])) {
            Ok(count) => self.written += count,
            Err(Errno::AGAIN) => {}
            Err(Errno::PIPE) => return Err(Error::Unread),
            Err(error) => {
                let what = "the command's output can't be written";
                return Err(Error::Host(what, error.into()));
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Reads input for the command.
    fn read(&mut self) -> Result<(), Error> {
        let (input, credit) = (self.streams.input, self.credit);
        match self.wire.push_from(Kind::Input, input, credit) {
            Ok(0) => {
                self.is_over = true;
                self.wire.push(Kind::Input, &[]);
            }
            Ok(count) => self.credit -= count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::Host("standard input can't be read", error)),
        }
        Ok(())
    }
}
