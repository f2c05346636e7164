// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets, and saved states.

use virtio_models::console::Stream;

use crate::support::*;

#[test]
fn a_buffer_that_is_half_sent_goes_on_in_the_restored_machine() {
    let (reader, writer) = small_pipe();
    let output = |writer: &std::io::PipeWriter| {
        shared(Stream::new(
            None,
            Some(writer.try_clone().expect("a pipe").into()),
        ))
    };
    let mut guest = Guest::with_port(output(&writer));
    let sent = bytes(200_000);
    guest.queue(TX, sent.clone(), 0);
    let mut got = Vec::new();
    for _ in 0..20 {
        got.extend(read(&reader).0);
        guest = guest.restored(device(None, vec![port("org.x", output(&writer))]));
        if got.len() == sent.len() {
            break;
        }
        assert!(guest.messages().is_empty(), "the guest knows its ports");
    }
    assert!(got == sent);
    assert_eq!(guest.replies(TX).len(), 1);
}

#[test]
fn a_restored_guest_learns_that_its_client_is_gone() {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    let _client = place.client();
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    let other = Place::new();
    let server = other.server();
    // A new client is there before the machine runs.
    let client = other.client();
    let mut guest = guest.restored(device(None, vec![port("org.x", server)]));
    let told = guest.messages();
    assert_eq!(told, [(1, PORT_OPEN, 0, vec![]), (1, PORT_OPEN, 1, vec![])]);
    guest.queue(TX, b"hello".to_vec(), 0);
    assert_eq!(read(&client).0, b"hello");
}

#[test]
fn a_state_fits_only_the_same_ports() {
    let three = || {
        vec![
            port("a", silent()),
            port("b", silent()),
            port("c", silent()),
        ]
    };
    let saved = virtio_transport::AnyDevice::save(&device(None, three())).expect("a state");
    let refuses =
        |mut other: virtio_models::console::Console<virtio_transport::testing::Memory>| {
            let error =
                virtio_transport::AnyDevice::restore(&mut other, &saved).expect_err("other ports");
            assert!(
                error.to_string().contains("it has other console ports"),
                "{error}"
            );
        };
    refuses(device(None, vec![port("a", silent())]));
    refuses(device(Some(silent()), three()));
    let mut same = device(None, three());
    virtio_transport::AnyDevice::restore(&mut same, &saved).expect("the same ports");
}

#[test]
fn a_client_stays_through_a_reset() {
    let place = Place::new();
    let server = place.server();
    let mut guest = Guest::with_port(server.clone());
    let client = place.client();
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    guest.queue(TX, b"before ".to_vec(), 0);
    drop(guest);
    // A machine that starts again has the same peer.
    let mut guest = Guest::with_port(server);
    guest.queue(TX, b"after".to_vec(), 0);
    assert_eq!(guest.replies(TX).len(), 1);
    assert_eq!(read(&client).0, b"before after");
}
