// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds the machine in steps, from its description to vCPUs that are ready to run.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_msr_entry, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use log::info;
use vcpu_loop::bus::BusBuilder;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{VcpuBuilder, VcpuEvents, VcpuSet};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::error::kvm;
use super::vcpu_io::MachineIo;
use super::vcpu_state;
use super::{Clock, Error, Frozen, Host, Images, Machine, MachineState, fit, tsc};
use crate::boot::{self, BootRequest, Clockless, Loaded, Watch};
use crate::config::{HypercallRoute, MsrChange, VmSpec};
use crate::console::ConsoleOutput;
use crate::cpu::{self, CpuPlan};
use crate::devices::{Backends, Connections, DeviceSet};
use crate::hypercall::para::{self, InstalledMsrs, MsrPlan, Para, ParaConfig};
use crate::irq::{Irqs, pic};
use crate::memory::{MappedVm, Served};
use crate::outcome::OutcomeLatch;
use crate::plan::MachinePlan;
use crate::sys::huge_pages::HUGE_PAGE;
use crate::{acpi, layout, memory, mptable};

/// What a machine begins with.
#[derive(Debug)]
enum Begin {
    /// A kernel's first instruction.
    Boot(Loaded),
    /// What a saved machine did.
    Thaw(Box<MachineState>, Clock),
}

impl Begin {
    fn loaded(&self) -> Option<&Loaded> {
        match self {
            Begin::Boot(loaded) => Some(loaded),
            Begin::Thaw(..) => None,
        }
    }

    fn state(&self) -> Option<&MachineState> {
        match self {
            Begin::Boot(_) => None,
            Begin::Thaw(state, _) => Some(state),
        }
    }
}

/// A machine with its kernel in memory, but without devices and vCPUs. Image errors show at this point, before anything
/// outside of this process was changed.
#[derive(Debug)]
pub struct Loading {
    plan: MachinePlan,
    mapped: MappedVm,
    served: Option<Served>,
    msrs: InstalledMsrs,
    begin: Begin,
    backends: Backends,
}

impl Loading {
    /// Creates the VM and its memory, and loads the kernel. `watch` may stop that.
    ///
    /// # Errors
    /// [`Error`] names the step and its reason.
    pub fn start(
        host: &Host,
        spec: &VmSpec,
        images: &Images,
        watch: &dyn Watch,
    ) -> Result<Self, Error> {
        let vm = create_vm(&host.kvm, spec)?;
        // The filter must precede the first vCPU, which would run without it. It comes first of all, because KVM waits
        // for readers of the VM. That takes microseconds if there were none, and milliseconds right after another step
        // that waited.
        let msrs = MsrPlan::new(spec).install(&vm)?;
        let memory = match spec.sealed {
            _ if spec.shares_memory() => memory::allocate_shared(spec.memory, spec.sealed),
            true => memory::allocate_sealed(spec.memory),
            false => memory::allocate(spec.memory),
        };
        let mapped = map(vm, memory?, spec, &images.backends)?;
        // Only if the images fill huge pages. The host clears each one in full. And its khugepaged, which scans every
        // process that wants huge pages, delays the exit of a small guest.
        if images.boot_size() >= HUGE_PAGE as u64 {
            memory::prefer_huge_pages(mapped.memory());
        }
        let plan = MachinePlan::new(spec)?;
        let loaded = load_kernel(spec, &plan, images, mapped.memory(), watch)?;
        Ok(Loading {
            plan,
            mapped,
            served: None,
            msrs,
            begin: Begin::Boot(loaded),
            backends: images.backends.clone(),
        })
    }

    /// Creates the VM with the memory of a saved machine. [`finish`](Self::finish) then checks its state, and goes on
    /// with it.
    ///
    /// # Errors
    /// [`Error`] names the step and its reason.
    pub fn thaw(
        host: &Host,
        spec: &VmSpec,
        frozen: Frozen,
        backends: &Backends,
    ) -> Result<Self, Error> {
        let vm = create_vm(&host.kvm, spec)?;
        let msrs = MsrPlan::new(spec).install(&vm)?;
        let mapped = map(vm, frozen.memory, spec, backends)?;
        Ok(Loading {
            plan: MachinePlan::new(spec)?,
            mapped,
            served: frozen.served,
            msrs,
            begin: Begin::Thaw(frozen.state, frozen.clock),
            backends: backends.clone(),
        })
    }

