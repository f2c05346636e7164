//! Signals that are passed on to the command.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;

use crate::sys::terminal::is_ignored;

/// Signals that wait to be passed on.
#[derive(Debug, Default)]
pub struct Signals(Vec<Source>);

#[derive(Debug)]
struct Source {
    signal: u8,
    /// Has a byte for each signal.
    stream: UnixStream,
    count: u32,
}

impl Signals {
    /// Takes those that would end this process, from now on.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn register() -> io::Result<Self> {
        let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter();
        let sources = all.filter(|signal| !is_ignored(*signal)).map(Source::new);
        Ok(Signals(sources.collect::<io::Result<_>>()?))
    }

    /// Readable when there are some.
    pub(super) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|source| source.stream.as_fd())
    }

    /// Takes one. Returns also how many of its kind have come.
    pub(super) fn take(&mut self) -> Option<(u8, u32)> {
        self.0.iter_mut().find_map(|source| {
            let count = (&source.stream).read(&mut [0]).ok()?;
            source.count += 1;
            (count > 0).then_some((source.signal, source.count))
        })
    }
}

impl Source {
    fn new(signal: i32) -> io::Result<Self> {
        let (stream, writer) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        pipe::register(signal, writer)?;
        Ok(Source {
            // Those above are small.
            signal: signal as u8,
            stream,
            count: 0,
        })
    }
}

#[cfg(test)]
impl Signals {
    /// One signal, which comes with each byte that is written to the stream.
    pub(super) fn of(signal: i32) -> (Self, UnixStream) {
        let (stream, writer) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let source = Source {
            signal: signal as u8,
            stream,
            count: 0,
        };
        (Signals(vec![source]), writer)
    }
}
