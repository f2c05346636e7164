// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fields of the API that a guest or a client sees the effect of.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::http::Client;
use bare::{Asm, Running, Vm, guest};

/// A waiting process, and a client of it that has described a machine.
fn waiting(test: &str, guest: &Asm) -> Option<(Running, Client)> {
    let mut vm = Vm::waiting(test, guest)?;
    let api = vm.path("api");
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.describe();
    Some((running, client))
}

/// Says whether CPUID has a bit of leaf 1, ECX.
fn cpuid_guest(bit: u32) -> Asm {
    guest(|asm| {
        asm.rax(1).raw(&[0x0f, 0xa2]); // cpuid
        asm.raw(&[0x89, 0xc8, 0x25])
            .raw(&(1_u32 << bit).to_le_bytes()); // mov eax, ecx; and eax, bit
        asm.compare_eax(0).if_equal(|asm| {
            asm.print("gone").power_off();
        });
        asm.print("there").power_off();
    })
}

#[test]
fn a_template_clears_bits_of_cpuid() {
    const HYPERVISOR: u32 = 31;
    let test = "a_template_clears_bits_of_cpuid";
    let template = |register: &str, bitmap: &str| {
        format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{{"register": "{register}", "bitmap": "0b{bitmap}"}}]}}]}}"#
        )
    };
    for (bitmap, seen) in [
        ("1xxxxxxx_xxxxxxxx_xxxxxxxx_xxxxxxxx", "there"),
        ("0xxxxxxx_xxxxxxxx_xxxxxxxx_xxxxxxxx", "gone"),
    ] {
        let Some((running, mut client)) = waiting(test, &cpuid_guest(HYPERVISOR)) else {
            return;
        };
        // What a host can't do is said at the start. No CPU of today has a serial number.
        client.done(
            "PUT",
            "/cpu-config",
            &template("edx", "1xx_xxxxxxxx_xxxxxxxx"),
        );
        let start = r#"{"action_type": "InstanceStart"}"#;
        client.refused(
            "PUT",
            "/actions",
            start,
            "CPU feature \"pn\" can't be added",
        );
        // Another template replaces it.
        client.done("PUT", "/cpu-config", &template("ecx", bitmap));
        client.act("InstanceStart");
        running.end().expect(0).printed(seen);
    }
}
