// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Registrations by the 2007 API, and the expected bytes afterwards.

use super::asm::Asm;
use super::lab::{FAULTS, Lab, MAGIC, PARA, Route, STUB, UNPATCHED};

/// Bytes after the payload, which must not change.
const BEHIND: u32 = 0x5a5a_5a5a;
/// How many bytes of a page are checked.
const PAYLOAD: u32 = 24;

/// The result of a registration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// #GP(0), and memory is unchanged.
    Fault,
    /// `host_version` is 1 and `ret` is -1; nothing else changes.
    Refused,
    /// `host_version` is 1, `ret` is 0, and the stub is patched.
    Registered,
}

/// A registration: the memory contents and the value of WRMSR.
#[derive(Clone, Debug)]
pub struct Registration {
    pub name: &'static str,
    /// The value of WRMSR.
    pub msr: u64,
    /// Where the guest prepares and shows the payload.
    pub page: u64,
    pub version: u32,
    pub size: u32,
    /// `hypercall_gpa`
    pub site: u64,
    /// Where the guest prepares and shows the stub's six bytes and two more.
    pub window: u64,
    pub verdict: Verdict,
}

impl Registration {
    /// A valid one, from which the others differ.
    pub fn new(name: &'static str, verdict: Verdict) -> Self {
        Registration {
            name,
            msr: PARA,
            page: PARA,
            version: 1,
            size: 4096,
            site: STUB,
            window: STUB,
            verdict,
        }
    }

    /// One of the page at an address.
    pub fn of_page(name: &'static str, page: u64, verdict: Verdict) -> Self {
        let new = Self::new(name, verdict);
        Registration {
            msr: page,
            page,
            ..new
        }
    }

    /// One with an MSR value without a page to prepare.
    pub fn of_value(name: &'static str, msr: u64, verdict: Verdict) -> Self {
        let new = Self::new(name, verdict);
        Registration { msr, ..new }
    }

    /// One with a stub in memory, at an offset in its window.
    pub fn of_site(name: &'static str, window: u64, offset: u64, verdict: Verdict) -> Self {
        let site = window + offset;
        Registration {
            window,
            ..Self::of_gpa(name, site, verdict)
        }
    }

    /// One with a `hypercall_gpa` without a stub to prepare.
    pub fn of_gpa(name: &'static str, site: u64, verdict: Verdict) -> Self {
        let new = Self::new(name, verdict);
        Registration { site, ..new }
    }

    pub fn of_version(name: &'static str, version: u32, verdict: Verdict) -> Self {
        let new = Self::new(name, verdict);
        Registration { version, ..new }
    }

    /// The payload and the bytes after it, after the registration.
    fn payload(&self) -> Vec<u8> {
        let (host_version, ret) = match self.verdict {
            Verdict::Fault => (u32::MAX, u32::MAX),
            Verdict::Refused => (1, u32::MAX),
            Verdict::Registered => (1, 0),
        };
        let mut payload = [self.version, host_version, self.size, ret]
            .map(u32::to_le_bytes)
            .concat();
        payload.extend(self.site.to_le_bytes());
        payload.extend(BEHIND.to_le_bytes());
        payload
    }

    /// What the guest shows: faults, the page and the stub.
    fn expected(&self, route: &Route) -> Vec<u8> {
        let mut expected = vec![(self.verdict == Verdict::Fault).into(), 0];
        let mut window = UNPATCHED;
        if self.verdict == Verdict::Registered {
            let at = (self.site - self.window) as usize;
            window[at..at + 4].copy_from_slice(&route.stub);
        }
        expected.extend(self.payload());
        if self.window == self.page + u64::from(PAYLOAD) {
            // The stub is in the bytes after the payload.
            expected.truncate(2 + PAYLOAD as usize);
            expected.extend(&window[..4]);
        }
        expected.extend(window);
        expected
    }

    /// Writes the payload and the stub.
    pub fn prepare(&self, asm: &mut Asm) {
        let words = [self.version, u32::MAX, self.size, u32::MAX];
        let gpa = [self.site as u32, (self.site >> 32) as u32];
        for (at, word) in (self.page..).step_by(4).zip(words.iter().chain(&gpa)) {
            asm.store(at, *word);
        }
        asm.store(self.page + u64::from(PAYLOAD), BEHIND);
        stub(asm, self.window);
    }

    /// Prepares the registration, tries it, and shows the result.
    pub fn walk(&self, lab: &mut Lab, route: &Route) {
        self.prepare(&mut lab.asm);
        lab.clear_faults();
        lab.asm.wrmsr(MAGIC, self.msr);
        self.show(lab, route);
    }

    /// Shows faults, the page and the stub.
    pub fn show(&self, lab: &mut Lab, route: &Route) {
        self.show_as(lab, route, self.name);
    }

    /// The same, with another name.
    pub fn show_as(&self, lab: &mut Lab, route: &Route, name: &str) {
        let pieces = [(FAULTS, 2), (self.page, PAYLOAD + 4), (self.window, 8)];
        lab.show(name, &pieces, self.expected(route));
    }
}

/// Writes an unpatched stub.
pub fn stub(asm: &mut Asm, at: u64) {
    let [low, high] = [0, 4].map(|n| u32::from_le_bytes(UNPATCHED[n..n + 4].try_into().unwrap()));
    asm.store(at, low).store(at + 4, high);
}

/// The stub after a registration: four bytes of the route, the rest unchanged.
pub fn patched(route: &Route) -> [u8; 8] {
    let mut bytes = UNPATCHED;
    bytes[..4].copy_from_slice(&route.stub);
    bytes
}
