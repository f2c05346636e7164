// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share.

use std::time::Duration;

use vcpu_loop::script::{Reply, ScriptedVcpu, Step};
use vcpu_loop::{DebugExit, Flow, SystemEvent, Unclaimed, Vcpu, VcpuId, VcpuIo, dispatch};

/// Only a hang takes this long, even on a slow machine.
pub const SOON: Duration = Duration::from_secs(600);

pub const EVENT: SystemEvent = SystemEvent {
    kind: 1,
    count: 1,
    data: [7; 16],
};

pub const DEBUG: DebugExit = DebugExit {
    exception: 1,
    pc: 0x1000,
    dr6: 0xffff_0ff0,
    dr7: 0x400,
};

/// Runs a script to its end, without threads, and returns the replies, the counters and the last flow.
pub fn play(script: Vec<Step>, io: &mut dyn VcpuIo) -> (Vec<Reply>, Unclaimed, Flow) {
    let mut vcpu = ScriptedVcpu::new(script);
    let replies = vcpu.replies();
    let unclaimed = Unclaimed::default();
    loop {
        // A script must end with a step that leaves this loop: after it, the vCPU spins until kicked.
        let flow = dispatch(vcpu.run().unwrap(), io, VcpuId(0), &unclaimed);
        if flow != Flow::Continue {
            if flow != Flow::Interrupted && !matches!(flow, Flow::Leave(_)) {
                let _ = dispatch(vcpu.complete().unwrap(), io, VcpuId(0), &unclaimed);
            }
            return (replies.get(), unclaimed, flow);
        }
    }
}

pub fn step_then_signal(step: Step) -> Vec<Step> {
    vec![step, Step::Signal]
}
