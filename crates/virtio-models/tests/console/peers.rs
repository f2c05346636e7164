// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's ends by themselves.

use std::io::ErrorKind;

use virtio_models::console::{Peer, Stream};

use crate::support::*;

#[test]
fn a_stream_is_open_while_its_input_is() {
    let (input, typist) = small_pipe();
    let (reader, writer) = small_pipe();
    let mut stream = Stream::new(Some(input.into()), Some(writer.into()));
    assert_eq!(
        stream.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(stream.is_open());
    drop(reader);
    stream.write(b"x").unwrap_err();
    assert!(stream.is_open() && stream.sources().output.is_none());
    assert_eq!(stream.write(b"dropped").unwrap(), 7);
    drop(typist);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert!(!stream.is_open() && stream.sources().input.is_none());
}

#[test]
fn a_client_that_goes_unheard_is_noticed() {
    // The guest does not read, but it writes.
    let place = Place::new();
    let server = place.server();
    let client = place.client();
    let mut server = server.lock().expect("no panic");
    server.settle();
    assert!(server.is_open());
    write(&client, b"last words");
    drop(client);
    assert_eq!(
        server.write(b"x").unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(
        server.is_open() && !server.is_unsettled(),
        "its words are still there"
    );
    let mut bytes = [0; 64];
    assert_eq!(server.read(&mut bytes).unwrap(), 10);
    assert_eq!(server.read(&mut bytes).unwrap(), 0);
    assert!(!server.is_open() && server.is_unsettled());
    server.settle();
    assert!(!server.is_unsettled() && server.sources().other.is_some());
}
