// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames to the metadata service: segments of connections with any numbers, flags and data, any other bytes, and waits.
//! What the service holds is bounded, no frame comes before it is announced, and afterwards another connection works.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mini_vmm::mmds::playground::Playground;
use mini_vmm::mmds::{ADDRESS, Store, Version};

const SYN: u8 = 2;
const ACK: u8 = 16;
/// The start of the service's data in a frame without TCP options.
const DATA: usize = 14 + 20 + 20;

/// A frame with a segment for the service.
fn segment(port: u16, seq: u32, ack: u32, flags: u8, window: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7, 8, 0, 0x45, 0]].concat();
    frame.extend((40 + data.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
    frame.extend(ADDRESS.octets());
    frame.extend([&port.to_be_bytes()[..], &[0, 80]].concat());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags]);
    frame.extend(window.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(data);
    frame
}

/// The sequence number of a frame of the service's.
fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[38..42].try_into().expect("a whole header"))
}

/// Does one step. Numbers count from those of the last frame, so that segments often fit.
fn act(service: &mut Playground, step: &[u8; 6], data: &[u8], last: &mut u32) {
    let [what, pair, seq, ack, flags, window] = *step;
    let pair = usize::from(pair % 3);
    match what % 8 {
        0 => service.wait(Duration::from_millis(100 * u64::from(seq))),
        1 => drop(service.send(data, pair)),
        2 => {
            let mut frame = data.to_vec();
            frame.resize(frame.len().max(34), 0);
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[30..34].copy_from_slice(&ADDRESS.octets());
            assert!(service.send(&frame, pair));
        }
        3 | 4 => {
            let mut frames = std::iter::from_fn(|| service.receive(pair));
            let received = if what % 8 == 3 { frames.next() } else { frames.last() };
            if let Some(frame) = received {
                assert_eq!(frame[6..12], [6, 1, 0x23, 0x45, 0x67, 1]);
                let data = frame.len().saturating_sub(DATA) as u32;
                *last = number(&frame).wrapping_add(data).wrapping_add(1);
            }
        }
        _ => {
            let ack = last.wrapping_add_signed(i32::from(ack as i8));
            let window = u16::from(window) << (what % 8);
            let frame = segment(u16::from(pair as u8), seq.into(), ack, flags, window, data);
            assert!(service.send(&frame, pair));
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&[choices], mut rest)) = input.split_first_chunk() else {
        return;
    };
    let version = [Version::V1, Version::V2][usize::from(choices & 1)];
    let store = Store::new(100_000);
    let large = "x".repeat(usize::from(choices) * 200);
    let stored = store.put(serde_json::json!({ "a": "b", "l": large }));
    stored.expect("a document that is not too large");
    let mut service = Playground::new(version, choices & 2 != 0, store);
    let mut last = 0;
    while let Some((step, after)) = rest.split_first_chunk::<7>() {
        let [length, step @ ..] = *step;
        let (data, after) = after.split_at(usize::from(length).min(after.len()));
        act(&mut service, &step, data, &mut last);
        rest = after;
    }
    for pair in 0..3 {
        while service.receive(pair).is_some() {}
    }
    // Two of them, because the steps may have made a connection that begins like one.
    for seq in [10, 20] {
        assert!(service.send(&segment(999, seq, 0, SYN, 4096, &[]), 0));
    }
    let ack = number(&service.receive(0).expect("a connection")).wrapping_add(1);
    let get = b"GET /a HTTP/1.1\r\n\r\n";
    assert!(service.send(&segment(999, 21, ack, ACK, 4096, get), 0));
    let answer = service.receive(0).expect("an answer");
    let status: &[u8] = if version == Version::V1 { b"200" } else { b"401" };
    assert_eq!(answer[DATA + 9..][..3], *status);
});
