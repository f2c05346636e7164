// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares random guests with a naive model of the whole API, step by step and byte by byte.

use hypercall_patch::Stub;
use para_abi::ParaStatePayload;
use para_msr::para::{FaultReason, ParaRegistration, RestoreError, Restored, RestoredSite};
use para_msr::{ParaMsr, ParaMsrState, Registration};
use proptest::prelude::*;
use proptest::sample::select;
use vm_memory::{Bytes, GuestAddress, Permissions};

use crate::support::*;

/// The guest's address space: RAM in two regions that touch, a hole, ROM, and RAM of less than a page.
const REGIONS: [(u64, usize); 3] = [(0, 0x2000), (0x2000, 0x2000), (0x5000, 0x1800)];
const ROM: std::ops::Range<u64> = 0x3000..0x4000;
const END: u64 = 0x6800;
const VCPUS: usize = 2;

/// The API in its simplest form, on an array of bytes.
struct Model {
    bytes: Vec<u8>,
    registered: [Option<(u64, u64)>; VCPUS],
    stub: [u8; 4],
}

#[derive(Debug, PartialEq, Eq)]
enum Came {
    Registered { written: bool },
    NewerGuest,
    BadSite,
    Misaligned,
    NotRam,
}

#[derive(Debug, PartialEq, Eq)]
enum Back {
    Unregistered,
    Registered { left_alone: bool },
    Dropped,
    OtherKind,
}

impl Model {
    fn readable(gpa: u64) -> bool {
        gpa < 0x4000 || (0x5000..END).contains(&gpa)
    }

    fn writable(gpa: u64) -> bool {
        Self::readable(gpa) && !ROM.contains(&gpa)
    }

    fn all_writable(gpa: u64, count: u64) -> bool {
        (0..count).all(|at| gpa.checked_add(at).is_some_and(Self::writable))
    }

    fn u32_at(&self, gpa: u64) -> u32 {
        (0..4).rev().fold(0, |value, at| {
            value << 8 | u32::from(self.bytes[gpa as usize + at])
        })
    }

    fn set(&mut self, gpa: u64, value: u32) {
        for at in 0..4 {
            self.bytes[gpa as usize + at] = (value >> (8 * at)) as u8;
        }
    }

    fn site_is_good(page: u64, site: u64) -> bool {
        let bytes: Vec<u128> = (0..4).map(|at| u128::from(site) + at).collect();
        bytes.iter().all(|byte| {
            byte / 4096 == bytes[0] / 4096
                && u64::try_from(*byte).is_ok_and(Self::writable)
                && !(u128::from(page)..u128::from(page) + 24).contains(byte)
        })
    }

    fn patch(&mut self, site: u64) -> bool {
        let at = site as usize..site as usize + 4;
        let changes = self.bytes[at.clone()] != self.stub;
        self.bytes[at].copy_from_slice(&self.stub);
        changes
    }

    fn wrmsr(&mut self, vcpu: usize, value: u64) -> Came {
        if !value.is_multiple_of(4096) {
            return Came::Misaligned;
        }
        if !Self::all_writable(value, 24) {
            return Came::NotRam;
        }
        let (low, high) = (self.u32_at(value + 16), self.u32_at(value + 20));
        let (version, site) = (self.u32_at(value), u64::from(low) | u64::from(high) << 32);
        self.set(value + 4, 1);
        let came = if version > 1 {
            Came::NewerGuest
        } else if !Self::site_is_good(value, site) {
            Came::BadSite
        } else {
            self.registered[vcpu] = Some((value, site));
            Came::Registered {
                written: self.patch(site),
            }
        };
        let ret = if matches!(came, Came::Registered { .. }) {
            0
        } else {
            u32::MAX
        };
        self.set(value + 12, ret);
        came
    }

