// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets of vCPUs and the pure state machine agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use vcpu_loop::script::{ScriptState, ScriptedVcpu};
use vcpu_loop::{Error, Incident, Next, Request, Response, State, VcpuIo, VcpuSet, occur, step};

use crate::support::{SOON, expect_paused, out, set};

/// An exit storm whose device asks for a pause when the test wants one.
struct Storm(Arc<AtomicBool>);

impl VcpuIo for Storm {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        match self.0.swap(false, Ordering::Relaxed) {
            true => Next::Pause,
            false => Next::Continue,
        }
    }
}

/// Applies a request to all vCPUs, or to one, in the model. Returns whether all of them grant it.
fn model(states: &mut [State], request: Request, one: Option<usize>) -> bool {
    let mut granted = true;
    for (at, state) in states.iter_mut().enumerate() {
        if one.is_none_or(|one| one == at) {
            let (next, response) = step(*state, request);
            *state = next;
            granted &= response == Response::Done;
        }
    }
    granted
}

/// Makes a request by the set's methods. A request that has no method for one vCPU goes to all, and vice versa.
fn ask(
    vcpus: &VcpuSet<ScriptState>,
    request: Request,
    one: &mut Option<usize>,
) -> Result<(), Error> {
    let states = vec![ScriptState::default(); vcpus.ids().count()];
    *one = match request {
        Request::Save | Request::Restore => None,
        Request::Resume | Request::Pause => *one,
        _ => Some(one.unwrap_or(0)),
    };
    let id = one.unwrap_or(0) as u32;
    match (request, one.is_some()) {
        (Request::Resume, false) => vcpus.resume(SOON),
        (Request::Resume, true) => vcpus.resume_vcpu(id, SOON),
        (Request::Pause, false) => vcpus.pause(SOON),
        (Request::Pause, true) => vcpus.pause_vcpu(id, SOON),
        (Request::Acknowledge, _) => vcpus.acknowledge(id, SOON),
        (Request::Save, _) => vcpus.save(SOON).map(drop),
        (Request::Restore, _) => vcpus.restore(states, SOON),
        (Request::Wake, _) => vcpus.wake(id, SOON),
        (Request::Access, _) => vcpus.with_vcpu(id, |_: &mut ScriptedVcpu| (), SOON),
        (Request::Call, _) => vcpus.call(id, |_: &mut ScriptedVcpu| (), SOON),
        (Request::Dump, _) => vcpus.dump(id, SOON).map(drop),
        (other, _) => panic!("no request for {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Two threads on exit storms behave like the pure state machine, for any sequence of requests to one or both, and
    /// of pauses by their devices.
    #[test]
    fn threads_agree_with_the_state_machine(
        steps in prop::collection::vec((0..13usize, prop::option::of(0..2usize)), 1..32),
    ) {
        let (mut vcpus, events) = set();
        let pauses: [Arc<AtomicBool>; 2] = Default::default();
        for (id, pause) in (0..).zip(&pauses) {
            let storm = ScriptedVcpu::endless(out(1));
            vcpus.spawn(id, storm, Storm(Arc::clone(pause))).unwrap();
        }
        let mut states = [State::Paused; 2];
        for (number, mut one) in steps {
            let requests = [
                Request::Resume, Request::Pause, Request::Acknowledge, Request::Save, Request::Restore,
                Request::Wake, Request::Access, Request::Call, Request::Dump,
            ];
            let Some(request) = requests.get(number).copied() else {
                // A device asks for a pause, which only a running vCPU notices.
                let at = one.unwrap_or(0);
                if states[at] == State::Running {
                    pauses[at].store(true, Ordering::Relaxed);
                    expect_paused(&events);
                }
                states[at] = occur(states[at], Incident::SelfPause);
                continue;
            };
            let before = states;
            let asked = ask(&vcpus, request, &mut one);
            let granted = model(&mut states, request, one);
            prop_assert_eq!(asked.is_ok(), granted, "{} to {:?} while {:?}: {:?}", request, one, before, asked);
        }
        prop_assert!(vcpus.stop(SOON).is_ok());
        prop_assert!(events.try_recv().is_none());
    }
}