    /// Why the guest would find no clock on this machine.
    pub fn clockless(&self, spec: &VmSpec) -> Option<Clockless> {
        let version = self.begin.loaded()?.version.as_deref();
        boot::clockless(&spec.cmdline, version)
            .filter(|clockless| !spec.legacy_timer || matches!(clockless, Clockless::Lost(_)))
    }

    /// Adds the devices and vCPUs, and gives them their saved state if there is one.
    ///
    /// # Errors
    /// [`Error`] names the step and its reason. A saved state that does not fit is one.
    pub fn finish(
        self,
        host: &Host,
        spec: &VmSpec,
        output: Option<ConsoleOutput>,
        latch: &OutcomeLatch,
    ) -> Result<(Machine, VcpuEvents), Error> {
        let Loading {
            plan,
            mapped,
            served,
            msrs,
            mut begin,
            backends,
        } = self;
        let vm = mapped.vm();
        create_irqchip(vm, &plan)?;
        let mut bus = BusBuilder::new();
        let irqs = Irqs::new(vm);
        let connections = Connections {
            spec,
            output: output.as_ref(),
            backends: &backends,
            outcome: latch,
            irqs: &irqs,
            memory: mapped.memory(),
        };
        let devices = DeviceSet::build(&plan.devices, &connections, &mut bus)?;
        let bus = bus.build();
        let (sender, events) =
            vcpu_loop::vcpu_events().map_err(|reason| Error::Events { reason })?;
        let mut vcpus = VcpuSet::new(sender);
        let (ready, cpuid) = create_vcpus(&host.kvm, vm, spec, mapped.memory(), &mut begin)?;
        let config = ParaConfig {
            spec,
            msrs,
            mapped: &mapped,
            cpuid: &cpuid,
            vcpus: &ready,
            msi: irqs.msi(),
            output,
            latch,
        };
        let para = Para::new(config, &host.probe)?;
        for (id, vcpu) in (0u32..).zip(ready) {
            let io = MachineIo::new(id, &para, Arc::clone(&bus), latch.clone());
            let vcpu = VcpuBuilder::new(id, vcpu, io)
                .state_hooks(vcpu_state::state_hooks())
                .thread_name(format!("{}{id}", spec.vcpu_thread));
            vcpus.spawn_with(vcpu).map_err(vcpu_loop::Error::from)?;
        }
        let machine = Machine {
            vcpus,
            devices,
            calls: Arc::clone(para.calls()),
            legacy_timer: spec.legacy_timer,
            mapped,
            served,
        };
        if let Begin::Thaw(state, clock) = begin {
            machine.restore_with(*state, clock)?;
        }
        Ok((machine, events))
    }
}

/// Creates the virtual machine, if KVM has what the description wants, and supports that many vCPUs.
fn create_vm(host: &Kvm, spec: &VmSpec) -> Result<VmFd, Error> {
    let mut wanted = spec.kvm_capabilities.iter();
    if let Some(&number) = wanted.find(|number| host.check_extension_raw(u64::from(**number)) <= 0)
    {
        return Err(Error::Capability { number });
    }
    let cpus = spec.cpus;
    // One vCPU always fits, so that case saves the query.
    if cpus > 1 {
        let max = host.get_max_vcpus();
        if max < usize::from(cpus) {
            return Err(Error::TooManyCpus { cpus, max });
        }
    }
    memory::create_vm(host).map_err(kvm("create a virtual machine"))
}

/// Gives the machine its memory, and what it shares.
fn map(
    vm: VmFd,
    memory: GuestMemoryMmap,
    spec: &VmSpec,
    backends: &Backends,
) -> Result<MappedVm, Error> {
    let shared = match &backends.shared {
        None => None,
        Some(shared) => {
            let (start, size) = shared.range(spec.memory);
            info!("{} of shared memory are at {start:#x}", memory::Size(size));
            Some(shared.map(spec.memory)?)
        }
    };
    Ok(MappedVm::with_shared(vm, memory, shared).map_err(memory::Error::from)?)
}

