// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules R1 to R14.

use std::cell::RefCell;
use std::rc::Rc;

use hypercall_patch::Stub;
use hypercall_patch::memory::{SiteError, Written};
use para_abi::{KVM_PARA_API_VERSION, MSR_KVM_API_MAGIC, PARA_STATE_PAYLOAD, ParaStatePayload};
use para_msr::para::{FaultReason, ParaRegistration, Refusal, Restored};
use para_msr::{MsrDispatchBuilder, MsrHandler, Outcome, ParaMsr};
use vm_memory::{Bytes, GuestAddress};

use crate::support::*;

#[test]
fn r1_the_value_is_a_64_bit_address() {
    let high = 0x12_3456_7000;
    let memory = memory(&[(0, 0x8000), (high, 0x2000)]);
    put(&memory, high, &ParaStatePayload::new(high + 0x1000));
    let low = image(&memory)[0].clone();
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    assert!(para.wrmsr(high).registered().is_some());
    assert_eq!(
        (get(&memory, high).host_version, get(&memory, high).ret),
        (1, 0)
    );
    assert_eq!(bytes(&memory, high + 0x1000), Stub::Vmx.bytes());
    assert_eq!(image(&memory)[0], low, "EAX alone is another address");
}

#[test]
fn r1_the_magic_number_triggers_it_and_no_other() {
    let memory = std::sync::Arc::new(ready());
    let mut handler = ParaMsr::new(memory.clone(), PIO);
    for index in [0, MSR_KVM_API_MAGIC - 1, MSR_KVM_API_MAGIC + 1, u32::MAX] {
        assert_eq!(handler.write(index, PAGE), Outcome::NotHandled);
        assert_eq!(handler.read(index), Outcome::NotHandled);
    }
    assert_eq!(get(&*memory, PAGE), ParaStatePayload::new(SITE));
    let builder = MsrDispatchBuilder::new().insert(MSR_KVM_API_MAGIC, handler);
    let mut msrs = builder.unwrap().build();
    assert_eq!(msrs.write(MSR_KVM_API_MAGIC, PAGE), Outcome::Handled(()));
    assert_eq!(
        msrs.write(MSR_KVM_API_MAGIC, PAGE + 1),
        Outcome::GpException
    );
    assert_eq!(get(&*memory, PAGE).ret, 0);
}

#[test]
fn r3_a_misaligned_page_faults_and_touches_nothing() {
    let memory = ready();
    let before = image(&memory);
    let mut para = ParaMsr::new(&memory, Stub::Svm);
    let near = (1..4096).map(|offset| PAGE + offset);
    // Also without RAM: alignment is checked first.
    for gpa in near.chain([1, RAM + 8, 0xffff_ffff_ffff_f001, u64::MAX]) {
        assert_eq!(fault(para.wrmsr(gpa)), FaultReason::Misaligned, "{gpa:#x}");
    }
    assert_eq!(image(&memory), before);
    assert_eq!(para.registration(), None);
}

#[test]
fn r4_a_page_without_ram_faults_and_touches_nothing() {
    let memory = memory(&[(0, 0x4000), (0x6000, 0x2000)]);
    let before = image(&memory);
    let mut para = ParaMsr::new(&memory, Stub::Svm);
    for gpa in [0x4000, 0x5000, 0x8000, 1 << 32, 1 << 63, !0xfff] {
        let event = para.wrmsr(gpa);
        assert_eq!(event.outcome(), Outcome::GpException);
        assert_eq!(fault(event), FaultReason::NotRam, "{gpa:#x}");
    }
    assert_eq!(image(&memory), before);
}

#[test]
fn r4_a_page_without_aligned_words_in_the_host_faults() {
    // KVM has no such regions, but a GuestMemory may. 32-bit stores would be torn there.
    for start in [PAGE - 1, PAGE - 2, PAGE - 3] {
        let memory = memory(&[(start, 0x4000)]);
        put(&memory, PAGE, &ParaStatePayload::new(SITE));
        let before = image(&memory);
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert_eq!(fault(para.wrmsr(PAGE)), FaultReason::NotRam, "{start:#x}");
        assert_eq!(image(&memory), before);
    }
}

#[test]
fn r4_the_last_page_of_ram_and_page_0_are_pages() {
    for gpa in [0, RAM - 0x1000] {
        let memory = ready();
        put(&memory, gpa, &ParaStatePayload::new(SITE));
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert!(para.wrmsr(gpa).registered().is_some(), "{gpa:#x}");
        assert_eq!(get(&memory, gpa).ret, 0);
    }
}

