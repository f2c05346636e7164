// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine, built in named steps from its description to vCPUs that wait for the word to run.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use log::info;
use vcpu_loop::bus::BusBuilder;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{VcpuBuilder, VcpuEvents, VcpuSet};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi;
use crate::boot::{self, BootRequest, Clockless, Image, Loaded, Watch};
use crate::console::ConsoleOutput;
use crate::cpu::{self, CpuPlan};
use crate::devices::{self, DeviceSet, IrqLine, RestoreError, pic};
use crate::hypercalls::Hypercalls;
use crate::memory::MappedVm;
use crate::outcome::OutcomeLatch;
use crate::para::{self, InstalledMsrs, MsrPlan, Para, ParaConfig};
use crate::plan::MachinePlan;
use crate::spec::{HypercallRoute, VmSpec};
use crate::sys::huge_pages::HUGE_PAGE;
use crate::vcpu_io::MachineIo;
use crate::vcpu_state::{self, MachineVcpuState};
use crate::vm_state::{self, MachineState, VmState};
use crate::{layout, memory};

/// How long vCPUs may take to obey; a host that is this late has other problems.
const VCPU_DEADLINE: Duration = Duration::from_secs(10);

/// Why a machine can't be built or run. All are failures of the host or of the description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused a step of building the machine.
    #[error("KVM can't {step} ({reason}); {}", hint(reason.errno()))]
    Kvm {
        /// What was asked for.
        step: &'static str,
        /// Its answer.
        reason: kvm_ioctls::Error,
    },
    /// KVM has a lower limit on vCPUs than the machine.
    #[error("this host's KVM runs {max} vCPUs at most, not {cpus}; ask for fewer with --cpus")]
    TooManyCpus {
        /// How many were asked for.
        cpus: u8,
        /// How many KVM takes.
        max: usize,
    },
    /// Guest memory can't be had.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The devices can't be had.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// The vCPUs have nothing to report by.
    #[error("can't wait for what vCPUs report ({reason}); {}", hint(reason.raw_os_error().unwrap_or(0)))]
    Events {
        /// What the host said.
        reason: io::Error,
    },
    /// The ACPI tables can't be written.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// The kernel can't be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The vCPUs can't be what was asked for.
    #[error(transparent)]
    Cpuid(#[from] cpu::Error),
    /// The guest's MSRs and hypercalls can't be as was asked for.
    #[error(transparent)]
    Para(#[from] para::Error),
    /// KVM rejects one of the MSRs that a vCPU starts with.
    #[error("KVM can't set MSR {index:#x} of a vCPU; use a host kernel whose KVM can")]
    Msr {
        /// Its index.
        index: u32,
    },
    /// A vCPU can't be made ready for its thread.
    #[error(transparent)]
    VcpuSetUp(vcpu_loop::kvm::Error),
    /// A vCPU can't be made or controlled.
    #[error(transparent)]
    Vcpu(#[from] vcpu_loop::Error),
    /// What KVM keeps for the whole machine can't be saved or restored.
    #[error(transparent)]
    VmState(#[from] vm_state::Error),
    /// The devices don't take a saved state.
    #[error(transparent)]
    DeviceState(#[from] RestoreError),
}

/// Names the step that KVM refused.
fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |reason| Error::Kvm { step, reason }
}

/// What helps against a refusal of the host.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE | libc::ENFILE => "raise the limit on open files (ulimit -n)",
        libc::ENOMEM | libc::EAGAIN => "free memory, or raise the limits on memory and threads",
        libc::EBUSY => "another hypervisor may hold the CPU's virtualization, stop it",
        _ => "run `mini-vmm check`, and look at the host's kernel log",
    }
}

/// The files that a machine boots from, opened once: a reset boots from the same files.
#[derive(Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
}

impl Images {
    /// Opens the files that `spec` names, and reads those that are pipes, while `watch` may end it.
    ///
    /// # Errors
    /// [`boot::Error`] names the file that can't be used and why.
    pub fn open(spec: &VmSpec, watch: &dyn Watch) -> Result<Self, boot::Error> {
        let initrd = spec.initrd.as_deref().map(boot::open_initrd);
        let images = Images {
            kernel: boot::open_kernel(&spec.kernel)?,
            initrd: initrd.transpose()?,
        };
        let Images { kernel, initrd } = &images;
        boot::receive(kernel, initrd.as_ref(), spec.memory, watch)?;
        Ok(images)
    }

