// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which instructions a guest gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hypercall_patch::{PioPort, Stub};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::config::{HypercallAbi, HypercallRoute, VmSpec};
use crate::hypercall::para::{RouteChoice, RouteError};

/// A choice for a guest with this vendor string, and a counter of probes.
pub fn choice(route: HypercallRoute, vendor: &[u8; 12], proved: bool) -> (Choice, Arc<AtomicU32>) {
    choice_with(route, HypercallAbi::Kvm, vendor, proved)
}

fn choice_with(
    route: HypercallRoute,
    abi: HypercallAbi,
    vendor: &[u8; 12],
    proved: bool,
) -> (Choice, Arc<AtomicU32>) {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let leaf0 = kvm_cpuid_entry2 {
        ebx: word(0),
        edx: word(4),
        ecx: word(8),
        ..Default::default()
    };
    let cpuid = CpuId::from_entries(&[leaf0]).unwrap();
    let spec = VmSpec {
        hypercall: route,
        hypercall_abi: abi,
        ..VmSpec::new("vmlinux")
    };
    let probes = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&probes);
    let probe = Arc::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        match proved {
            true => Ok(()),
            false => Err("it never returned".to_owned()),
        }
    });
    (RouteChoice::new(&spec, &cpuid, probe), probes)
}

pub type Choice = Result<RouteChoice, RouteError>;

#[test]
fn auto_is_the_vendor_where_that_was_proved_and_asks_once_and_late() {
    let pio = Stub::Pio(PioPort::DEFAULT);
    let cases: [(&[u8; 12], bool, Stub, u32); 4] = [
        (b"GenuineIntel", true, Stub::Vmx, 1),
        (b"AuthenticAMD", true, Stub::Svm, 1),
        (b"AuthenticAMD", false, pio, 1),
        (b"Somebody New", true, pio, 0),
    ];
    for (vendor, proved, stub, asked) in cases {
        let (choice, probes) = choice(HypercallRoute::Auto, vendor, proved);
        let choice = choice.unwrap();
        assert_eq!(choice.port(), Some(PioPort::DEFAULT), "it may come to that");
        assert_eq!(probes.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            assert_eq!(choice.stub(), stub);
        }
        assert_eq!(probes.load(Ordering::Relaxed), asked);
        assert_eq!(choice.port(), stub.port());
    }
}

/// With the vendor's instruction KVM would answer, but with the number and arguments in other registers.
#[test]
fn auto_is_port_io_for_registers_that_kvm_does_not_know() {
    for abi in [HypercallAbi::Para2007, HypercallAbi::Para2007Draft] {
        let (choice, probes) = choice_with(HypercallRoute::Auto, abi, b"AuthenticAMD", true);
        let choice = choice.unwrap();
        assert_eq!(choice.stub(), Stub::Pio(PioPort::DEFAULT));
        // Restoring a guest with the vendor's instruction doesn't choose it either.
        choice.choose_for_saved(Stub::Svm);
        assert_eq!(choice.stub(), Stub::Pio(PioPort::DEFAULT));
        assert_eq!(probes.load(Ordering::Relaxed), 0);
        let (forward, _) = choice_with(HypercallRoute::Forward, abi, b"AuthenticAMD", true);
        assert_eq!(
            forward.unwrap().stub(),
            Stub::Svm,
            "all calls reach the VMM there"
        );
    }
}

#[test]
fn h6_a_saved_guest_that_calls_by_port_keeps_to_it() {
    let (pio, elsewhere) = (Stub::Pio(PioPort::DEFAULT), PioPort::new(0x10).unwrap());
    for (saved, proved, stub, asked) in [
        (Stub::Pio(elsewhere), true, pio, 0),
        (Stub::Vmx, true, Stub::Svm, 1),
        (Stub::Vmx, false, pio, 1),
    ] {
        let (choice, probes) = choice(HypercallRoute::Auto, b"AuthenticAMD", proved);
        let choice = choice.unwrap();
        choice.choose_for_saved(saved);
        assert_eq!(choice.stub(), stub);
        assert_eq!(probes.load(Ordering::Relaxed), asked);
    }
    // A choice is final.
    let (vendor, _) = choice(HypercallRoute::Vendor, b"AuthenticAMD", true);
    let vendor = vendor.unwrap();
    vendor.choose_for_saved(pio);
    assert_eq!(vendor.stub(), Stub::Svm);
}

/// On a sealed machine the probe runs before the guest starts, and the choice stays open.
#[test]
fn a_probe_that_is_asked_early_leaves_a_saved_guest_its_route() {
    let pio = Stub::Pio(PioPort::DEFAULT);
    let (choice, probes) = choice(HypercallRoute::Auto, b"AuthenticAMD", true);
    let choice = choice.unwrap();
    choice.ask_early();
    assert_eq!(probes.load(Ordering::Relaxed), 1);
    choice.choose_for_saved(pio);
    assert_eq!(choice.stub(), pio);
    choice.ask_early();
    assert_eq!(probes.load(Ordering::Relaxed), 1, "nobody will ask");
}

#[test]
fn a_route_that_was_asked_for_is_not_probed() {
    let port = PioPort::new(0x10).unwrap();
    let pio = HypercallRoute::Pio(Some(port));
    for (route, stub) in [
        (HypercallRoute::Vendor, Stub::Svm),
        (HypercallRoute::Forward, Stub::Svm),
        (pio, Stub::Pio(port)),
    ] {
        let (choice, probes) = choice(route, b"AuthenticAMD", false);
        let choice = choice.unwrap();
        choice.ask_early();
        assert_eq!((choice.stub(), choice.port()), (stub, stub.port()));
        assert_eq!(probes.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn an_unknown_vendor_has_no_instruction() {
    let (refused, _) = choice(HypercallRoute::Vendor, b"Somebody New", true);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("--hypercall vendor") && text.contains("Somebody New"),
        "{text}"
    );
    let (pio, _) = choice(HypercallRoute::Pio(None), b"Somebody New", true);
    assert_eq!(pio.unwrap().stub(), Stub::Pio(PioPort::DEFAULT));
}