#[test]
fn r5_host_version_is_written_even_if_the_guest_is_refused() {
    let newer = ParaStatePayload {
        guest_version: 2,
        ..ParaStatePayload::new(SITE)
    };
    for payload in [
        ParaStatePayload::new(SITE),
        newer,
        ParaStatePayload::new(RAM),
    ] {
        let memory = ready();
        put(&memory, PAGE, &payload);
        let _ = ParaMsr::new(&memory, Stub::Vmx).wrmsr(PAGE);
        assert_eq!(get(&memory, PAGE).host_version, KVM_PARA_API_VERSION);
    }
}

#[test]
fn r5_host_version_is_written_first() {
    for site in [SITE, RAM] {
        let memory = spied();
        put(&memory, PAGE, &ParaStatePayload::new(site));
        let stores = Rc::new(RefCell::new(Vec::new()));
        let seen = stores.clone();
        after_each_store(move |gpa, len| seen.borrow_mut().push((gpa, len)));
        let _ = ParaMsr::new(&memory, Stub::Vmx).wrmsr(PAGE);
        let (first, last) = ((PAGE + 4, 4), (PAGE + 12, 4));
        match site {
            SITE => assert_eq!(*stores.borrow(), [first, (SITE, 4), last]),
            _ => assert_eq!(*stores.borrow(), [first, last]),
        }
    }
}

#[test]
fn r6_a_newer_guest_is_refused_and_wrmsr_succeeds() {
    for guest_version in [2, 3, 0x8000_0000, u32::MAX] {
        let memory = ready();
        put(
            &memory,
            PAGE,
            &ParaStatePayload {
                guest_version,
                ..ParaStatePayload::new(SITE)
            },
        );
        let before = image(&memory);
        let mut para = ParaMsr::new(&memory, Stub::Vmx);
        let event = para.wrmsr(PAGE);
        assert_eq!(event.outcome(), Outcome::Handled(()));
        assert_eq!(refusal(event), Refusal::NewerGuest);
        assert_eq!(para.registration(), None);
        let page = get(&memory, PAGE);
        assert_eq!((page.host_version, page.ret), (1, EINVAL));
        // `ret` still has the guest's preset, so only host_version has changed.
        assert_eq!(
            changed(&before, &image(&memory)),
            [PAGE + 4, PAGE + 5, PAGE + 6, PAGE + 7]
        );
    }
}

#[test]
fn r6_ret_is_written_over_a_stale_success() {
    let memory = ready();
    let stale = ParaStatePayload {
        guest_version: 2,
        ret: 0,
        ..ParaStatePayload::new(SITE)
    };
    put(&memory, PAGE, &stale);
    let _ = ParaMsr::new(&memory, Stub::Vmx).wrmsr(PAGE);
    assert_eq!(get(&memory, PAGE).ret, EINVAL);
}

#[test]
fn r7_a_site_without_ram_is_refused_and_wrmsr_succeeds() {
    for site in [
        RAM,
        RAM + 0x123,
        1 << 32,
        1 << 63,
        0xffff_ffff_ffff_fffc,
        0xffff_ffff_ffff_f000,
    ] {
        let memory = ready();
        put(
            &memory,
            PAGE,
            &ParaStatePayload {
                ret: 7,
                ..ParaStatePayload::new(site)
            },
        );
        let mut para = ParaMsr::new(&memory, Stub::Vmx);
        let event = para.wrmsr(PAGE);
        assert_eq!(event.outcome(), Outcome::Handled(()));
        assert_eq!(
            refusal(event),
            Refusal::Site(SiteError::NotRam { gpa: site }),
            "{site:#x}"
        );
        assert_eq!(get(&memory, PAGE).ret, EINVAL);
        assert_eq!(para.registration(), None);
    }
}

#[test]
fn r7_a_site_needs_no_alignment() {
    for offset in 0..16 {
        for stub in STUBS {
            let memory = ready();
            put(&memory, PAGE, &ParaStatePayload::new(SITE + offset));
            let before = image(&memory);
            assert!(
                ParaMsr::new(&memory, stub)
                    .wrmsr(PAGE)
                    .registered()
                    .is_some()
            );
            assert_eq!(bytes(&memory, SITE + offset), stub.bytes());
            let site = SITE + offset..SITE + offset + 4;
            let page = PAGE..PAGE + PARA_STATE_PAYLOAD as u64;
            let changed = changed(&before, &image(&memory));
            assert!(
                changed
                    .iter()
                    .all(|gpa| site.contains(gpa) || page.contains(gpa))
            );
        }
    }
}

