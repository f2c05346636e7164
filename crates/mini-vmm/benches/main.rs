// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cost of a hypercall on each route, compared to a bare `KVM_RUN` loop with the same guest instructions.
//!
//! `cargo bench -p mini-vmm`. First all variants take turns in one run, and the ratios of their medians are printed.
//! These matter, because a host's speed drifts. Then criterion measures each variant alone.
//!
//! "bare" answers nothing and reads no registers. The next three answer nothing either, but make KVM do what a call
//! needs: copy out the general registers ("regs"), also segments with the privilege level ("regs, mode"), also copy
//! general registers back in with an answer in RAX ("regs, mode, answer"). So the difference from that to "bare" is
//! KVM's copying, which every VMM needs. The difference from that to "pio" is this VMM's own cost.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)] // `criterion_group!` makes a public function.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use hypercall_patch::{PioPort, Stub};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd};
use mini_vmm::check::AutoRoute;
use mini_vmm::config::{HypercallRoute, VmSpec};
use mini_vmm::hypercall::calls::{Caller, Hypercalls};
use mini_vmm::hypercall::para::{Gate, InstalledMsrs, MsrPlan, ParaHandler, RouteChoice, VcpuMsrs};
use mini_vmm::machine::MachineIo;
use mini_vmm::memory::{self, MappedVm};
use mini_vmm::outcome::OutcomeLatch;
use para_abi::vmm::{VMM_HC_CONSOLE_WRITE, VMM_HC_NOP};
use para_abi::{Call, Convention, KvmErrno, MSR_KVM_API_MAGIC, ParaStatePayload};
use vcpu_loop::bus::BusBuilder;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{
    Exit, ExitHistory, ExitRecord, Flow, MsrReply, Unclaimed, Vcpu, VcpuId, VcpuIo, dispatch,
};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;
const PAGE: u64 = 0x2000;
const SITE: u64 = 0x3000;
const STACK: u64 = 0x8000;
/// mov eax, VMM_HC_NOP; call SITE; jmp CODE: of 16-bit code.
const CALLS: &[u8] = &[0x66, 0xb8, 0, 0, 0x56, 0x4d, 0xe8, 0xf7, 0x1f, 0xeb, 0xf5];
/// The same, [`BATCH`] times; then an exit: out 0x80, al.
const BATCHES: &[u8] = &[
    0xb9,
    BATCH as u8,
    0, // mov cx, BATCH
    0x66,
    0xb8,
    0,
    0,
    0x56,
    0x4d,
    0xe8,
    0xf4,
    0x1f, // mov eax, VMM_HC_NOP; call SITE
    0x49,
    0x75,
    0xf4, // dec cx; jnz back
    0xe6,
    0x80,
    0xeb,
    0xed, // out 0x80, al; jmp CODE
];
/// Calls of a guest on the route `vendor` before it exits.
const BATCH: u32 = 100;
/// The number of exits in one turn.
const EXITS: u32 = 5_000;
const TURNS: usize = 15;

/// A guest that calls in an endless loop, in its own VM.
struct Guest {
    _mapped: MappedVm,
    vcpu: KvmVcpu,
    io: MachineIo,
}

fn handlers() -> Arc<Hypercalls> {
    let nop = |_: &Caller, call: &Call| match call.nr {
        // As many as in a machine.
        1..7 | VMM_HC_NOP..=VMM_HC_CONSOLE_WRITE => Ok(0),
        _ => Err(KvmErrno::KVM_ENOSYS),
    };
    Hypercalls::new(nop, 1)
}

fn start(vcpu: &VcpuFd) {
    let mut sregs: kvm_sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    })
    .unwrap();
}

impl Guest {
    /// A registered guest. `None` if KVM doesn't support the route.
    fn new(kvm: &Kvm, route: HypercallRoute, stub: Stub, code: &[u8]) -> Option<Self> {
        let spec = VmSpec {
            hypercall: route,
            ..VmSpec::new("bench")
        };
        let vm = kvm.create_vm().unwrap();
        let msrs = MsrPlan::new(&spec).install(&vm).ok()?;
        assert_ne!(msrs, InstalledMsrs::default());
        let mapped = MappedVm::new(vm, memory::allocate(64 << 20).unwrap()).unwrap();
        let ram = mapped.memory();
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        let page = ParaStatePayload::new(SITE).to_bytes();
        ram.write_slice(&page, GuestAddress(PAGE)).unwrap();

        let fd = mapped.vm().create_vcpu(0).unwrap();
        start(&fd);
        let vcpu = KvmVcpu::new(fd, &KvmHost::probe(kvm).unwrap()).unwrap();
        let registers = vcpu.unshared_registers()?;
        let gate = Arc::new(Gate::new(stub.port(), Convention::Kvm, vec![registers]));
        if route == HypercallRoute::Forward {
            gate.open();
        }
        let route = Arc::new(RouteChoice::fixed(stub));
        let para = ParaHandler::new(0, Arc::new(ram.clone()), route, Arc::clone(&gate));
        let mut io = MachineIo {
            vcpu: 0,
            bus: BusBuilder::new().build(),
            msrs: VcpuMsrs::new(0, Some(para), false),
            gate,
            calls: handlers(),
            latch: OutcomeLatch::new().unwrap(),
        };
        assert_eq!(io.wrmsr(MSR_KVM_API_MAGIC, PAGE), MsrReply::Value(()));
        assert_eq!(
            ram.read_obj::<[u8; 4]>(GuestAddress(SITE)).unwrap(),
            stub.bytes()
        );
        Some(Guest {
            _mapped: mapped,
            vcpu,
            io,
        })
    }

