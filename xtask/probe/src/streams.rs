// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Streams between a guest and its host: by `AF_VSOCK` in the guest, by Unix sockets on the host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::net::{accept, listen};

use crate::{Error, sys};

/// The bytes to read at once.
const PIECE: usize = 64 << 10;

/// Runs `vsock echo PORT COUNT` or `vsock talk PORT`, in a guest.
pub fn guest(words: &[&str]) -> Result<(), Error> {
    match words {
        ["echo", port, count] => {
            let socket = sys::vsock_bind(port.parse()?)?;
            listen(&socket, 8)?;
            println!("ECHO READY");
            // Any stream socket is as good.
            echo_many(count.parse()?, || Ok(UnixStream::from(accept(&socket)?)))
        }
        ["talk", port] => talk(call(port.parse()?)?),
        _ => Err("say vsock echo PORT COUNT, or vsock talk PORT".into()),
    }
}

/// Runs `unix echo PATH COUNT`, `unix sink PATH`, `unix source PATH`, `unix ask PATH PORT` or `unix talk PATH PORT`, on the host.
pub fn host(words: &[&str]) -> Result<(), Error> {
    match words {
        ["echo", path, count] => {
            let listener = UnixListener::bind(path)?;
            echo_many(count.parse()?, || Ok(listener.accept()?.0))
        }
        ["sink", path] => {
            let mut socket = UnixListener::bind(path)?.accept()?.0;
            let mut piece = vec![0; PIECE];
            // The other side may end it as it likes.
            while matches!(socket.read(&mut piece), Ok(1..)) {}
            Ok(())
        }
        ["source", path] => {
            let mut socket = UnixListener::bind(path)?.accept()?.0;
            // Until the other side has enough.
            while socket.write_all(&[0; PIECE]).is_ok() {}
            Ok(())
        }
        ["ask", path, port] => {
            let answers = ask(path, port)?.is_some();
            println!(
                "PORT {port} {}",
                if answers { "ANSWERS" } else { "IS CLOSED" }
            );
            Ok(())
        }
        ["talk", path, port] => loop {
            // A guest that is slow to answer is no error here.
            if let Some(socket) = ask(path, port)? {
                return talk(socket);
            }
        },
        _ => Err(
            "say unix echo PATH COUNT, unix sink|source PATH, or unix ask|talk PATH PORT".into(),
        ),
    }
}

/// Connects to a port of the host. That the host is slow to answer is no error.
fn call(port: u32) -> Result<UnixStream, Error> {
    loop {
        match sys::vsock_connect(port) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            socket => return Ok(socket?.into()),
        }
    }
}

/// Connects to a port of the guest. `None` if that doesn't answer.
fn ask(path: &str, port: &str) -> Result<Option<UnixStream>, Error> {
    let mut socket = UnixStream::connect(path)?;
    writeln!(socket, "CONNECT {port}")?;
    let mut answer = String::new();
    // Nothing follows the answer before the guest has heard something.
    BufReader::new(&socket).read_line(&mut answer)?;
    Ok(answer.starts_with("OK ").then_some(socket))
}

/// Sends back what comes, until this many connections have ended well.
fn echo_many(
    count: usize,
    mut accept: impl FnMut() -> Result<UnixStream, Error>,
) -> Result<(), Error> {
    let mut done = 0;
    while done < count {
        match echo(accept()?) {
            Ok(bytes) => done += usize::from(bytes != 0),
            Err(error) => eprintln!("bench-probe: a connection ended: {error}"),
        }
    }
    Ok(())
}

/// Sends back all that comes, and then the end. Returns how many bytes that was.
fn echo(mut socket: UnixStream) -> Result<usize, Error> {
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    loop {
        match socket.read(&mut piece)? {
            0 => break,
            len => {
                socket.write_all(&piece[..len])?;
                bytes += len;
            }
        }
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(bytes)
}

/// Sends standard input and then the end, and meanwhile writes what comes to standard output.
fn talk(mut socket: UnixStream) -> Result<(), Error> {
    let mut sender = socket.try_clone()?;
    let sent = thread::spawn(move || {
        copy(&mut io::stdin().lock(), &mut sender)?;
        sender.shutdown(Shutdown::Write)
    });
    copy(&mut socket, &mut io::stdout().lock())?;
    sent.join().map_err(|_| "the sender failed")??;
    Ok(())
}

fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece)? {
            0 => return to.flush(),
            len => to.write_all(&piece[..len])?,
        }
    }
}