#[test]
fn r8_the_registration_is_stored_with_all_its_parts() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, PIO);
    let event = para.wrmsr(PAGE);
    let registered = event.registered().unwrap();
    assert_eq!(
        (registered.para_state_gpa, registered.hypercall_gpa),
        (PAGE, SITE)
    );
    assert_eq!((registered.guest_version, registered.size), (1, 4096));
    assert_eq!(
        (registered.stub, registered.written),
        (PIO, Written::Changed)
    );
    let stored = ParaRegistration::new(PAGE, SITE);
    assert_eq!(para.registration(), Some(stored));
}

#[test]
fn r8_another_registration_replaces_the_first() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, PIO);
    assert!(para.wrmsr(PAGE).registered().is_some());
    put(&memory, 0x4000, &ParaStatePayload::new(0x5000));
    assert!(para.wrmsr(0x4000).registered().is_some());
    let stored = ParaRegistration::new(0x4000, 0x5000);
    assert_eq!(para.registration(), Some(stored));
    assert_eq!(
        bytes(&memory, SITE),
        PIO.bytes(),
        "the old site is guest RAM, it stays"
    );
    assert_eq!(get(&memory, PAGE).ret, 0);
}

#[test]
fn r8_ret_becomes_0_only_after_the_stub_stands() {
    let memory = spied();
    let (other, before) = (memory.clone(), bytes::<4, _>(&memory, SITE));
    let steps = Rc::new(RefCell::new(Vec::new()));
    let seen = steps.clone();
    after_each_store(move |_, _| {
        let patched = bytes::<4, _>(&other, SITE) == Stub::Vmx.bytes();
        assert!(patched || bytes::<4, _>(&other, SITE) == before);
        seen.borrow_mut().push((
            get(&other, PAGE).host_version,
            patched,
            get(&other, PAGE).ret,
        ));
    });
    assert!(
        ParaMsr::new(&memory, Stub::Vmx)
            .wrmsr(PAGE)
            .registered()
            .is_some()
    );
    assert_eq!(
        *steps.borrow(),
        [(1, false, EINVAL), (1, true, EINVAL), (1, true, 0)]
    );
}

#[test]
fn r9_the_sixbyte_stub_of_the_known_guest_keeps_its_tail() {
    // mov eax, -38; ret: the unpatched stub.
    let original = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3];
    let patched: [(Stub, [u8; 6]); 3] = [
        (Stub::Vmx, [0x0f, 0x01, 0xc1, 0xc3, 0xff, 0xc3]),
        (Stub::Svm, [0x0f, 0x01, 0xd9, 0xc3, 0xff, 0xc3]),
        (PIO, [0xe6, 0xf5, 0xc3, 0xcc, 0xff, 0xc3]),
    ];
    for (stub, result) in patched {
        let memory = ready();
        memory.write_slice(&original, GuestAddress(SITE)).unwrap();
        assert!(
            ParaMsr::new(&memory, stub)
                .wrmsr(PAGE)
                .registered()
                .is_some()
        );
        assert_eq!(bytes(&memory, SITE), result);
    }
}

#[test]
fn r10_a_failed_registration_keeps_the_old_one() {
    let newer = ParaStatePayload {
        guest_version: 2,
        ..ParaStatePayload::new(0x5000)
    };
    let failing = [
        (0x4000, newer),
        (0x4000, ParaStatePayload::new(RAM)),
        (0x4000, ParaStatePayload::new(0x5ffd)),
        (0x4000, ParaStatePayload::new(0x4010)),
        (PAGE, newer),
        (PAGE, ParaStatePayload::new(u64::MAX)),
    ];
    for (gpa, payload) in failing {
        let memory = ready();
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert!(para.wrmsr(PAGE).registered().is_some());
        let (stored, site) = (para.registration(), bytes::<4, _>(&memory, SITE));
        put(&memory, gpa, &payload);
        let before = image(&memory);
        let _ = refusal(para.wrmsr(gpa));
        assert_eq!(para.registration(), stored);
        assert_eq!(bytes(&memory, SITE), site);
        let answer = gpa + 4..gpa + 16;
        assert!(
            changed(&before, &image(&memory))
                .iter()
                .all(|at| answer.contains(at))
        );
        // So do faults.
        let before = image(&memory);
        let _ = fault(para.wrmsr(RAM));
        let _ = fault(para.wrmsr(PAGE + 8));
        assert_eq!((para.registration(), image(&memory)), (stored, before));
    }
}

