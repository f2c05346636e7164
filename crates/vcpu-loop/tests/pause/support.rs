// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vcpu_loop::script::{RecordingIo, ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{DebugExit, Next, VcpuEvent, VcpuEvents, VcpuSet, vcpu_events};

/// Only a hang takes this long, even on a slow machine.
pub const SOON: Duration = Duration::from_secs(600);

pub const DEBUG: DebugExit = DebugExit {
    exception: 1,
    pc: 1,
    dr6: 1,
    dr7: 1,
};

pub fn set() -> (VcpuSet<ScriptState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    (VcpuSet::new(sender), events)
}

pub fn expect_paused(events: &VcpuEvents) {
    let event = events.recv_timeout(SOON);
    assert!(matches!(event, Some(VcpuEvent::Paused { .. })), "{event:?}");
}

pub fn wrmsr(index: u32) -> Step {
    Step::Wrmsr { index, data: 1 }
}

pub fn out(port: u16) -> Step {
    let data = vec![0];
    Step::PioOut {
        port,
        size: 1,
        data,
    }
}

/// A device that stays in its handler until the test releases it.
pub fn held(step: Step) -> (ScriptedVcpu, RecordingIo, Receiver<()>, Sender<()>) {
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel();
    let wait_leave = Mutex::new(wait_leave);
    let io = RecordingIo::new(0, move |_| {
        entered.send(()).unwrap();
        let _ = wait_leave.lock().unwrap().recv();
        Next::Continue
    });
    (
        ScriptedVcpu::new([step]),
        io.with_msr(7, 0),
        wait_entered,
        leave,
    )
}

/// Adds a vCPU whose guest does nothing.
pub fn idle(vcpus: &mut VcpuSet<ScriptState>, id: u32) {
    let (vcpu, io) = (ScriptedVcpu::new([]), RecordingIo::unclaimed());
    vcpus.spawn(id, vcpu, io).unwrap();
}