/// Creates the interrupt controllers, before the first vCPU (KVM API 4.24).
fn create_irqchip(vm: &VmFd, plan: &MachinePlan) -> Result<(), Error> {
    // VMX without unrestricted guest runs real mode on these pages. Otherwise they are unused.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm("place its TSS"))?;
    vm.create_irq_chip()
        .map_err(kvm("create its interrupt controllers"))?;
    let mask = |chip| {
        vm.set_irqchip(&chip)
            .map_err(kvm("mask its legacy interrupt controllers"))
    };
    mask(pic::first())?;
    let mut interrupts = plan.devices.iter().filter_map(|device| device.gsi);
    if interrupts.any(|gsi| pic::SECOND_GSIS.contains(&gsi)) {
        mask(pic::second())?;
    }
    if plan.legacy_timer {
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit)
            .map_err(kvm("create its interval timer"))?;
    }
    Ok(())
}

/// Writes the tables of the machine and the kernel to guest memory.
fn load_kernel(
    spec: &VmSpec,
    plan: &MachinePlan,
    images: &Images,
    memory: &GuestMemoryMmap,
    watch: &dyn Watch,
) -> Result<Loaded, Error> {
    let rsdp = acpi::write_tables(memory, plan)?;
    mptable::write(memory, plan)?;
    let cmdline = plan.cmdline(&spec.cmdline);
    let shared = images.backends.shared.as_ref();
    let mut reserved = plan.reserved();
    reserved.extend(shared.map(|shared| shared.range(spec.memory)));
    let request = BootRequest {
        kernel: &images.kernel,
        initrd: images.initrd.as_ref(),
        cmdline: &cmdline,
        protocol: spec.boot_protocol,
        decompress: spec.decompress,
        rsdp: Some(rsdp),
        reserved: &reserved,
    };
    let loaded = boot::load_watched(memory, &request, watch)?;
    info!("{loaded}");
    Ok(loaded)
}

/// Creates the vCPUs with their CPUID, MSRs and local APIC, and the first one with the boot protocol's registers. The
/// others wait in the in-kernel local APIC for INIT and SIPI.
fn create_vcpus(
    host: &Kvm,
    vm: &VmFd,
    spec: &VmSpec,
    memory: &GuestMemoryMmap,
    begin: &mut Begin,
) -> Result<(Vec<KvmVcpu>, CpuId), Error> {
    let supported = host
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("say which CPUID it supports"))?;
    let kvm_host = KvmHost::probe(host).map_err(Error::VcpuSetUp)?;
    if let Some(state) = begin.state() {
        fit::check_msrs(state, kvm_host.msrs())?;
    }
    if begin.loaded().is_some() {
        check_listed(&spec.msrs, kvm_host.msrs())?;
    }
    let msrs = cpu::msrs::boot_msrs();
    let mut cpuid = None;
    let mut vcpus = Vec::with_capacity(usize::from(spec.cpus));
    for id in 0..spec.cpus {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(kvm("create a vCPU"))?;
        let cpuid = match &mut cpuid {
            Some(cpuid) => cpuid,
            None => {
                // The frequency belongs to the VM, but only a vCPU can be asked.
                let plan = CpuPlan {
                    cpus: spec.cpus,
                    features: &spec.cpu_features,
                    nested: spec.nested,
                    tsc_deadline_timer: host.check_extension(Cap::TscDeadlineTimer),
                    tsc_khz: fd.get_tsc_khz().ok(),
                };
                let mut table = cpu::cpuid::build(&supported, &plan)?;
                if spec.hypercall == HypercallRoute::Forward {
                    para::hide_kvm_hypercalls(&mut table);
                }
                if let Begin::Thaw(state, clock) = begin {
                    check_fit(&fd, &table, state)?;
                    *clock = tsc::move_here(state, &fd, *clock);
                }
                cpuid.insert(table)
            }
        };
        // A saved vCPU brings all of it with it.
        if let Some(loaded) = begin.loaded() {
            cpu::cpuid::set_apic_id(cpuid, id);
            fd.set_cpuid2(cpuid).map_err(kvm("give a vCPU its CPUID"))?;
            set_boot_msrs(&fd, &msrs)?;
            change_msrs(&fd, &spec.msrs)?;
            wire_lapic(&fd, spec)?;
            if id == 0 {
                set_boot_registers(&fd, loaded)?;
            }
        }
        let memory = memory.clone();
        let vcpu = KvmVcpu::new(fd, &kvm_host).map_err(Error::VcpuSetUp)?;
        vcpus.push(vcpu.with_memory(move |gpa, buf: &mut [u8]| {
            memory.read(buf, GuestAddress(gpa)).unwrap_or(0)
        }));
    }
    // There is at least one vCPU.
    Ok((vcpus, cpuid.unwrap_or(supported)))
}

