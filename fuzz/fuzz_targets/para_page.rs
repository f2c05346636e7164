// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that write any page and register with it.
//!
//! The first byte of the input chooses the stub. Each further 33 bytes are a step of one of two vCPUs: a
//! byte of choices, the value of WRMSR, and the 24 bytes that the guest writes there before.

#![no_main]

mod guest;

use std::sync::LazyLock;

use guest::{Image, STUBS};
use libfuzzer_sys::fuzz_target;
use para_abi::{ParaStatePayload, is_para_state_aligned};
use para_msr::para::Registered;
use para_msr::{Outcome, ParaMsr, Registration};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(guest::memory);

type Para = ParaMsr<&'static GuestMemoryMmap>;

fn payload(image: &Image, gpa: u64) -> ParaStatePayload {
    let bytes = &image[gpa as usize..gpa as usize + 24];
    ParaStatePayload::from_bytes(bytes.try_into().expect("24 bytes"))
}

fn register(para: &mut Para, value: u64) {
    let (before, earlier) = (guest::image(&MEMORY), para.registration());
    let event = para.wrmsr(value);
    let after = guest::image(&MEMORY);
    assert!(event.to_string().starts_with("para guest "));
    if let Registration::Fault(_) = event {
        assert_eq!(event.outcome(), Outcome::GpException);
        assert!(before == after);
        assert_eq!(para.registration(), earlier);
        return;
    }
    assert_eq!(event.outcome(), Outcome::Handled(()));
    assert!(is_para_state_aligned(value));
    let (asked, answer) = (payload(&before, value), payload(&after, value));
    let page = [value + 4..value + 8, value + 12..value + 16];
    assert_eq!(answer.host_version, 1);
    if let Registration::Registered(Registered {
        hypercall_gpa: site,
        stub,
        ..
    }) = event
    {
        assert_eq!((answer.ret, site), (0, asked.hypercall_gpa));
        assert!(asked.guest_version <= 1);
        assert_eq!(guest::site(&after, site), stub.bytes());
        guest::assert_sane(&para.registration().expect("it was registered"));
        let [version, ret] = page;
        guest::assert_only(&before, &after, &[version, ret, site..site + 4]);
    } else {
        assert_eq!(answer.ret, u32::MAX);
        assert_eq!(para.registration(), earlier);
        guest::assert_only(&before, &after, &page);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, steps)) = input.split_first() else {
        return;
    };
    guest::clear(&MEMORY);
    let stub = STUBS[usize::from(*choice) % STUBS.len()];
    let mut vcpus = [0; 2].map(|_| Para::new(&MEMORY, stub));
    for step in steps.chunks_exact(33).take(64) {
        let Some((value, payload)) = step[1..].split_first_chunk() else {
            return;
        };
        // Any value, or one of the guest's pages.
        let value = match step[0] & 6 {
            0 => u64::from_le_bytes(*value),
            _ => u64::from_le_bytes(*value) & 0x7000,
        };
        // Pages that aren't RAM can't be written.
        let _ = MEMORY.write_slice(payload, GuestAddress(value));
        let para = &mut vcpus[usize::from(step[0] & 1)];
        register(para, value);
        if step[0] & 8 != 0 {
            para.reset();
            assert_eq!(para.registration(), None);
        }
    }
});