    /// `given` is the stub that the guest got, if known.
    fn restore(&mut self, vcpu: usize, saved: Option<(u64, u64)>, given: Option<[u8; 4]>) -> Back {
        let Some((page, site)) = saved else {
            self.registered[vcpu] = None;
            return Back::Unregistered;
        };
        if page % 4096 != 0 || !Self::all_writable(page, 24) || !Self::site_is_good(page, site) {
            self.registered[vcpu] = None;
            return Back::Dropped;
        }
        let bytes = &self.bytes[site as usize..site as usize + 4];
        // Only native stubs start with 0f.
        let is_native = |bytes: &[u8]| bytes[0] == 0x0f;
        let is_other = given.is_some_and(|given| is_native(&given) != is_native(bytes));
        let left_alone = Stub::identify(bytes).is_none() || is_other;
        if !left_alone && is_native(bytes) != is_native(&self.stub) {
            return Back::OtherKind;
        }
        self.registered[vcpu] = saved;
        if !left_alone {
            self.patch(site);
        }
        Back::Registered { left_alone }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The guest stores bytes anywhere in RAM.
    Store {
        gpa: u64,
        bytes: Vec<u8>,
    },
    /// The guest fills a page and registers it.
    Register {
        vcpu: usize,
        page: u64,
        payload: [u8; 24],
    },
    /// The guest executes WRMSR with any address.
    Wrmsr {
        vcpu: usize,
        value: u64,
    },
    Reset {
        vcpu: usize,
    },
    /// The VM moves to a host with this stub.
    Move {
        stub: Stub,
    },
    /// A state that may be forged is restored.
    Forge {
        vcpu: usize,
        page: u64,
        site: u64,
        given: Option<Stub>,
    },
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => select(vec![0, 0x1000, 0x2000, 0x5000, 0x6000]),
        2 => select(vec![0x3000, 0x4000, 0x7000, 1 << 32, !0xfff]),
        1 => 0..END,
        1 => any::<u64>(),
    ]
}

fn site() -> impl Strategy<Value = u64> {
    let near = (
        select(vec![
            0u64, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, END,
        ]),
        -32i64..32,
    );
    prop_oneof![
        4 => (0..END / 4).prop_map(|at| at * 4),
        4 => near.prop_map(|(edge, by)| edge.wrapping_add_signed(by)),
        2 => 0..END,
        1 => any::<u64>(),
    ]
}

