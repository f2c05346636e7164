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
            for _ in 0..count.parse()? {
                // Any stream socket is as good.
                echo(UnixStream::from(accept(&socket)?))?;
            }
            Ok(())
        }
        ["talk", port] => talk(UnixStream::from(sys::vsock_connect(port.parse()?)?)),
        _ => Err("say vsock echo PORT COUNT, or vsock talk PORT".into()),
    }
}

/// Runs `unix echo PATH COUNT` or `unix talk PATH PORT`, on the host.
pub fn host(words: &[&str]) -> Result<(), Error> {
    match words {
        ["echo", path, count] => {
            let listener = UnixListener::bind(path)?;
            for _ in 0..count.parse()? {
                echo(listener.accept()?.0)?;
            }
            Ok(())
        }
        ["talk", path, port] => {
            let mut socket = UnixStream::connect(path)?;
            writeln!(socket, "CONNECT {port}")?;
            let mut answer = String::new();
            // Nothing follows the answer before the guest has heard something.
            BufReader::new(&socket).read_line(&mut answer)?;
            if !answer.starts_with("OK ") {
                return Err(format!("the guest's port {port} doesn't answer: {answer:?}").into());
            }
            talk(socket)
        }
        _ => Err("say unix echo PATH COUNT, or unix talk PATH PORT".into()),
    }
}

/// Sends back all that comes, and then the end.
fn echo(mut socket: UnixStream) -> Result<(), Error> {
    let mut piece = vec![0; PIECE];
    loop {
        match socket.read(&mut piece)? {
            0 => break,
            len => socket.write_all(&piece[..len])?,
        }
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(())
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
