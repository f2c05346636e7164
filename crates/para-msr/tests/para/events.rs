// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest can make the host log, and how often (H11).

use hypercall_patch::Stub;
use para_abi::ParaStatePayload;
use para_msr::ParaMsr;
use para_msr::para::EventThrottle;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::support::*;

#[test]
fn h11_a_flood_of_registrations_is_few_lines() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, PIO);
    let mut throttle = EventThrottle::default();
    let mut lines = Vec::new();
    for turn in 0..30_000u64 {
        let event = para.wrmsr(if turn == 29_000 {
            PAGE
        } else {
            turn * 4096 + 1
        });
        lines.extend(
            throttle
                .admit(&event)
                .map(|number| (number, event.to_string())),
        );
    }
    assert_eq!(
        lines.len(),
        3 + 13 + 1,
        "1 to 4, 8 to 16384, and the one of another kind"
    );
    let (number, line) = lines.last().unwrap();
    assert_eq!(*number, 1, "faults don't hide a registration");
    assert_eq!(
        line,
        "para guest registered: page 0x1000, API version 1, size 4096, \"out 0xf5, al; ret; int3\" written to 0x2010"
    );
}

#[test]
fn h11_lines_name_guest_addresses_and_reasons() {
    let memory = ready();
    let host = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    let newer = ParaStatePayload {
        guest_version: 9,
        ..ParaStatePayload::new(SITE)
    };
    let mut lines = vec![
        para.wrmsr(PAGE + 1).to_string(),
        para.wrmsr(RAM).to_string(),
    ];
    for payload in [
        newer,
        ParaStatePayload::new(RAM),
        ParaStatePayload::new(PAGE),
    ] {
        put(&memory, PAGE, &payload);
        lines.push(para.wrmsr(PAGE).to_string());
    }
    let parts = [
        "0x1001: it is not page aligned",
        "0x8000: there is no readable and writable RAM",
        "API version 9",
        "0x8000",
        "0x1018",
    ];
    for (line, part) in lines.iter().zip(parts) {
        assert!(line.contains(part), "{line}");
        assert!(!line.contains(&format!("{:x}", host >> 12)), "{line}");
        assert!(
            !line.contains('\n') && line.starts_with("para guest "),
            "{line}"
        );
    }
}