#[test]
fn r11_every_vcpu_may_register_the_same_site() {
    let memory = ready();
    put(&memory, 0x4000, &ParaStatePayload::new(SITE));
    let (mut first, mut second) = (ParaMsr::new(&memory, PIO), ParaMsr::new(&memory, PIO));
    assert_eq!(
        first.wrmsr(PAGE).registered().unwrap().written,
        Written::Changed
    );
    assert_eq!(second.registration(), None, "registration is per vCPU");
    assert_eq!(
        second.wrmsr(0x4000).registered().unwrap().written,
        Written::Unchanged
    );
    assert_eq!(get(&memory, 0x4000).ret, 0);
    first.reset();
    assert_eq!(first.registration(), None);
    assert_eq!(second.registration().unwrap().para_state_gpa, 0x4000);
    // They may share the page too.
    assert!(first.wrmsr(0x4000).registered().is_some());
}

#[test]
fn r12_rdmsr_faults() {
    let memory = ready();
    let before = image(&memory);
    let mut para = ParaMsr::new(&memory, PIO);
    assert_eq!(para.read(MSR_KVM_API_MAGIC), Outcome::GpException);
    assert_eq!(image(&memory), before);
    assert!(para.wrmsr(PAGE).registered().is_some());
    assert_eq!(para.read(MSR_KVM_API_MAGIC), Outcome::GpException);
}

#[test]
fn r13_every_guest_version_up_to_the_hosts_is_accepted() {
    for guest_version in 0..=KVM_PARA_API_VERSION {
        let memory = ready();
        put(
            &memory,
            PAGE,
            &ParaStatePayload {
                guest_version,
                ..ParaStatePayload::new(SITE)
            },
        );
        let event = ParaMsr::new(&memory, Stub::Vmx).wrmsr(PAGE);
        assert_eq!(event.registered().unwrap().guest_version, guest_version);
        assert_eq!(get(&memory, PAGE).guest_version, guest_version);
    }
}

#[test]
fn r14_the_state_is_saved_although_kvm_never_did() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    assert!(para.wrmsr(PAGE).registered().is_some());
    let (state, before) = (para.save(), image(&memory));
    let mut restored = ParaMsr::new(&memory, Stub::Vmx);
    assert!(matches!(
        restored.restore(&state),
        Ok(Restored::Registered { .. })
    ));
    assert_eq!(restored.registration(), para.registration());
    assert_eq!(
        image(&memory),
        before,
        "restoring is no second registration"
    );
}

#[test]
fn a_value_of_0_is_page_0_and_does_not_unregister() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    assert!(para.wrmsr(PAGE).registered().is_some());
    let stored = para.registration();
    put(
        &memory,
        0,
        &ParaStatePayload {
            guest_version: u32::MAX,
            ..ParaStatePayload::new(SITE)
        },
    );
    let _ = refusal(para.wrmsr(0));
    assert_eq!(para.registration(), stored);
}

#[test]
fn the_observer_sees_each_event_before_the_vcpu_goes_on() {
    let memory = std::sync::Arc::new(ready());
    let (sender, events) = std::sync::mpsc::channel();
    let para =
        ParaMsr::new(memory.clone(), PIO).with_observer(move |event| sender.send(*event).unwrap());
    let builder = MsrDispatchBuilder::new().insert(MSR_KVM_API_MAGIC, para);
    let mut msrs = builder.unwrap().build();
    for value in [PAGE, PAGE + 1, RAM] {
        let outcome = msrs.write(MSR_KVM_API_MAGIC, value);
        assert_eq!(events.try_recv().unwrap().outcome(), outcome);
    }
    type Para = ParaMsr<std::sync::Arc<vm_memory::GuestMemoryMmap>>;
    let para = msrs.handler_mut::<Para>(MSR_KVM_API_MAGIC).unwrap();
    assert!(para.registration().is_some());
    msrs.reset();
    let para = msrs.handler_mut::<Para>(MSR_KVM_API_MAGIC).unwrap();
    assert!(para.registration().is_none());
}
