// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registry of a machine: KVM's numbers and ours.

use std::fmt;
use std::sync::Arc;

use para_abi::kvm::{
    KVM_HC_CLOCK_PAIRING, KVM_HC_KICK_CPU, KVM_HC_MAP_GPA_RANGE, KVM_HC_SCHED_YIELD,
    KVM_HC_SEND_IPI, KVM_HC_VAPIC_POLL_IRQ,
};
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP};
use vm_memory::GuestMemoryBackend;

use super::clock::ClockCalls;
use super::console::ConsoleCalls;
use super::interrupts::InterruptCalls;
use super::mapping::MappingCalls;
use super::{
    Caller, Clock, ConsoleSink, Hypercalls, HypercallsBuilder, Interrupts, NumberTaken, vmm,
};
use crate::outcome::OutcomeLatch;

/// What a machine's handlers work with.
pub struct Services<M> {
    /// The guest's memory.
    pub memory: M,
    /// Its vCPUs; their APIC IDs are 0 to `cpus - 1`.
    pub cpus: u8,
    /// The way to their local APICs.
    pub interrupts: Arc<dyn Interrupts>,
    /// The host's clock and the guest's.
    pub clock: Arc<dyn Clock>,
    /// The serial console, if there is one.
    pub console: Option<Box<dyn ConsoleSink>>,
    /// Where the guest's end of the run is reported.
    pub outcome: OutcomeLatch,
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
    /// The numbers that every machine answers, in a registry that takes more.
    ///
    /// # Errors
    /// None: the numbers are different ones.
    pub fn builder(self) -> Result<HypercallsBuilder, NumberTaken> {
        let mut calls = HypercallsBuilder::new();
        self.insert_kvm(&mut calls)?;
        self.insert_ours(&mut calls)?;
        Ok(calls)
    }

    /// The frozen registry of those numbers alone.
    ///
    /// # Errors
    /// As [`builder`](Self::builder).
    pub fn build(self) -> Result<Arc<Hypercalls>, NumberTaken> {
        let cpus = self.cpus;
        Ok(self.builder()?.build(cpus))
    }

    /// Today's numbers of KVM.
    fn insert_kvm(&self, calls: &mut HypercallsBuilder) -> Result<(), NumberTaken> {
        let interrupts = InterruptCalls {
            interrupts: Arc::clone(&self.interrupts),
            cpus: self.cpus,
        };
        let (kick, ipi, yields) = (interrupts.clone(), interrupts.clone(), interrupts);
        let clock = ClockCalls {
            memory: self.memory.clone(),
            clock: Arc::clone(&self.clock),
        };
        let mapping = MappingCalls {
            memory: self.memory.clone(),
        };
        type Args = [u64; 6];
        calls
            .insert(
                KVM_HC_VAPIC_POLL_IRQ,
                "VAPIC_POLL_IRQ",
                |_: &Caller, _: &Args| vmm::nop(),
            )?
            .insert(KVM_HC_KICK_CPU, "KICK_CPU", move |_: &Caller, a: &Args| {
                kick.kick(a)
            })?
            .insert(
                KVM_HC_CLOCK_PAIRING,
                "CLOCK_PAIRING",
                move |c: &Caller, a: &Args| clock.pairing(c, a),
            )?
            .insert(KVM_HC_SEND_IPI, "SEND_IPI", move |c: &Caller, a: &Args| {
                ipi.send_ipi(c, a)
            })?
            .insert(
                KVM_HC_SCHED_YIELD,
                "SCHED_YIELD",
                move |_: &Caller, _: &Args| yields.sched_yield(),
            )?
            .insert(
                KVM_HC_MAP_GPA_RANGE,
                "MAP_GPA_RANGE",
                move |_: &Caller, a: &Args| mapping.map(a),
            )?;
        Ok(())
    }

    /// The documented range for VMMs in user space.
    fn insert_ours(self, calls: &mut HypercallsBuilder) -> Result<(), NumberTaken> {
        let outcome = self.outcome;
        type Args = [u64; 6];
        calls
            .insert(VMM_HC_NOP, "NOP", |_: &Caller, _: &Args| vmm::nop())?
            .insert(VMM_HC_BOOT_MARK, "BOOT_MARK", vmm::boot_mark)?
            .insert(VMM_HC_EXIT, "EXIT", move |_: &Caller, a: &Args| {
                vmm::exit(&outcome, a)
            })?;
        if let Some(sink) = self.console {
            let console = ConsoleCalls {
                memory: self.memory,
                sink,
            };
            calls.insert(
                VMM_HC_CONSOLE_WRITE,
                "CONSOLE_WRITE",
                move |_: &Caller, a: &Args| console.write(a),
            )?;
        }
        Ok(())
    }
}
