// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of TCP with a guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use crate::Error;

/// The bytes of a message, on the second port and on the third.
const MESSAGES: [usize; 2] = [64, 64 << 10];

/// Runs `tcp PORT`: one port takes data, the next two send messages, to one guest at a time each.
pub fn main(words: &[&str]) -> Result<(), Error> {
    let [port] = words else {
        return Err("say tcp PORT".into());
    };
    let port: u16 = port.parse()?;
    let listen = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    let sink = listen(port)?;
    for (number, bytes) in MESSAGES.into_iter().enumerate() {
        let source = listen(port + 1 + number as u16)?;
        thread::spawn(move || {
            source
                .incoming()
                .flatten()
                .for_each(|peer| send(peer, bytes))
        });
    }
    sink.incoming().flatten().for_each(drain);
    Ok(())
}

/// Sends until the peer has enough.
fn send(mut peer: TcpStream, bytes: usize) {
    let message = vec![0; bytes];
    while peer.write_all(&message).is_ok() {}
}

fn drain(mut peer: TcpStream) {
    let mut space = vec![0; MESSAGES[1]];
    while matches!(peer.read(&mut space), Ok(1..)) {}
}
