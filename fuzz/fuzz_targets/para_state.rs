// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any saved registration: plain, as JSON and as CBOR.
//!
//! The first byte of the input chooses the format and the stub; the rest is the state.

#![no_main]

mod guest;

use std::sync::LazyLock;

use guest::STUBS;
use hypercall_patch::Stub;
use libfuzzer_sys::fuzz_target;
use para_msr::para::{ParaRegistration, RestoreError, Restored, RestoredSite};
use para_msr::{ParaMsr, ParaMsrState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(guest::memory);

/// Version, page and site in little endian, then the number of the guest's stub, if that is known.
fn plain(bytes: &[u8]) -> Option<ParaMsrState> {
    let (version, rest) = bytes.split_first_chunk()?;
    let (para_state_gpa, rest) = rest.split_first_chunk()?;
    let (hypercall_gpa, rest) = rest.split_first_chunk()?;
    let registration = ParaRegistration::new(
        u64::from_le_bytes(*para_state_gpa),
        u64::from_le_bytes(*hypercall_gpa),
    );
    let given = rest.first().and_then(|number| STUBS.get(usize::from(*number)));
    let mut state = ParaMsrState::registered(registration).with_stub(given.copied());
    state.version = u32::from_le_bytes(*version);
    Some(state)
}

fn to_cbor(state: &ParaMsrState) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(state, &mut bytes).expect("a Vec takes any bytes");
    bytes
}

fn restore(state: &ParaMsrState, stub: Stub) {
    let mut para = ParaMsr::new(&*MEMORY, stub);
    let before = guest::image(&MEMORY);
    let restored = para.restore(state);
    let after = guest::image(&MEMORY);
    match restored {
        Err(RestoreError::Version { found }) => {
            assert_ne!(state.version, ParaMsrState::VERSION);
            assert_eq!(state.version, found);
        }
        Err(RestoreError::OtherKind { gpa, from, to }) => {
            assert_eq!(guest::site(&before, gpa), from.bytes());
            assert_ne!(from.ret_offset(), to.ret_offset());
            assert_eq!(to, stub);
        }
        Err(other) => panic!("{other}"),
        Ok(Restored::Registered { registration, site }) => {
            guest::assert_sane(&registration);
            assert_eq!(para.registration(), Some(registration));
            let given = Some(stub);
            assert_eq!(para.save(), state.with_stub(given));
            let gpa = registration.hypercall_gpa;
            let (was, is) = (guest::site(&before, gpa), guest::site(&after, gpa));
            match site {
                RestoredSite::Unchanged => assert_eq!((was, is), (stub.bytes(), stub.bytes())),
                RestoredSite::Repatched { from } => {
                    assert_eq!((was, is), (from.bytes(), stub.bytes()))
                }
                RestoredSite::Foreign { bytes } => assert_eq!((was, is), (bytes, bytes)),
                other => panic!("{other}"),
            }
            guest::assert_only(&before, &after, &[gpa..gpa + 4]);
            return;
        }
        Ok(Restored::Unregistered) => assert_eq!(state.registration, None),
        Ok(Restored::Dropped { registration, .. }) => {
            assert_eq!(state.registration, Some(registration));
        }
        Ok(other) => panic!("{other}"),
    }
    assert_eq!(para.registration(), None);
    assert!(before == after);
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let (form, choice) = (choice % 3, choice / 3);
    let state = match form {
        0 => plain(bytes),
        1 => serde_json::from_slice(bytes).ok(),
        _ => ciborium::from_reader(bytes).ok(),
    };
    let Some(state) = state else {
        return;
    };
    let json = serde_json::to_vec(&state).expect("plain data");
    assert_eq!(
        serde_json::from_slice::<ParaMsrState>(&json).ok(),
        Some(state)
    );
    assert_eq!(
        ciborium::from_reader(&to_cbor(&state)[..]).ok(),
        Some(state)
    );

    guest::clear(&MEMORY);
    let stubs = STUBS.len();
    let stub = STUBS[usize::from(choice) % stubs];
    let in_memory = STUBS.get(usize::from(choice) / stubs % (stubs + 1));
    if let (Some(in_memory), Some(registration)) = (in_memory, state.registration) {
        // If that isn't RAM, there is no stub.
        let _ = MEMORY.write_slice(&in_memory.bytes(), GuestAddress(registration.hypercall_gpa));
    }
    restore(&state, stub);
});