    /// The bytes of all of them.
    fn size(&self) -> u64 {
        let initrd = self.initrd.as_ref().map_or(0, Image::size);
        self.kernel.size().saturating_add(initrd)
    }
}

/// A machine with its kernel in memory, before it has devices and vCPUs. Whatever is wrong with the
/// images shows here, before anything outside of this process was touched.
#[derive(Debug)]
pub struct Loading {
    plan: MachinePlan,
    mapped: MappedVm,
    msrs: InstalledMsrs,
    loaded: Loaded,
}

impl Loading {
    /// Makes the VM and its memory, and loads the kernel, while `watch` may end it.
    ///
    /// # Errors
    /// [`Error`] names the step and its reason.
    pub fn start(
        host: &Kvm,
        spec: &VmSpec,
        images: &Images,
        watch: &dyn Watch,
    ) -> Result<Self, Error> {
        let vm = create_vm(host, spec.cpus)?;
        // Before the first vCPU, or it would run without; and first of all, because KVM then waits for readers of the
        // VM, which takes microseconds when there were none, and milliseconds right behind a step that waited too.
        let msrs = MsrPlan::new(spec).install(&vm)?;
        let mapped =
            MappedVm::new(vm, memory::allocate(spec.memory)?).map_err(memory::Error::from)?;
        // Only for what fills them: the host clears each as a whole, and its khugepaged, which looks at whoever wants
        // huge pages, holds up the end of a small guest.
        if images.size() >= HUGE_PAGE as u64 {
            memory::prefer_huge_pages(mapped.memory());
        }
        let plan = MachinePlan::new(spec);
        let loaded = load_kernel(spec, &plan, images, mapped.memory(), watch)?;
        Ok(Loading {
            plan,
            mapped,
            msrs,
            loaded,
        })
    }

    /// Who would find no clock on this machine.
    pub fn clockless(&self, spec: &VmSpec) -> Option<Clockless> {
        let version = self.loaded.version.as_deref();
        boot::clockless(&spec.cmdline, version)
            .filter(|clockless| !spec.legacy_timer || matches!(clockless, Clockless::Lost(_)))
    }

    /// Adds devices and vCPUs.
    ///
    /// # Errors
    /// [`Error`] names the step and its reason.
    pub fn finish(
        self,
        host: &Arc<Kvm>,
        spec: &VmSpec,
        output: Option<ConsoleOutput>,
        latch: &OutcomeLatch,
    ) -> Result<(Machine, VcpuEvents), Error> {
        let Loading {
            plan,
            mapped,
            msrs,
            loaded,
        } = self;
        let vm = mapped.vm();
        create_irqchip(vm, &plan)?;
        let mut bus = BusBuilder::new();
        let irq = |gsi| irq_line(Arc::downgrade(vm), gsi);
        let devices = DeviceSet::build(&plan.devices, spec, output.as_ref(), latch, irq, &mut bus)?;
        let bus = bus.build();
        let (sender, events) =
            vcpu_loop::vcpu_events().map_err(|reason| Error::Events { reason })?;
        let mut vcpus = VcpuSet::new(sender);
        let (ready, cpuid) = create_vcpus(host, vm, spec, mapped.memory(), &loaded)?;
        let para = Para::new(ParaConfig {
            host,
            spec,
            msrs,
            mapped: &mapped,
            cpuid: &cpuid,
            vcpus: &ready,
            output,
            latch,
        })?;
        for (id, vcpu) in (0u32..).zip(ready) {
            let io = MachineIo::new(id, &para, Arc::clone(&bus), latch.clone());
            let vcpu = VcpuBuilder::new(id, vcpu, io).state_hooks(vcpu_state::state_hooks());
            vcpus.spawn_with(vcpu).map_err(vcpu_loop::Error::from)?;
        }
        let machine = Machine {
            vcpus,
            devices,
            calls: Arc::clone(para.calls()),
            legacy_timer: spec.legacy_timer,
            mapped,
        };
        Ok((machine, events))
    }
}