/// Checks the CPUs of a saved machine with the CPUID that KVM gives such a machine here. That may be more than `table`,
/// which is almost always enough, so that KVM is not asked.
fn check_fit(fd: &VcpuFd, table: &CpuId, state: &MachineState) -> Result<(), Error> {
    if fit::suffices(state, table.as_slice()) {
        return Ok(());
    }
    fd.set_cpuid2(table).map_err(kvm("give a vCPU its CPUID"))?;
    let here = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
    let here = here.map_err(kvm("read a vCPU's CPUID"))?;
    Ok(fit::check_cpus(state, here.as_slice())?)
}

fn set_boot_msrs(fd: &VcpuFd, msrs: &Msrs) -> Result<(), Error> {
    let written = fd.set_msrs(msrs).map_err(kvm("set a vCPU's MSRs"))?;
    match msrs.as_slice().get(written) {
        None => Ok(()),
        Some(rejected) => Err(Error::Msr {
            index: rejected.index,
        }),
    }
}

/// Checks that KVM lists the MSRs that are to be changed.
fn check_listed(changes: &[MsrChange], listed: &[u32]) -> Result<(), Error> {
    let unlisted = changes
        .iter()
        .find(|change| !listed.contains(&change.index));
    match unlisted {
        Some(MsrChange { index, .. }) => Err(Error::MsrChange {
            index: *index,
            what: "does not list it",
        }),
        None => Ok(()),
    }
}

/// Changes what a vCPU has.
fn change_msrs(fd: &VcpuFd, changes: &[MsrChange]) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let refused = |at: usize, what| match changes.get(at) {
        Some(MsrChange { index, .. }) => Err(Error::MsrChange {
            index: *index,
            what,
        }),
        None => Ok(()),
    };
    let entry = |change: &MsrChange| kvm_msr_entry {
        index: change.index,
        ..Default::default()
    };
    let entries: Vec<_> = changes.iter().map(entry).collect();
    // Fails only beyond KVM_MAX_MSR_ENTRIES, and there are not more.
    let Ok(mut msrs) = Msrs::from_entries(&entries) else {
        return refused(0, "takes no more changes");
    };
    let read = fd.get_msrs(&mut msrs).map_err(kvm("read a vCPU's MSRs"))?;
    refused(read, "can't read it")?;
    for (entry, change) in msrs.as_mut_slice().iter_mut().zip(changes) {
        entry.data = change.apply(entry.data);
    }
    let written = fd.set_msrs(&msrs).map_err(kvm("change a vCPU's MSRs"))?;
    refused(written, "refuses the value")
}

fn wire_lapic(fd: &VcpuFd, spec: &VmSpec) -> Result<(), Error> {
    let mut lapic = fd.get_lapic().map_err(kvm("read a local APIC"))?;
    cpu::lapic::wire(&mut lapic, spec.legacy_timer);
    fd.set_lapic(&lapic).map_err(kvm("wire a local APIC"))
}

fn set_boot_registers(fd: &VcpuFd, loaded: &Loaded) -> Result<(), Error> {
    let mut sregs = fd.get_sregs().map_err(kvm("read a vCPU's registers"))?;
    loaded.edit_sregs(&mut sregs);
    fd.set_sregs(&sregs)
        .map_err(kvm("set a vCPU's registers"))?;
    fd.set_regs(&loaded.regs())
        .map_err(kvm("set a vCPU's registers"))
}
