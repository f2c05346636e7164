// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The calls that every machine answers: KVM's numbers and those of this VMM.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use para_abi::kvm::{
    KVM_HC_CLOCK_PAIRING, KVM_HC_KICK_CPU, KVM_HC_MAP_GPA_RANGE, KVM_HC_SCHED_YIELD,
    KVM_HC_SEND_IPI, KVM_HC_VAPIC_POLL_IRQ,
};
use para_abi::vmm::{
    VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP, VMM_HC_SNAPSHOT,
};
use para_abi::{Call, KvmErrno};
use vm_memory::GuestMemoryBackend;

use super::clock::ClockCalls;
use super::console::ConsoleCalls;
use super::interrupts::InterruptCalls;
use super::mapping::MappingCalls;
use super::{Answer, Caller, Clock, ConsoleSink, Handler, Hypercalls, SelfSnapshots, vmm};
use crate::irq::MsiSender;
use crate::outcome::OutcomeLatch;

/// What a machine's handlers use.
pub struct Services<M> {
    /// The guest's memory.
    pub memory: M,
    /// Its vCPUs; their APIC IDs are 0 to `cpus - 1`.
    pub cpus: u8,
    /// Sends interrupts to their local APICs.
    pub msi: MsiSender,
    /// The host's clock and the guest's.
    pub clock: Clock,
    /// The serial console, if there is one.
    pub console: Option<ConsoleSink>,
    /// Takes the outcome when the guest ends the run.
    pub outcome: OutcomeLatch,
    /// Takes the guest's requests for snapshots of itself, if it may ask.
    pub snapshots: Option<Arc<SelfSnapshots>>,
}

impl<M: fmt::Debug> fmt::Debug for Services<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("memory", &self.memory)
            .field("cpus", &self.cpus)
            .field("console", &self.console.is_some())
            .finish_non_exhaustive()
    }
}

impl<M: GuestMemoryBackend + Clone + Send + Sync + 'static> Services<M> {
    /// The calls of a machine that answers only these numbers.
    pub fn build(self) -> Arc<Hypercalls> {
        let (cpus, snapshots) = (self.cpus, self.snapshots.clone());
        Hypercalls::with_snapshots(self.handler(), cpus, snapshots)
    }

    /// The handler of KVM's numbers and ours, for a handler that answers more numbers and delegates these.
    pub fn handler(self) -> impl Handler + 'static {
        MachineCalls {
            interrupts: InterruptCalls {
                msi: self.msi,
                cpus: self.cpus,
            },
            clock: ClockCalls {
                memory: self.memory.clone(),
                clock: self.clock,
            },
            mapping: MappingCalls {
                memory: self.memory.clone(),
            },
            console: self.console.map(|sink| ConsoleCalls {
                memory: self.memory,
                sink,
            }),
            outcome: self.outcome,
            snapshots: self.snapshots,
        }
    }
}

/// A machine's handlers.
struct MachineCalls<M> {
    interrupts: InterruptCalls,
    clock: ClockCalls<M>,
    mapping: MappingCalls<M>,
    console: Option<ConsoleCalls<M>>,
    outcome: OutcomeLatch,
    snapshots: Option<Arc<SelfSnapshots>>,
}

/// The numbers that [`MachineCalls`] answers, sorted, with their names in messages.
pub(super) const NUMBERS: [(u64, &str); 11] = [
    (KVM_HC_VAPIC_POLL_IRQ, "VAPIC_POLL_IRQ"),
    (KVM_HC_KICK_CPU, "KICK_CPU"),
    (KVM_HC_CLOCK_PAIRING, "CLOCK_PAIRING"),
    (KVM_HC_SEND_IPI, "SEND_IPI"),
    (KVM_HC_SCHED_YIELD, "SCHED_YIELD"),
    (KVM_HC_MAP_GPA_RANGE, "MAP_GPA_RANGE"),
    (VMM_HC_NOP, "NOP"),
    (VMM_HC_BOOT_MARK, "BOOT_MARK"),
    (VMM_HC_EXIT, "EXIT"),
    (VMM_HC_CONSOLE_WRITE, "CONSOLE_WRITE"),
    (VMM_HC_SNAPSHOT, "SNAPSHOT"),
];

impl<M: GuestMemoryBackend + Send + Sync> Handler for MachineCalls<M> {
    fn call(&self, caller: &Caller, call: &Call) -> Answer {
        let args = &call.args;
        match (call.nr, &self.console) {
            (KVM_HC_VAPIC_POLL_IRQ | VMM_HC_NOP, _) => Ok(0),
            (KVM_HC_KICK_CPU, _) => self.interrupts.kick(args),
            (KVM_HC_CLOCK_PAIRING, _) => self.clock.pairing(caller, args),
            (KVM_HC_SEND_IPI, _) => self.interrupts.send_ipi(caller, args),
            (KVM_HC_SCHED_YIELD, _) => self.interrupts.sched_yield(),
            (KVM_HC_MAP_GPA_RANGE, _) => self.mapping.map(args),
            (VMM_HC_BOOT_MARK, _) => vmm::boot_mark(caller, args),
            (VMM_HC_EXIT, _) => vmm::exit(&self.outcome, args),
            (VMM_HC_CONSOLE_WRITE, Some(console)) => console.write(args),
            (VMM_HC_SNAPSHOT, _) => match &self.snapshots {
                Some(snapshots) => snapshots.ask(caller, args, Instant::now()),
                None => Err(KvmErrno::KVM_ENOSYS),
            },
            _ => Err(KvmErrno::KVM_ENOSYS),
        }
    }
}
