// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Assembles the hypercalls of one machine.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hypercall_patch::{HypercallInsn, Stub};
use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use log::info;
use vcpu_loop::kvm::{KvmVcpu, SyncRegisters, TscOffset};
use vm_memory::GuestMemoryMmap;

use super::{Error, Gate, InstalledMsrs, ParaHandler, Probe, RouteChoice, VcpuMsrs};
use crate::config::{HypercallRoute, SerialSpec, VmSpec};
use crate::console::ConsoleOutput;
use crate::hypercall::calls::{ConsoleSink, Hypercalls, KvmClock, Services};
use crate::irq::MsiSender;
use crate::memory::MappedVm;
use crate::outcome::OutcomeLatch;
use crate::probe::guest::test_hypercall;
use crate::probe::{Cpu, GuestTest};

/// The time limit of the probe's guest. If it ends at all, it takes microseconds. A host too busy for that gives its
/// guests port I/O, which works as well.
const PROBE_DEADLINE: Duration = Duration::from_millis(250);

/// What a machine's vCPUs share for hypercalls.
#[derive(Debug)]
pub struct Para {
    msrs: InstalledMsrs,
    memory: Arc<GuestMemoryMmap>,
    route: Option<Arc<RouteChoice>>,
    gate: Arc<Gate<SyncRegisters>>,
    calls: Arc<Hypercalls>,
}

/// The inputs of a machine's hypercalls.
#[derive(Debug)]
pub struct ParaConfig<'a> {
    /// The machine's description.
    pub spec: &'a VmSpec,
    /// How KVM was set up.
    pub msrs: InstalledMsrs,
    /// The virtual machine and its memory.
    pub mapped: &'a MappedVm,
    /// The guest's CPUID.
    pub cpuid: &'a CpuId,
    /// The vCPUs, before they run.
    pub vcpus: &'a [KvmVcpu],
    /// Sends interrupts to the vCPUs' local APICs.
    pub msi: MsiSender,
    /// COM1's output.
    pub output: Option<ConsoleOutput>,
    /// Takes the outcome when the guest ends the run.
    pub latch: &'a OutcomeLatch,
}

impl Para {
    /// Prepares what a registration needs. A guest that never registers costs a few allocations, and on a sealed
    /// machine the `probe`.
    ///
    /// # Errors
    /// The requested route is not available.
    pub fn new(config: ParaConfig<'_>, probe: &Probe) -> Result<Self, Error> {
        if !config.msrs.para {
            return Ok(Para::without(&config));
        }
        let spec = config.spec;
        let route = RouteChoice::new(spec, config.cpuid, Arc::clone(probe))?;
        if spec.sealed {
            route.ask_early();
        }
        let forward = spec.hypercall == HypercallRoute::Forward;
        // On route vendor, no call reaches the VMM.
        let (registers, calls) = match route.port().is_some() || forward {
            true => match shared_registers(config.vcpus) {
                Err(error) if spec.hypercall == HypercallRoute::Auto => {
                    info!("guests can't register for hypercalls: {error}");
                    return Ok(Para::without(&config));
                }
                registers => (registers?, handlers(&config)),
            },
            false => (Vec::new(), Hypercalls::none()),
        };
        let convention = spec.hypercall_abi.convention();
        let gate = Gate::new(route.port(), convention, registers);
        if forward {
            // A guest's own VMCALL reaches the VMM, registered or not.
            gate.open();
        }
        Ok(Para {
            msrs: config.msrs,
            memory: Arc::new(config.mapped.memory().clone()),
            route: Some(Arc::new(route)),
            gate: Arc::new(gate),
            calls,
        })
    }

    /// The handler of calls that reach the VMM.
    pub fn calls(&self) -> &Arc<Hypercalls> {
        &self.calls
    }

    /// For a machine where no guest can register.
    fn without(config: &ParaConfig<'_>) -> Self {
        Para {
            msrs: config.msrs,
            memory: Arc::new(config.mapped.memory().clone()),
            route: None,
            gate: Arc::new(Gate::shut()),
            calls: Hypercalls::none(),
        }
    }

    /// The MSRs of `vcpu`.
    pub fn msrs(&self, vcpu: u32) -> VcpuMsrs {
        let para = self.route.as_ref().map(|route| {
            let (memory, gate) = (Arc::clone(&self.memory), Arc::clone(&self.gate));
            ParaHandler::new(vcpu, memory, Arc::clone(route), gate)
        });
        VcpuMsrs::new(vcpu, para, self.msrs.report)
    }

    /// Whether calls reach the VMM.
    pub fn gate(&self) -> &Arc<Gate<SyncRegisters>> {
        &self.gate
    }
}

/// The registers of all vCPUs, not yet shared by KVM.
fn shared_registers(vcpus: &[KvmVcpu]) -> Result<Vec<SyncRegisters>, Error> {
    let registers = vcpus.iter().map(KvmVcpu::unshared_registers);
    registers.collect::<Option<_>>().ok_or(Error::NoRegisters)
}

/// The handlers of calls that reach the VMM.
fn handlers(config: &ParaConfig<'_>) -> Arc<Hypercalls> {
    let vm = config.mapped.vm();
    let offsets = config.vcpus.iter().map(|vcpu| TscOffset::of(vcpu.fd()));
    let clock = KvmClock::new(Arc::clone(vm), offsets.collect());
    let services = Services {
        memory: config.mapped.memory().clone(),
        cpus: config.spec.cpus,
        msi: config.msi.clone(),
        clock: Box::new(move |vcpu| clock.pair(vcpu)),
        console: match config.spec.serial {
            SerialSpec::Off => None,
            _ => config
                .output
                .clone()
                .map(|output| Box::new(move |bytes: &[u8]| output.put(bytes)) as ConsoleSink),
        },
        outcome: config.latch.clone(),
        snapshots: config.spec.snapshot_dir.as_ref().map(|_| Arc::default()),
    };
    services.build()
}

/// Tests the vendor's instruction with a guest in a separate virtual machine, and remembers the answer.
pub(crate) fn probe(host: Arc<Kvm>) -> Probe {
    let answer = OnceLock::new();
    Arc::new(move |stub: Stub| match stub.insn() {
        None => Ok(()),
        // All CPUs of a host have the same vendor, so there is one such instruction.
        Some(insn) => answer.get_or_init(|| ask(&host, insn)).clone(),
    })
}

fn ask(host: &Kvm, insn: HypercallInsn) -> Result<(), String> {
    // A KVM that emulates guest code, on a CPU without virtualization, knows no hypercalls. The probe would take its
    // whole time limit to find out.
    if Cpu::here().virtualization.is_none() {
        let why = "this host's KVM runs guests without vmx or svm";
        return Err(why.to_owned());
    }
    match test_hypercall(host, insn, PROBE_DEADLINE) {
        GuestTest::Passed => Ok(()),
        other => Err(format!("a test of this KVM's hypercalls {other}")),
    }
}
