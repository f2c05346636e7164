// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving and restoring (H6).

use hypercall_patch::memory::SiteError;
use hypercall_patch::{PioPort, Stub};
use para_abi::ParaStatePayload;
use para_msr::para::{Lost, ParaRegistration, RestoreError, Restored, RestoredSite};
use para_msr::{ParaMsr, ParaMsrState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions};

use crate::support::*;

const REGISTRATION: ParaRegistration = ParaRegistration::new(PAGE, SITE);

fn state(para_state_gpa: u64, hypercall_gpa: u64) -> ParaMsrState {
    ParaMsrState::registered(ParaRegistration::new(para_state_gpa, hypercall_gpa))
}

/// The memory and state of a guest that registered on a host with `stub`.
fn saved(stub: Stub) -> (GuestMemoryMmap, ParaMsrState) {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, stub);
    assert!(para.wrmsr(PAGE).registered().is_some());
    let state = para.save();
    (memory, state)
}

/// Every kind of stub, with two ports.
fn stubs() -> impl Iterator<Item = Stub> {
    let ports = [0x10, 0xf5].map(|port| Stub::Pio(PioPort::new(port).unwrap()));
    STUBS.into_iter().chain(ports)
}

#[test]
fn h6_a_guest_is_patched_anew_for_another_host() {
    for from in stubs() {
        for to in stubs().filter(|to| to.ret_offset() == from.ret_offset()) {
            let (memory, state) = saved(from);
            let before = image(&memory);
            let mut para = ParaMsr::new(&memory, to);
            let site = match from == to {
                true => RestoredSite::Unchanged,
                false => RestoredSite::Repatched { from },
            };
            let registration = REGISTRATION;
            assert_eq!(
                para.restore(&state),
                Ok(Restored::Registered { registration, site })
            );
            assert_eq!(para.registration(), Some(REGISTRATION));
            assert_eq!(bytes(&memory, SITE), to.bytes());
            let site = SITE..SITE + 4;
            assert!(
                changed(&before, &image(&memory))
                    .iter()
                    .all(|gpa| site.contains(gpa))
            );
            let again = state.with_stub(Some(to));
            assert_eq!(para.save(), again, "and it can be saved again");
        }
    }
}

#[test]
fn h6_a_stub_of_the_other_kind_is_an_error_and_changes_nothing() {
    for from in stubs() {
        for to in stubs().filter(|to| to.ret_offset() != from.ret_offset()) {
            let (memory, state) = saved(from);
            let before = image(&memory);
            let gpa = SITE;
            let refused = Err(RestoreError::OtherKind { gpa, from, to });
            // Also if the guest's stub is no longer known.
            for stub in [state.stub, None] {
                let state = state.with_stub(stub);
                let mut para = ParaMsr::new(&memory, to).with_prelude(|| panic!("nobody calls"));
                assert_eq!(state.stub_in_memory(&memory), Ok(Some(from)));
                assert_eq!(para.check(&state), refused.map(|_: Restored| ()));
                assert_eq!(para.restore(&state), refused);
                assert_eq!(para.registration(), None);
                assert_eq!(image(&memory), before);
            }
        }
    }
    let (memory, state) = saved(Stub::Vmx);
    let error = ParaMsr::new(&memory, PIO).restore(&state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest was saved with the hypercall stub \"vmcall; ret\" at guest address 0x2010, which \"out 0xf5, al; \
         ret; int3\" can't replace while the guest may be running it; restore on a host with the same kind of stub"
    );
}

/// Otherwise a guest could prevent its own migration.
#[test]
fn h6_a_stub_of_the_other_kind_that_the_guest_wrote_is_its_own() {
    for given in stubs() {
        for written in stubs().filter(|stub| stub.ret_offset() != given.ret_offset()) {
            let (memory, state) = saved(given);
            assert_eq!(state.stub, Some(given));
            memory
                .write_slice(&written.bytes(), GuestAddress(SITE))
                .unwrap();
            assert_eq!(state.stub_in_memory(&memory), Ok(None));
            let mut para = ParaMsr::new(&memory, given);
            assert_eq!(para.check(&state), Ok(()));
            let bytes = written.bytes();
            let site = RestoredSite::Foreign { bytes };
            let registration = REGISTRATION;
            assert_eq!(
                para.restore(&state),
                Ok(Restored::Registered { registration, site })
            );
            assert_eq!(para.save(), state);
        }
    }
}