/// A machine whose vCPUs are ready.
#[derive(Debug)]
pub struct Machine {
    /// The vCPUs, paused.
    vcpus: VcpuSet<MachineVcpuState>,
    /// The devices.
    pub devices: DeviceSet,
    /// Who answers its hypercalls.
    pub calls: Arc<Hypercalls>,
    legacy_timer: bool,
    /// Kept for as long as the vCPUs run; dropped after them.
    mapped: MappedVm,
}

impl Machine {
    /// Lets devices take input, and the vCPUs enter the guest.
    ///
    /// # Errors
    /// A vCPU that does not obey in time.
    pub fn start(&self) -> Result<(), Error> {
        self.devices.resume();
        Ok(self.vcpus.resume(VCPU_DEADLINE)?)
    }

    /// Takes the vCPUs out of the guest, with no access pending; then devices take no more input.
    ///
    /// # Errors
    /// A vCPU that does not obey in time. The devices go on then.
    pub fn pause(&self) -> Result<(), Error> {
        self.vcpus.pause(VCPU_DEADLINE)?;
        self.devices.pause();
        Ok(())
    }

    /// How often each vCPU left the guest, in order.
    pub fn exits(&self) -> Vec<u64> {
        let counters = self.vcpus.ids().filter_map(|id| self.vcpus.exits(id));
        counters.map(|exits| exits.total()).collect()
    }

    /// The states of the vCPUs, which must be paused, in order.
    ///
    /// # Errors
    /// A vCPU that is not paused, or whose state the host does not give.
    pub fn save_vcpus(&self) -> Result<Vec<MachineVcpuState>, Error> {
        Ok(self.vcpus.save(VCPU_DEADLINE)?)
    }

    /// Gives the vCPUs, which must be paused, saved states. Guest memory comes first: registrations for hypercalls are
    /// checked against it, and written anew into it.
    ///
    /// # Errors
    /// A vCPU that is not paused, whose state the host does not take, or whose guest calls by another kind of stub
    /// than this machine's. A vCPU whose state was refused is as it was, others may have theirs; a vCPU that was left
    /// with half a state does not start.
    pub fn restore_vcpus(&self, states: Vec<MachineVcpuState>) -> Result<(), Error> {
        Ok(self.vcpus.restore(states, VCPU_DEADLINE)?)
    }

    /// The state of all but memory, of a machine that is [paused](Self::pause).
    ///
    /// The order: vCPUs come before the interrupt controllers, so that what is on its way from a local APIC's timer is
    /// in one of the two. kvmclock is last.
    ///
    /// # Errors
    /// A vCPU that is not paused, or a state that the host does not give. The machine is as it was.
    pub fn save(&self) -> Result<MachineState, Error> {
        Ok(MachineState {
            vcpus: self.save_vcpus()?,
            devices: self.devices.save(),
            vm: VmState::save(self.mapped.vm(), self.legacy_timer)?,
        })
    }

    /// Gives the machine, whose vCPUs must be paused, a saved state. Guest memory comes first.
    ///
    /// The order: vCPUs with their local APICs, then the controllers that send to them, then the devices whose lines
    /// end there and may be raised, then kvmclock.
    ///
    /// # Errors
    /// The state does not fit this machine, or the host does not take it. A machine that was left with half a state is
    /// of no use any more: build another one.
    pub fn restore(&self, state: MachineState) -> Result<(), Error> {
        let vm = self.mapped.vm();
        state.vm.check(self.legacy_timer)?;
        self.restore_vcpus(state.vcpus)?;
        state.vm.restore_interrupts(vm)?;
        self.devices.restore(&state.devices)?;
        Ok(state.vm.restore_clock(vm)?)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.mapped.memory()
    }

    /// Takes the vCPUs out of the guest and ends their threads.
    ///
    /// # Errors
    /// A vCPU that does not obey in time.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.vcpus.stop(VCPU_DEADLINE)?;
        Ok(())
    }
}

