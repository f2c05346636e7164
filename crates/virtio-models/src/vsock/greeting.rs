// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process of the host says first: `CONNECT`, a port of the guest, and a newline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{RecvFlags, recv};

/// The longest command in bytes, with its newline.
pub const MAX_COMMAND: usize = 32;

/// A command that arrives.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    bytes: [u8; MAX_COMMAND],
    len: usize,
}

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It goes on.
    More,
    /// The port to connect to.
    Port(u32),
    /// The process went, or wants something else.
    Refused,
}

impl Greeting {
    /// Reads on. Takes nothing from the socket that follows the command.
    pub(super) fn hear(&mut self, socket: BorrowedFd<'_>) -> Heard {
        loop {
            let mut bytes = [0; MAX_COMMAND];
            let room = MAX_COMMAND - self.len;
            // Looks first: only the command is taken.
            let seen = match receive(socket, &mut bytes[..room], RecvFlags::PEEK) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::More,
                Ok(0) | Err(_) => return Heard::Refused,
                Ok(seen) => seen,
            };
            let end = bytes[..seen].iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(seen, |end| end + 1);
            let place = &mut self.bytes[self.len..self.len + taken];
            if receive(socket, place, RecvFlags::empty()).ok() != Some(taken) {
                return Heard::Refused;
            }
            self.len += taken;
            if end.is_some() {
                return parse(&self.bytes[..self.len]).map_or(Heard::Refused, Heard::Port);
            }
            if self.len == MAX_COMMAND {
                return Heard::Refused;
            }
        }
    }
}

fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    let flags = flags | RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| recv(socket.as_fd(), &mut *bytes, flags));
    Ok(received.map(|(len, _)| len)?)
}

/// The port of a command.
fn parse(command: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(command).ok()?.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let is_known = word.eq_ignore_ascii_case("CONNECT") && words.next().is_none();
    // `parse` would take a sign.
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|_| is_known && is_number)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What is heard of these pieces, each at once, and what is left in the socket.
    fn hear(pieces: &[&[u8]]) -> (Heard, Vec<u8>) {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let (mut greeting, mut heard) = (Greeting::default(), Heard::More);
        for piece in pieces {
            assert_eq!(heard, Heard::More);
            client.write_all(piece).unwrap();
            heard = greeting.hear(server.as_fd());
        }
        let mut rest = [0; 4096];
        let left = (&server).read(&mut rest).unwrap_or(0);
        (heard, rest[..left].to_vec())
    }

    #[test]
    fn a_command_names_a_port() {
        for (command, port) in [
            ("CONNECT 0\n", 0),
            ("CONNECT 52\n", 52),
            ("connect 52\r\n", 52),
            ("CONNECT 4294967295\n", u32::MAX),
            ("CONNECT                1024   \n", 1024),
        ] {
            let heard = (Heard::Port(port), Vec::new());
            assert_eq!(hear(&[command.as_bytes()]), heard, "{command:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for command in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
            "GET / HTTP/1.1\n",
            "CONNECT x\n",
        ] {
            assert_eq!(hear(&[command.as_bytes()]).0, Heard::Refused, "{command:?}");
        }
        assert_eq!(hear(&[b"CONNECT \xff\n"]).0, Heard::Refused);
    }

    #[test]
    fn a_command_may_come_in_pieces_and_is_bounded() {
        let (port, rest) = (Heard::Port(77), b"hello\n".to_vec());
        assert_eq!(hear(&[b"CON", b"NECT 7", b"7\nhello\n"]), (port, rest));
        assert_eq!(hear(&[b"CONNECT 7"]), (Heard::More, Vec::new()));
        let long = [b' '; MAX_COMMAND + 1];
        assert_eq!(hear(&[&long[..MAX_COMMAND]]), (Heard::Refused, Vec::new()));
        assert_eq!(hear(&[&long[..31], b"11"]), (Heard::Refused, b"1".to_vec()));
    }

    #[test]
    fn a_process_that_went_is_refused() {
        for said in ["", "CONNECT 1"] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(said.as_bytes()).unwrap();
            drop(client);
            let heard = Greeting::default().hear(server.as_fd());
            assert_eq!(heard, Heard::Refused, "{said:?}");
        }
    }
}