#[test]
fn h6_what_does_not_hold_has_no_stub() {
    let (memory, good) = saved(Stub::Vmx);
    assert_eq!(good.stub_in_memory(&memory), Ok(Some(Stub::Vmx)));
    for lost in [state(PAGE + 8, SITE), state(RAM, SITE), state(PAGE, 0x2ffd)] {
        assert_eq!(lost.stub_in_memory(&memory), Ok(None));
        assert_eq!(ParaMsr::new(&memory, PIO).check(&lost), Ok(()));
    }
    assert_eq!(ParaMsrState::default().stub_in_memory(&memory), Ok(None));
    let mut version = good;
    version.version = 2;
    let found = Err(RestoreError::Version { found: 2 });
    assert_eq!(version.stub_in_memory(&memory), found);
}

#[test]
fn h6_vcpus_that_share_a_site_are_all_restored() {
    let (memory, state) = saved(Stub::Vmx);
    let mut vcpus = [0; 3].map(|_| ParaMsr::new(&memory, Stub::Svm));
    let sites = vcpus.each_mut().map(|para| match para.restore(&state) {
        Ok(Restored::Registered { site, .. }) => site,
        other => panic!("{other:?}"),
    });
    let from = Stub::Vmx;
    assert_eq!(
        sites,
        [
            RestoredSite::Repatched { from },
            RestoredSite::Unchanged,
            RestoredSite::Unchanged
        ]
    );
}

#[test]
fn h6_an_unregistered_vcpu_stays_so() {
    let memory = ready();
    let before = image(&memory);
    let state = ParaMsr::new(&memory, PIO).save();
    assert_eq!(state, ParaMsrState::default());
    // Also for a vCPU that was registered before.
    let mut para = ParaMsr::new(&memory, PIO);
    assert_eq!(para.restore(&state), Ok(Restored::Unregistered));
    assert_eq!(image(&memory), before);
    assert!(para.wrmsr(PAGE).registered().is_some());
    assert_eq!(para.restore(&state), Ok(Restored::Unregistered));
    assert_eq!(para.registration(), None);
}

#[test]
fn h6_bytes_that_the_guest_put_there_since_are_its_own() {
    for foreign in [
        [0x0f, 0x01, 0xc1, 0x90],
        [0; 4],
        [0xe6, 0x20, 0xc3, 0xcc],
        [0xb8, 0, 0, 0],
    ] {
        let (memory, state) = saved(Stub::Vmx);
        memory.write_slice(&foreign, GuestAddress(SITE)).unwrap();
        let before = image(&memory);
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        let restored = para.restore(&state).unwrap();
        let site = RestoredSite::Foreign { bytes: foreign };
        assert_eq!(
            restored,
            Restored::Registered {
                registration: REGISTRATION,
                site
            }
        );
        assert_eq!(image(&memory), before);
        assert_eq!(para.registration(), Some(REGISTRATION));
        assert!(restored.to_string().ends_with("left alone"), "{restored}");
    }
}

