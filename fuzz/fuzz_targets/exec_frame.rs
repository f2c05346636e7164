// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an agent or a client of `ctl exec` gets. Frames stay in their limits, and what is read says the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mini_vmm::exec::frame::{End, HEADER, Kind, MAX_START, Refusal, Start, header, parse};

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    loop {
        match parse(rest) {
            Ok(Some(frame)) => {
                assert!(frame.payload.len() <= MAX_START);
                assert_eq!(header(frame.kind, frame.payload.len()), rest[..HEADER]);
                read(frame.kind, frame.payload);
                rest = &rest[frame.size()..];
            }
            // Whatever comes, no more than this is kept.
            Ok(None) => return assert!(rest.len() < HEADER + MAX_START),
            Err(bad) => return assert!(!bad.to_string().is_empty()),
        }
    }
});

/// Reads a payload.
fn read(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::Start => {
            if let Ok(start) = Start::parse(payload) {
                assert!(!start.words[0].is_empty());
                assert_eq!(start.payload().as_deref(), Some(payload));
            }
        }
        Kind::End => {
            if let Ok(end) = End::parse(payload) {
                assert_eq!(end.payload(), payload);
            }
        }
        Kind::Refused => {
            if let Ok((refusal, reason)) = Refusal::parse(payload) {
                assert_eq!(refusal.payload(reason), payload);
            }
        }
        _ => {}
    }
}