fn payload() -> impl Strategy<Value = [u8; 24]> {
    let version = prop_oneof![6 => 0u32..3, 1 => any::<u32>()];
    (version, site(), any::<[u32; 3]>()).prop_map(|(guest_version, hypercall_gpa, noise)| {
        let [host_version, size, ret] = noise;
        ParaStatePayload {
            guest_version,
            host_version,
            size,
            ret,
            hypercall_gpa,
        }
        .to_bytes()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = 0..VCPUS;
    let stubs = STUBS.map(|stub| stub.bytes().to_vec()).to_vec();
    let bytes = prop_oneof![prop::collection::vec(any::<u8>(), 1..32), select(stubs)];
    prop_oneof![
        2 => (site(), bytes).prop_map(|(gpa, bytes)| Step::Store { gpa, bytes }),
        8 => (vcpu.clone(), page(), payload())
            .prop_map(|(vcpu, page, payload)| Step::Register { vcpu, page, payload }),
        2 => (vcpu.clone(), page()).prop_map(|(vcpu, value)| Step::Wrmsr { vcpu, value }),
        1 => vcpu.clone().prop_map(|vcpu| Step::Reset { vcpu }),
        2 => select(STUBS.to_vec()).prop_map(|stub| Step::Move { stub }),
        1 => (vcpu, page(), site(), proptest::option::of(select(STUBS.to_vec())))
            .prop_map(|(vcpu, page, site, given)| Step::Forge { vcpu, page, site, given }),
    ]
}

struct Both {
    memory: Guarded,
    model: Model,
}

impl Both {
    fn new(stub: Stub) -> Self {
        let ram = memory(&REGIONS);
        let mut bytes = vec![0; END as usize];
        for (start, region) in image(&ram) {
            bytes[start as usize..start as usize + region.len()].copy_from_slice(&region);
        }
        let model = Model {
            bytes,
            registered: [None; VCPUS],
            stub: stub.bytes(),
        };
        let limits = vec![(ROM, Permissions::Read)];
        Both {
            memory: Guarded { ram, limits },
            model,
        }
    }

    fn store(&mut self, gpa: u64, bytes: &[u8]) {
        if Model::all_writable(gpa, bytes.len() as u64) {
            self.memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
            self.model.bytes[gpa as usize..gpa as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn check(&self, vcpus: &[ParaMsr<&Guarded>]) {
        for (start, region) in image(&self.memory.ram) {
            let model = &self.model.bytes[start as usize..start as usize + region.len()];
            if region != model {
                let differ = (0..region.len()).find(|at| region[*at] != model[*at]);
                panic!(
                    "memory differs at {:#x?}",
                    differ.map(|at| start + at as u64)
                );
            }
        }
        for (vcpu, model) in vcpus.iter().zip(self.model.registered) {
            let is = vcpu
                .registration()
                .map(|is| (is.para_state_gpa, is.hypercall_gpa));
            assert_eq!(is, model);
        }
    }
}

fn came(event: Registration) -> Came {
    match event {
        Registration::Registered(event) => Came::Registered {
            written: event.written == hypercall_patch::memory::Written::Changed,
        },
        Registration::Refused(event) => match event.reason {
            para_msr::para::Refusal::NewerGuest => Came::NewerGuest,
            _ => Came::BadSite,
        },
        Registration::Fault(event) => match event.reason {
            FaultReason::Misaligned => Came::Misaligned,
            _ => Came::NotRam,
        },
        other => panic!("{other}"),
    }
}

/// Serializes and deserializes a state, with feature `serde`.
fn carried(state: ParaMsrState) -> ParaMsrState {
    #[cfg(feature = "serde")]
    let state = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    state
}

fn back(outcome: Result<Restored, RestoreError>) -> Back {
    match outcome {
        Ok(Restored::Unregistered) => Back::Unregistered,
        Ok(Restored::Registered { site, .. }) => Back::Registered {
            left_alone: matches!(site, RestoredSite::Foreign { .. }),
        },
        Ok(Restored::Dropped { .. }) => Back::Dropped,
        Err(RestoreError::OtherKind { .. }) => Back::OtherKind,
        other => panic!("{other:?}"),
    }
}

/// vCPUs that move to another host keep their registration, unless the host must refuse it.
fn moved<'m>(
    vcpus: Vec<ParaMsr<&'m Guarded>>,
    memory: &'m Guarded,
    model: &mut Model,
    stub: Stub,
) -> Vec<ParaMsr<&'m Guarded>> {
    let states = vcpus.iter().map(|vcpu| carried(vcpu.save()));
    let given = std::mem::replace(&mut model.stub, stub.bytes());
    let restore = |(vcpu, state): (usize, ParaMsrState)| {
        let mut para = ParaMsr::new(memory, stub);
        let was = model.registered[vcpu].take();
        let back = back(para.restore(&state));
        // The memory moved along, so the registration can't be dropped.
        assert_ne!(back, Back::Dropped);
        assert_eq!(back, model.restore(vcpu, was, Some(given)));
        para
    };
    states.enumerate().map(restore).collect()
}

fn run(stub: Stub, steps: Vec<Step>) {
    let mut both = Both::new(stub);
    let memory = both.memory.clone();
    let mut vcpus: Vec<_> = (0..VCPUS).map(|_| ParaMsr::new(&memory, stub)).collect();
    for step in steps {
        match step {
            Step::Store { gpa, bytes } => both.store(gpa, &bytes),
            Step::Register {
                vcpu,
                page,
                payload,
            } => {
                both.store(page, &payload);
                assert_eq!(came(vcpus[vcpu].wrmsr(page)), both.model.wrmsr(vcpu, page));
            }
            Step::Wrmsr { vcpu, value } => {
                assert_eq!(
                    came(vcpus[vcpu].wrmsr(value)),
                    both.model.wrmsr(vcpu, value)
                );
            }
            Step::Reset { vcpu } => {
                vcpus[vcpu].reset();
                both.model.registered[vcpu] = None;
            }
            Step::Move { stub } => vcpus = moved(vcpus, &memory, &mut both.model, stub),
            Step::Forge {
                vcpu,
                page,
                site,
                given,
            } => {
                let registration = ParaRegistration::new(page, site);
                let state = ParaMsrState::registered(registration).with_stub(given);
                let back = back(vcpus[vcpu].restore(&state));
                let given = given.map(Stub::bytes);
                assert_eq!(back, both.model.restore(vcpu, Some((page, site)), given));
            }
        }
        both.check(&vcpus);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_guest_gets_what_the_model_gives(
        stub in select(STUBS.to_vec()),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        run(stub, steps);
    }

    #[test]
    fn any_page_gets_what_the_model_gives(
        stub in select(STUBS.to_vec()),
        page in page(),
        payload in payload(),
        aliased in any::<bool>(),
        offset in -4i64..28,
    ) {
        let mut payload = payload;
        if aliased {
            payload[16..].copy_from_slice(&page.wrapping_add_signed(offset).to_le_bytes());
        }
        run(stub, vec![Step::Register { vcpu: 0, page, payload }]);
    }
}