#[test]
fn h6_a_registration_without_its_memory_is_dropped() {
    let crosses = SiteError::CrossesPage { gpa: 0x2ffd };
    let overlaps = SiteError::Overlaps {
        gpa: PAGE + 23,
        start: PAGE,
        end: PAGE + 24,
    };
    let cases = [
        (state(PAGE + 8, SITE), Lost::PageMisaligned),
        (state(u64::MAX, SITE), Lost::PageMisaligned),
        (state(RAM, SITE), Lost::PageNotRam),
        (state(!0xfff, SITE), Lost::PageNotRam),
        (state(PAGE, RAM), Lost::Site(SiteError::NotRam { gpa: RAM })),
        (
            state(PAGE, u64::MAX),
            Lost::Site(SiteError::CrossesPage { gpa: u64::MAX }),
        ),
        (state(PAGE, 0x2ffd), Lost::Site(crosses)),
        (state(PAGE, PAGE + 23), Lost::Site(overlaps)),
    ];
    for (state, reason) in cases {
        let memory = ready();
        // A stub is at every site, so the restore fails for another reason.
        memory
            .write_slice(&Stub::Vmx.bytes(), GuestAddress(0x2ffd))
            .unwrap();
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert!(para.wrmsr(PAGE).registered().is_some());
        let before = image(&memory);
        let restored = para.restore(&state).unwrap();
        let registration = state.registration.unwrap();
        assert_eq!(
            restored,
            Restored::Dropped {
                registration,
                reason
            }
        );
        assert_eq!(para.registration(), None, "neither it nor the one before");
        assert_eq!(image(&memory), before);
        assert!(
            restored
                .to_string()
                .starts_with("para registration dropped: page 0x")
        );
    }
}

#[test]
fn h6_memory_that_became_read_only_drops_it() {
    for limit in [PAGE..PAGE + 0x1000, SITE..SITE + 4] {
        let (ram, state) = saved(Stub::Vmx);
        let before = image(&ram);
        let memory = Guarded {
            ram,
            limits: vec![(limit, Permissions::Read)],
        };
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert!(matches!(para.restore(&state), Ok(Restored::Dropped { .. })));
        assert_eq!(para.registration(), None);
        assert_eq!(image(&memory.ram), before);
    }
}

#[test]
fn h6_a_state_from_the_future_is_an_error_and_changes_nothing() {
    let (memory, saved) = saved(Stub::Vmx);
    for found in [0, 2, u32::MAX] {
        let mut para = ParaMsr::new(&memory, Stub::Vmx);
        assert!(para.wrmsr(PAGE).registered().is_some());
        let before = image(&memory);
        let mut later = saved;
        later.version = found;
        let error = para.restore(&later).unwrap_err();
        assert_eq!(error, RestoreError::Version { found });
        assert_eq!(para.registration(), Some(REGISTRATION));
        assert_eq!(image(&memory), before);
    }
    assert_eq!(
        RestoreError::Version { found: 2 }.to_string(),
        "the saved para state has version 2 and only version 1 is known, \
         restore it with the release that saved it"
    );
}

#[test]
fn r10_a_restored_registration_outlives_a_refusal() {
    let (memory, state) = saved(Stub::Vmx);
    let mut para = ParaMsr::new(&memory, Stub::Svm);
    assert!(para.restore(&state).is_ok());
    put(
        &memory,
        PAGE,
        &ParaStatePayload {
            guest_version: 2,
            ..ParaStatePayload::new(0x5000)
        },
    );
    let _ = refusal(para.wrmsr(PAGE));
    assert_eq!(para.registration(), Some(REGISTRATION));
    assert_eq!(bytes(&memory, SITE), Stub::Svm.bytes());
}

#[cfg(feature = "serde")]
#[test]
fn h6_the_state_is_json_that_a_later_version_can_extend() {
    let (_, state) = saved(Stub::Vmx);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(
        json,
        r#"{"version":1,"registration":{"para_state_gpa":4096,"hypercall_gpa":8208},"stub":"vmx"}"#
    );
    assert_eq!(serde_json::from_str::<ParaMsrState>(&json).unwrap(), state);
    let without: ParaMsrState =
        serde_json::from_str(&json.replace(r#","stub":"vmx""#, "")).unwrap();
    assert_eq!(without, state.with_stub(None));
    let later = r#"{"version":2,"registration":null,"cr3_cache_gpa":4096}"#;
    let later: ParaMsrState = serde_json::from_str(later).unwrap();
    let memory = ready();
    let found = RestoreError::Version { found: 2 };
    assert_eq!(ParaMsr::new(&memory, PIO).restore(&later), Err(found));
}