    /// Makes `exits` exits, answered as a machine's vCPU thread does.
    fn run(&mut self, exits: u32) -> Duration {
        let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
        let start = Instant::now();
        for _ in 0..exits {
            let exit = self.vcpu.run().unwrap();
            history.push(ExitRecord::from(&exit));
            let flow = dispatch(exit, &mut self.io, VcpuId(0), &unclaimed);
            assert_eq!(flow, Flow::Continue);
        }
        start.elapsed()
    }
}

/// The user-space cost of a call: history, dispatch, registers and handler, in nanoseconds.
fn answer_alone(guest: &mut Guest) -> f64 {
    let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
    let registers = guest.vcpu.unshared_registers().unwrap();
    let rounds = 2_000_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let exit = black_box(Exit::PioOut {
            port: u16::from(PioPort::DEFAULT),
            size: 1,
            data: &[0],
        });
        history.push(ExitRecord::from(&exit));
        let _ = black_box(dispatch(exit, &mut guest.io, VcpuId(0), &unclaimed));
    }
    let elapsed = start.elapsed();
    assert_eq!(unclaimed.total(), 0);
    assert_ne!(registers.get().rip, 0);
    elapsed.as_secs_f64() * 1e9 / f64::from(rounds)
}

/// The registers that KVM copies at an exit and at the next entry.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Copied {
    Nothing,
    Regs,
    Mode,
    Answer,
}

/// The baseline: the same code in a VM without a handler.
struct Bare {
    _mapped: MappedVm,
    vcpu: VcpuFd,
    copied: Copied,
}

impl Bare {
    fn new(kvm: &Kvm, stub: Stub, copied: Copied) -> Self {
        let vm = kvm.create_vm().unwrap();
        let mapped = MappedVm::new(vm, memory::allocate(64 << 20).unwrap()).unwrap();
        let ram = mapped.memory();
        ram.write_slice(CALLS, GuestAddress(CODE)).unwrap();
        ram.write_slice(&stub.bytes(), GuestAddress(SITE)).unwrap();
        let mut vcpu = mapped.vm().create_vcpu(0).unwrap();
        start(&vcpu);
        if copied >= Copied::Regs {
            vcpu.set_sync_valid_reg(SyncReg::Register);
        }
        if copied >= Copied::Mode {
            vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        }
        Bare {
            _mapped: mapped,
            vcpu,
            copied,
        }
    }

    fn run(&mut self, exits: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..exits {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(_, data) => assert_eq!(data.len(), 1),
                other => panic!("{other:?}"),
            }
            if self.copied == Copied::Answer {
                self.vcpu.sync_regs_mut().regs.rax = 0;
                self.vcpu.set_sync_dirty_reg(SyncReg::Register);
            }
        }
        start.elapsed()
    }
}

/// A name, how many calls an exit counts for, and the function that makes exits.
type Way = (&'static str, u32, Box<dyn FnMut(u32) -> Duration>);

fn ways() -> Vec<Way> {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("SKIP: benches/main: no /dev/kvm");
        return Vec::new();
    };
    let pio = Stub::Pio(PioPort::DEFAULT);
    let mut ways: Vec<Way> = Vec::new();
    for (name, copied) in [
        ("bare", Copied::Nothing),
        ("regs", Copied::Regs),
        ("regs, mode", Copied::Mode),
        ("regs, mode, answer", Copied::Answer),
    ] {
        let mut bare = Bare::new(&kvm, pio, copied);
        ways.push((name, 1, Box::new(move |exits| bare.run(exits))));
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let native = para_msr::kvm::vendor(&cpuid).map(Stub::native);
    let report = mini_vmm::check::probe("/dev/kvm".as_ref());
    let routes = report.routes.as_ref();
    let completes = routes.is_some_and(|routes| routes.auto == Some(AutoRoute::Vendor));
    let mut candidates = vec![("pio", HypercallRoute::Pio(None), pio, CALLS, 1)];
    if let (Ok(native), true) = (native, completes) {
        candidates.push(("vendor", HypercallRoute::Vendor, native, BATCHES, BATCH));
        candidates.push(("forward", HypercallRoute::Forward, native, CALLS, 1));
    }
    for (name, route, stub, code, calls) in candidates {
        match Guest::new(&kvm, route, stub, code) {
            Some(mut guest) => {
                if stub == pio {
                    guest.run(2);
                    println!("a call without KVM: {:.1} ns", answer_alone(&mut guest));
                }
                ways.push((name, calls, Box::new(move |exits| guest.run(exits))));
            }
            None => eprintln!("SKIP: {name}: not on this KVM"),
        }
    }
    ways
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All variants in turns.
fn compare(ways: &mut [Way]) {
    let mut rates = vec![Vec::with_capacity(TURNS); ways.len()];
    for _ in 0..TURNS {
        for ((_, calls, run), rates) in ways.iter_mut().zip(&mut rates) {
            let exits = EXITS / *calls;
            rates.push(f64::from(exits * *calls) / run(exits).as_secs_f64());
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    for ((name, ..), rate) in ways.iter().zip(&rates) {
        let (bare, floor) = (rate / rates[0], rate / rates[3]);
        println!(
            "{name}: {rate:.0} calls/s, {bare:.3} of bare, {floor:.3} of what KVM does for a call"
        );
    }
}

fn routes(c: &mut Criterion) {
    let mut ways = ways();
    compare(&mut ways);
    let mut group = c.benchmark_group("hypercall");
    for (name, calls, run) in &mut ways {
        group.bench_function(*name, |b| {
            b.iter_custom(|iterations| {
                let exits = u32::try_from(iterations).unwrap();
                run(exits) / *calls
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = routes
}
criterion_main!(benches);
