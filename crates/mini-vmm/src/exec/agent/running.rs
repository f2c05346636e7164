// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A command that runs.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, retry_on_intr, write};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::session::{bad, timespec};
use crate::exec::frame::{Bad, End, Frame, Kind, MAX_DATA, Refusal, Start};
use crate::exec::wire::{Peer, Wire};
use crate::exec::{VERSION, WINDOW};
use crate::sys::child;
use crate::text::shown;

/// How long a command may take to end after the host has gone.
const GRACE: Duration = Duration::from_secs(2);

/// A command. It is the first of a process group.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// Readable once it has ended.
    ended: OwnedFd,
    stdin: Option<OwnedFd>,
    /// What it has still to take.
    input: Vec<u8>,
    /// No more input will come.
    is_whole: bool,
    /// The bytes that it took, of which the host was not told.
    taken: usize,
    /// Its standard output and error.
    outputs: [Option<OwnedFd>; 2],
    /// Once it has ended: the bytes that are still in these pipes. Other processes may have them open.
    left: Option<[usize; 2]>,
}

/// The frames for `Running::outputs`.
const KINDS: [Kind; 2] = [Kind::Output, Kind::Errors];

/// Why there is no command, and the next step.
type Refused = (Refusal, String);

impl Running {
    /// Starts it.
    pub fn new(start: &Start) -> Result<Self, Refused> {
        let mut command = prepare(start)?;
        let mut child = command
            .spawn()
            .map_err(|error| cannot_start(start, &error))?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let outputs = [
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        ];
        match watch(&child, stdin.iter().chain(outputs.iter().flatten())) {
            Ok(ended) => Ok(Running {
                child,
                ended,
                stdin,
                input: Vec::new(),
                is_whole: false,
                taken: 0,
                outputs,
                left: None,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(cannot_start(start, &error.into()))
            }
        }
    }

    /// Passes everything on until the command has ended. If the host goes away before, the command is ended.
    pub fn attend(mut self, wire: &mut Wire) -> io::Result<()> {
        wire.push(Kind::Started, &VERSION.to_le_bytes());
        match self.pass_on(wire) {
            Ok(status) => {
                wire.push(Kind::End, &end(status).payload());
                Ok(())
            }
            Err(error) => {
                self.stop();
                Err(error)
            }
        }
    }

    fn pass_on(&mut self, wire: &mut Wire) -> io::Result<ExitStatus> {
        loop {
            while let Some(frame) = wire.next().map_err(bad)? {
                self.obey(frame)?;
            }
            self.give();
            if self.left == Some([0; 2]) {
                return self.child.wait();
            }
            // This makes room. Without any, the host's next read wakes this thread again.
            if wire.flush()? == Peer::Gone {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            let is_much = self.taken >= WINDOW / 4 || self.input.is_empty();
            if self.taken > 0 && is_much && wire.has_room() {
                wire.push(Kind::Taken, &(self.taken as u32).to_le_bytes());
                self.taken = 0;
                continue;
            }
            if self.turn(wire)? == Peer::Gone {
                return Err(ErrorKind::ConnectionAborted.into());
            }
        }
    }

    /// Does what a frame asks for.
    fn obey(&mut self, frame: Frame<'_>) -> io::Result<()> {
        match frame.kind {
            Kind::Input if self.is_whole => Err(bad(Bad::Order(Kind::Input))),
            Kind::Input => {
                self.is_whole = frame.payload.is_empty();
                self.input.extend(frame.payload);
                match self.input.len() + self.taken <= WINDOW {
                    true => Ok(()),
                    false => Err(bad(Bad::Order(Kind::Input))),
                }
            }
            Kind::Signal => {
                let number = frame.number().map_err(bad)?.try_into().ok();
                let signal = number.and_then(Signal::from_named_raw);
                self.signal(signal.ok_or(bad(Bad::Payload(Kind::Signal)))?);
                Ok(())
            }
            kind => Err(bad(Bad::Order(kind))),
        }
    }

    /// Signals its group. The command was not waited for, so the number is still its own.
    fn signal(&self, signal: Signal) {
        // Nobody may be left.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Gives it the input that it has room for.
    fn give(&mut self) {
        let mut given = 0;
        while let Some(stdin) = &self.stdin
            && given < self.input.len()
        {
            match retry_on_intr(|| write(stdin, &self.input[given..])) {
                Ok(count) => given += count,
                Err(Errno::AGAIN) => break,
                // It takes no more. The host learns of nothing that was taken, so it soon sends no more.
                Err(_) => self.stdin = None,
            }
        }
        self.input.drain(..given);
        self.taken += given;
        if self.is_whole && self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Waits until something can be passed on, and takes it.
    fn turn(&mut self, wire: &mut Wire) -> io::Result<Peer> {
        let events = self.wait(wire)?;
        let [connection, ended, _, outputs @ ..] = events;
        for (number, output) in outputs.into_iter().enumerate() {
            if output.intersects(PollFlags::IN | PollFlags::HUP) {
                self.take(wire, number);
            }
        }
        if ended.contains(PollFlags::IN) && self.left.is_none() {
            // All of its output is in the pipes.
            let count = |pipe: &Option<OwnedFd>| {
                let count = pipe.as_ref().and_then(|pipe| ioctl_fionread(pipe).ok());
                count.unwrap_or(0) as usize
            };
            self.left = Some(self.outputs.each_ref().map(count));
        }
        match connection.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            true => wire.fill(),
            false => Ok(Peer::There),
        }
    }

    /// What can be done with the connection, the command, its input and its outputs.
    fn wait(&self, wire: &Wire) -> io::Result<[PollFlags; 5]> {
        let left = self.left.unwrap_or([MAX_DATA; 2]);
        let output = |number: usize| {
            let output = self.outputs[number].as_ref();
            output.filter(|_| wire.has_room() && left[number] > 0)
        };
        let stdin = self.stdin.as_ref().filter(|_| !self.input.is_empty());
        let ended = Some(&self.ended).filter(|_| self.left.is_none());
        let all = [
            (ended, PollFlags::IN),
            (stdin, PollFlags::OUT),
            (output(0), PollFlags::IN),
            (output(1), PollFlags::IN),
        ];
        // Instead of what is not waited for: the connection once more, whose end ends everything.
        let [a, b, c, d] = all.map(|(fd, flags)| match fd {
            Some(fd) => PollFd::new(fd, flags),
            None => PollFd::from_borrowed_fd(wire.socket(), PollFlags::empty()),
        });
        let connection = PollFd::from_borrowed_fd(wire.socket(), wire.interest(true));
        let mut fds = [connection, a, b, c, d];
        retry_on_intr(|| poll(&mut fds, None))?;
        Ok(fds.map(|fd| fd.revents()))
    }

    /// Takes some of an output.
    fn take(&mut self, wire: &mut Wire, number: usize) {
        let most = self.left.map_or(MAX_DATA, |left| left[number]);
        let Some(pipe) = self.outputs[number].as_ref().filter(|_| most > 0) else {
            return;
        };
        let count = match wire.push_from(KINDS[number], pipe.as_fd(), most) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            result => result.unwrap_or(0),
        };
        if count == 0 {
            self.outputs[number] = None;
        }
        if let Some(left) = &mut self.left {
            left[number] = if count == 0 { 0 } else { left[number] - count };
        }
    }

    /// Ends it, and all of its group.
    fn stop(mut self) {
        (self.stdin, self.outputs) = (None, [None, None]);
        for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
            self.signal(signal);
        }
        let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
        let _ = retry_on_intr(|| poll(&mut fds, Some(&timespec(GRACE))));
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Makes the pipes of a command not block. Returns what is readable once it has ended.
fn watch<'a>(
    child: &Child,
    mut pipes: impl Iterator<Item = &'a OwnedFd>,
) -> rustix::io::Result<OwnedFd> {
    pipes.try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
    pidfd_open(Pid::from_child(child), PidfdFlags::empty())
}

/// The command, not yet started.
fn prepare(start: &Start) -> Result<Command, Refused> {
    let mut command = Command::new(&start.words[0]);
    let directory = &start.directory;
    if !directory.as_os_str().is_empty() {
        if !directory.is_dir() {
            let name = shown(&directory.to_string_lossy());
            let reason = format!("{name}: the guest has no such directory; give another --cwd");
            return Err((Refusal::Absent, reason));
        }
        command.current_dir(directory);
    }
    command.args(&start.words[1..]);
    command.envs(start.env.iter().map(|(name, value)| (name, value)));
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    pipes.stderr(Stdio::piped()).process_group(0);
    child::default_signals(&mut command);
    Ok(command)
}

/// Why the guest's system did not start it.
fn cannot_start(start: &Start, error: &io::Error) -> Refused {
    let name = shown(&start.words[0].to_string_lossy());
    match error.kind() {
        ErrorKind::NotFound => (
            Refusal::Absent,
            format!("{name}: the guest has no such program; give its path, or install it there"),
        ),
        _ => (
            Refusal::Failed,
            format!("{name}: the guest can't start it: {error}; look at it there"),
        ),
    }
}

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Code(code as u8),
        (None, signal) => End::Signal(signal.unwrap_or(0) as u8),
    }
}