/// The virtual machine, if KVM has room for its vCPUs.
fn create_vm(host: &Kvm, cpus: u8) -> Result<VmFd, Error> {
    // One vCPU always fits; more cost a question.
    if cpus > 1 {
        let max = host.get_max_vcpus();
        if max < usize::from(cpus) {
            return Err(Error::TooManyCpus { cpus, max });
        }
    }
    loop {
        match host.create_vm() {
            // It takes all locks of the address space, which a signal may interrupt.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(kvm("create a virtual machine")),
        }
    }
}

/// The interrupt controllers, before the first vCPU (KVM API 4.24).
fn create_irqchip(vm: &VmFd, plan: &MachinePlan) -> Result<(), Error> {
    // VMX without unrestricted guest runs real mode on these pages; elsewhere they are not used.
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
    if interrupts.any(|gsi| gsi >= pic::SECOND_GSI) {
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

/// Devices raise interrupts by eventfd: no exit and no lock of ours on the way. They don't keep the VM alive.
fn irq_line(vm: Weak<VmFd>, gsi: u32) -> IrqLine {
    IrqLine::new(move |event| {
        let vm = vm
            .upgrade()
            .ok_or_else(|| io::Error::other("its machine is gone"))?;
        vm.register_irqfd(event, gsi)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    })
}

/// Puts the ACPI tables and the kernel into guest memory.
fn load_kernel(
    spec: &VmSpec,
    plan: &MachinePlan,
    images: &Images,
    memory: &GuestMemoryMmap,
    watch: &dyn Watch,
) -> Result<Loaded, Error> {
    let rsdp = acpi::write_tables(memory, plan)?;
    let request = BootRequest {
        kernel: &images.kernel,
        initrd: images.initrd.as_ref(),
        cmdline: &spec.cmdline,
        protocol: spec.boot_protocol,
        decompress: spec.decompress,
        rsdp: Some(rsdp),
    };
    let loaded = boot::load_watched(memory, &request, watch)?;
    info!("{loaded}");
    Ok(loaded)
}

/// vCPUs with their CPUID, MSRs and local APIC; the first one also with the boot protocol's registers.
/// The others wait for INIT and SIPI in the in-kernel local APIC.
fn create_vcpus(
    host: &Kvm,
    vm: &VmFd,
    spec: &VmSpec,
    memory: &GuestMemoryMmap,
    loaded: &Loaded,
) -> Result<(Vec<KvmVcpu>, CpuId), Error> {
    let supported = host
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("say which CPUID it supports"))?;
    let kvm_host = KvmHost::probe(host).map_err(Error::VcpuSetUp)?;
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
                // The frequency is the VM's, but only a vCPU can be asked.
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
                cpuid.insert(table)
            }
        };
        cpu::cpuid::set_apic_id(cpuid, id);
        fd.set_cpuid2(cpuid).map_err(kvm("give a vCPU its CPUID"))?;
        set_boot_msrs(&fd, &msrs)?;
        let mut lapic = fd.get_lapic().map_err(kvm("read a local APIC"))?;
        cpu::lapic::wire(&mut lapic, spec.legacy_timer);
        fd.set_lapic(&lapic).map_err(kvm("wire a local APIC"))?;
        if id == 0 {
            set_boot_registers(&fd, loaded)?;
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

fn set_boot_msrs(fd: &VcpuFd, msrs: &Msrs) -> Result<(), Error> {
    let written = fd.set_msrs(msrs).map_err(kvm("set a vCPU's MSRs"))?;
    match msrs.as_slice().get(written) {
        None => Ok(()),
        Some(rejected) => Err(Error::Msr {
            index: rejected.index,
        }),
    }
}

fn set_boot_registers(fd: &VcpuFd, loaded: &Loaded) -> Result<(), Error> {
    let mut sregs = fd.get_sregs().map_err(kvm("read a vCPU's registers"))?;
    loaded.edit_sregs(&mut sregs);
    fd.set_sregs(&sregs)
        .map_err(kvm("set a vCPU's registers"))?;
    fd.set_regs(&loaded.regs())
        .map_err(kvm("set a vCPU's registers"))
}
