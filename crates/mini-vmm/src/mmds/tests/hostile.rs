// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that send anything. The playground checks what the service holds.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::Version;
use super::super::packet::{ACK, SYN};
use super::super::playground::Playground;
use super::guest::{Client, frame, service};

/// A segment that may belong to a connection, with damage at one place.
fn segments() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![0..70u32, any::<u32>(), Just(64_001), Just(64_060)];
    let data = prop_oneof![
        Just(b"GET /latest HTTP/1.1\r\n\r\n".to_vec()),
        Just(b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 9\r\n\r\n".to_vec()),
        vec(any::<u8>(), 0..100),
    ];
    let damage = proptest::option::weighted(0.2, (12..60usize, any::<u8>()));
    let flags = prop_oneof![Just(SYN), Just(ACK), any::<u8>()];
    (0..40u16, numbers.clone(), numbers, flags, data, damage).prop_map(
        |(port, seq, ack, flags, data, damage)| {
            let mut frame = frame(port, 80, seq, ack, flags, &data);
            if let Some((at, byte)) = damage.filter(|(at, _)| *at < frame.len()) {
                frame[at] = byte;
            }
            frame
        },
    )
}

fn works(service: &mut Playground) {
    for pair in 0..3 {
        while service.receive(pair).is_some() {}
    }
    let mut client = Client::open(service, 999);
    let text = client.ask(service, "GET /latest HTTP/1.1\r\n\r\n");
    assert!(text.ends_with("\r\n\r\nmeta-data/"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_segments_leave_a_service_that_works(
        steps in vec((segments(), 0..3usize, 0..500u64, any::<bool>()), 1..60)
    ) {
        let mut service = service(Version::V1);
        for (frame, pair, millis, receives) in steps {
            service.send(&frame, pair);
            service.wait(Duration::from_millis(millis));
            if receives {
                service.receive(pair);
            }
        }
        works(&mut service);
    }

    #[test]
    fn any_bytes_are_no_danger(frames in vec(vec(any::<u8>(), 0..100), 1..50)) {
        let mut service = service(Version::V2);
        for mut frame in frames {
            service.send(&frame, 0);
            // As if they were for the service.
            if frame.len() >= 34 {
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[30..34].copy_from_slice(&[169, 254, 169, 254]);
                prop_assert!(service.send(&frame, 0));
            }
        }
        while service.receive(0).is_some() {}
    }
}

/// A guest that opens connections and takes no frame.
#[test]
fn what_waits_for_a_guest_is_bounded() {
    let mut service = service(Version::V1);
    for port in 0..u16::MAX {
        service.send(&frame(port, 80, 1, 0, SYN, &[]), 0);
        service.send(&frame(port, 81, 1, 0, SYN, &[]), 0);
    }
    let mut count = 0;
    while service.receive(0).is_some() {
        count += 1;
    }
    assert_eq!(count, 32 + 64);
    // It never answers, so all are given up.
    for _ in 0..10 {
        service.wait(Duration::from_secs(30));
        while service.receive(0).is_some() {}
    }
    assert_eq!((service.connections(), service.next_in(0)), (0, None));
    works(&mut service);
}
