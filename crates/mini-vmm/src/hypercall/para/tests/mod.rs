// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Scripted vCPUs whose accesses go through all layers: the loop's dispatch, the glue, the registration, the handlers.

mod gate;
mod route;
mod state;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypercall_patch::{PioPort, Stub};
use para_abi::{Call, Convention, KvmErrno, MSR_KVM_API_MAGIC, ParaStatePayload, Registers};
use para_msr::saved::MsrValue;
use vcpu_loop::bus::BusBuilder;
use vcpu_loop::kvm::CpuMode;
use vcpu_loop::script::{Reply, ScriptedVcpu, Step};
use vcpu_loop::{Access, Flow, HypercallAbi, MsrReply, Unclaimed, Vcpu, VcpuId, dispatch};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::hypercall::calls::{Caller, Hypercalls};
use crate::machine::MachineIo;
use crate::outcome::{Outcome, OutcomeLatch};

/// A generous limit, only to end a hang.
const SOON: Duration = Duration::from_secs(600);
const PAGE: u64 = 0x1000;
const SITE: u64 = 0x2000;
const PORT: u16 = 0xf5;
/// A number that the tests' handler answers with the sum of its arguments.
const SUM: u64 = 7;
/// A number whose handler ends the run.
const END: u64 = 8;
const ENOSYS: u64 = -1000i64 as u64;
const EPERM: u64 = -1i64 as u64;

/// Fake registers: the values that a test sets, available once shared.
#[derive(Clone, Debug)]
struct FakeRegisters(Arc<Mutex<Fake>>);

#[derive(Debug)]
struct Fake {
    shared: bool,
    /// Whether the current exit happened before they were shared.
    late: bool,
    regs: Registers,
    mode: CpuMode,
    when_shared: Option<WhenShared>,
}

struct WhenShared(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for WhenShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WhenShared")
    }
}

impl FakeRegisters {
    fn new() -> Self {
        FakeRegisters(Arc::new(Mutex::new(Fake {
            shared: false,
            late: false,
            regs: Registers::default(),
            mode: CpuMode {
                cpl: 0,
                long_mode: true,
            },
            when_shared: None,
        })))
    }

    fn edit(&self, edit: impl FnOnce(&mut Fake)) {
        edit(&mut self.0.lock().unwrap());
    }

    fn set(&self, regs: &Registers) {
        self.edit(|fake| fake.regs = *regs);
    }

    fn rax(&self) -> u64 {
        self.0.lock().unwrap().regs.rax
    }

    fn is_shared(&self) -> bool {
        self.0.lock().unwrap().shared
    }
}

impl CallRegisters for FakeRegisters {
    fn share(&self) {
        self.edit(|fake| {
            fake.shared = true;
            if let Some(WhenShared(look)) = fake.when_shared.take() {
                look();
            }
        });
    }

    fn are_filled(&self) -> bool {
        let fake = self.0.lock().unwrap();
        fake.shared && !fake.late
    }

    fn get(&self) -> Registers {
        assert!(self.are_filled(), "read before KVM shared them");
        self.0.lock().unwrap().regs
    }

    fn set_rax(&self, rax: u64) {
        assert!(self.are_filled(), "set before KVM shared them");
        self.edit(|fake| fake.regs.rax = rax);
    }

    fn mode(&self) -> CpuMode {
        assert!(self.are_filled(), "read before KVM shared them");
        self.0.lock().unwrap().mode
    }
}

/// The parts of a machine with two vCPUs, without KVM.
struct Machine {
    memory: Arc<GuestMemoryMmap>,
    registers: [FakeRegisters; 2],
    route: Arc<RouteChoice>,
    gate: Arc<Gate<FakeRegisters>>,
    calls: Arc<Hypercalls>,
    latch: OutcomeLatch,
    para: bool,
}

impl Machine {
    fn new(route: RouteChoice, convention: Convention) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let registers = [FakeRegisters::new(), FakeRegisters::new()];
        let latch = OutcomeLatch::new().unwrap();
        let end = latch.clone();
        let calls = move |_: &Caller, call: &Call| match call.nr {
            SUM => Ok(call
                .args
                .iter()
                .fold(0, |sum: u64, arg| sum.wrapping_add(*arg))),
            END => {
                end.set(Outcome::GuestExit(call.args[0] as u8));
                Ok(0)
            }
            _ => Err(KvmErrno::KVM_ENOSYS),
        };
        Machine {
            memory: Arc::new(memory),
            gate: Arc::new(Gate::new(route.port(), convention, registers.to_vec())),
            route: Arc::new(route),
            registers,
            calls: Hypercalls::new(calls, 2),
            latch,
            para: true,
        }
    }

    fn pio() -> Self {
        let stub = Stub::Pio(PioPort::DEFAULT);
        Machine::new(RouteChoice::fixed(stub), Convention::Kvm)
    }

    fn io(&self, vcpu: u32) -> MachineIo<FakeRegisters> {
        let para = self.para.then(|| {
            let (memory, route) = (Arc::clone(&self.memory), Arc::clone(&self.route));
            ParaHandler::new(vcpu, memory, route, Arc::clone(&self.gate))
        });
        MachineIo {
            vcpu,
            bus: BusBuilder::new().build(),
            msrs: VcpuMsrs::new(vcpu, para, true),
            gate: Arc::clone(&self.gate),
            calls: Arc::clone(&self.calls),
            latch: self.latch.clone(),
        }
    }

    /// Writes a para page at `PAGE` that requests a stub at `site`.
    fn prepare(&self, site: u64) {
        let page = ParaStatePayload::new(site).to_bytes();
        self.memory.write_slice(&page, GuestAddress(PAGE)).unwrap();
    }

    fn page(&self) -> ParaStatePayload {
        let mut bytes = [0; 24];
        self.memory
            .read_slice(&mut bytes, GuestAddress(PAGE))
            .unwrap();
        ParaStatePayload::from_bytes(&bytes)
    }

    fn site(&self) -> [u8; 4] {
        self.memory.read_obj(GuestAddress(SITE)).unwrap()
    }
}

/// Runs a script on one vCPU to its end.
fn play(io: &mut MachineIo<FakeRegisters>, script: Vec<Step>) -> (Vec<Reply>, Unclaimed, Flow) {
    let mut vcpu = ScriptedVcpu::new(script.into_iter().chain([Step::Signal]));
    let (replies, unclaimed) = (vcpu.replies(), Unclaimed::default());
    loop {
        let flow = dispatch(vcpu.run().unwrap(), io, VcpuId(io.vcpu), &unclaimed);
        if flow == Flow::Pause {
            let _ = dispatch(vcpu.complete().unwrap(), io, VcpuId(io.vcpu), &unclaimed);
        }
        if flow != Flow::Continue {
            return (replies.get(), unclaimed, flow);
        }
    }
}

fn register() -> Step {
    Step::Wrmsr {
        index: MSR_KVM_API_MAGIC,
        data: PAGE,
    }
}

fn out(size: u8, data: &[u8]) -> Step {
    Step::PioOut {
        port: PORT,
        size,
        data: data.to_vec(),
    }
}

/// The registers of a call of `nr` with two arguments, in KVM's convention.
fn call_regs(nr: u64, rbx: u64, rcx: u64) -> Registers {
    Registers {
        rax: nr,
        rbx,
        rcx,
        ..Default::default()
    }
}

/// A machine's vCPU 0, registered.
fn registered(machine: &Machine) -> MachineIo<FakeRegisters> {
    let mut io = machine.io(0);
    machine.prepare(SITE);
    let (replies, ..) = play(&mut io, vec![register()]);
    assert_eq!(replies, [Reply::Wrmsr(Some(()))]);
    assert_eq!((machine.page().host_version, machine.page().ret), (1, 0));
    io
}

#[test]
fn r8_a_registration_goes_through_the_loop_and_calls_are_answered() {
    let machine = Machine::pio();
    let mut io = registered(&machine);
    assert_eq!(machine.site(), [0xe6, 0xf5, 0xc3, 0xcc]);
    for (nr, args, rax) in [(SUM, (40, 2), 42), (99, (0, 0), ENOSYS)] {
        machine.registers[0].set(&call_regs(nr, args.0, args.1));
        let (replies, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
        assert_eq!((replies, unclaimed.total()), (vec![Reply::PioOut], 0));
        assert_eq!(machine.registers[0].rax(), rax);
    }
    let counters = machine.calls.counters();
    assert_eq!((counters.other, counters.unknown), (1, 1));
}

#[test]
fn r3_r12_misaligned_writes_and_reads_fault() {
    let machine = Machine::pio();
    let mut io = machine.io(0);
    let misaligned = Step::Wrmsr {
        index: MSR_KVM_API_MAGIC,
        data: PAGE + 8,
    };
    let read = Step::Rdmsr {
        index: MSR_KVM_API_MAGIC,
    };
    let (replies, unclaimed, _) = play(&mut io, vec![misaligned, read]);
    assert_eq!(replies, [Reply::Wrmsr(None), Reply::Rdmsr(None)]);
    assert_eq!(unclaimed.total(), 0, "it is ours");
}

#[test]
fn h16_a_call_from_user_code_is_refused() {
    let machine = Machine::pio();
    let mut io = registered(&machine);
    for cpl in 1..=3 {
        machine.registers[0].edit(|fake| {
            fake.regs = call_regs(SUM, 1, 1);
            fake.mode.cpl = cpl;
        });
        let (_, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
        assert_eq!(machine.registers[0].rax(), EPERM);
        assert_eq!(unclaimed.total(), 0);
    }
    assert_eq!(machine.calls.counters().unprivileged, 3);
}

#[test]
fn only_one_byte_by_one_out_is_a_call() {
    let machine = Machine::pio();
    let mut io = registered(&machine);
    machine.registers[0].set(&call_regs(SUM, 1, 1));
    let no_calls = [
        (out(1, &[1, 2]), 2), // rep outsb
        (out(2, &[1, 2]), 1), // out imm8, ax
        (out(4, &[1, 2, 3, 4]), 1),
        (out(2, &[1, 2, 3, 4]), 2),
        (
            Step::PioOut {
                port: PORT + 1,
                size: 1,
                data: vec![0],
            },
            1,
        ),
        (
            Step::PioOut {
                port: 0x100 + PORT,
                size: 1,
                data: vec![0],
            },
            1,
        ),
    ];
    for (step, elements) in no_calls {
        let (_, unclaimed, _) = play(&mut io, vec![step.clone()]);
        assert_eq!(unclaimed.count(Access::PioWrite), elements, "{step:?}");
    }
    let read = Step::PioIn {
        port: PORT,
        size: 1,
        count: 1,
    };
    let (replies, unclaimed, _) = play(&mut io, vec![read]);
    assert_eq!(replies, [Reply::PioIn(vec![0xff])]);
    assert_eq!(unclaimed.count(Access::PioRead), 1);
    assert_eq!(machine.registers[0].rax(), SUM, "no register changed");
    assert_eq!(machine.calls.counters().other, 0);
}

#[test]
fn before_a_registration_the_port_is_nobodys_and_registers_are_not_shared() {
    let machine = Machine::pio();
    let (_, unclaimed, _) = play(&mut machine.io(0), vec![out(1, &[0])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 1);
    assert!(!machine.registers[0].is_shared());
}

#[test]
fn r11_a_vcpu_that_did_not_register_may_call_what_another_registered() {
    let machine = Machine::pio();
    registered(&machine);
    machine.registers[1].set(&call_regs(SUM, 2, 3));
    let (_, unclaimed, _) = play(&mut machine.io(1), vec![out(1, &[0])]);
    assert_eq!(unclaimed.total(), 0);
    assert_eq!(machine.registers[1].rax(), 5);
    assert_eq!(machine.registers[0].rax(), 0, "its own registers only");
}

#[test]
fn conventions_take_their_registers_and_32_bit_results_are_cut() {
    let regs = Registers {
        rax: 1,
        rbx: SUM,
        rcx: 0xffff_ffff_0000_0002,
        rdx: 4,
        rdi: 0xffff_fff0,
        ..Default::default()
    };
    let draft = Registers {
        rax: SUM,
        rbx: 1,
        ..regs
    };
    // 1 + 2 + 4 + 0xfffffff0 in 64 bits; a 32-bit register keeps the lower half.
    let cases = [
        (Convention::Para2007, false, regs, 0xffff_fff7),
        (Convention::Para2007Draft, false, draft, 0xffff_fff7),
        (Convention::Kvm, false, draft, 1 + 2 + 4),
        (
            Convention::Para2007,
            true,
            draft,
            0xffff_fff0 + 4 + 0xffff_ffff_0000_0002,
        ),
        (Convention::Kvm, true, regs, ENOSYS),
        (Convention::Kvm, false, regs, 0xffff_fc18),
    ];
    for (convention, long_mode, regs, rax) in cases {
        let stub = Stub::Pio(PioPort::DEFAULT);
        let machine = Machine::new(RouteChoice::fixed(stub), convention);
        let mut io = registered(&machine);
        machine.registers[0].edit(|fake| {
            fake.regs = regs;
            fake.mode.long_mode = long_mode;
        });
        let (_, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
        assert_eq!(unclaimed.total(), 0);
        let got = machine.registers[0].rax();
        assert_eq!(got, rax, "{convention} {long_mode}: {got:#x}");
    }
}

#[test]
fn a_call_that_ends_the_run_takes_its_vcpu_out_of_the_guest() {
    let machine = Machine::pio();
    let mut io = registered(&machine);
    machine.registers[0].set(&call_regs(END, 3, 0));
    let (replies, _, flow) = play(&mut io, vec![out(1, &[0])]);
    assert_eq!((replies, flow), (vec![Reply::PioOut], Flow::Pause));
    assert_eq!(machine.latch.get(), Some(Outcome::GuestExit(3)));
}

#[test]
fn without_the_msr_it_is_gp_and_the_port_is_nobodys() {
    let machine = Machine {
        para: false,
        gate: Arc::new(Gate::shut()),
        ..Machine::pio()
    };
    machine.prepare(SITE);
    let script = vec![register(), out(1, &[0])];
    let (replies, unclaimed, _) = play(&mut machine.io(0), script);
    assert_eq!(replies, [Reply::Wrmsr(None), Reply::PioOut]);
    assert_eq!(unclaimed.count(Access::Wrmsr), 1);
    assert_eq!(unclaimed.count(Access::PioWrite), 1);
    assert_eq!(machine.page(), ParaStatePayload::new(SITE), "untouched");
}

#[test]
fn on_the_vendor_route_the_port_is_no_call() {
    let machine = Machine::new(RouteChoice::fixed(Stub::Svm), Convention::Kvm);
    let mut io = registered(&machine);
    assert_eq!(machine.site(), [0x0f, 0x01, 0xd9, 0xc3]);
    assert!(
        !machine.registers[0].is_shared(),
        "KVM answers: nobody needs them"
    );
    let (_, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 1);
}

#[test]
fn forwarded_calls_have_the_chosen_registers_and_xens_are_ignored() {
    let machine = Machine::new(RouteChoice::fixed(Stub::Vmx), Convention::Kvm);
    machine.gate.open();
    let mut io = machine.io(0);
    machine.registers[0].set(&call_regs(SUM, 20, 3));
    for (cpl, long_mode, expected) in [(0, true, 23), (3, true, EPERM), (0, false, 23)] {
        let mut ret = 0;
        let mut call = vcpu_loop::Hypercall {
            abi: HypercallAbi::Xen,
            number: 1,
            args: &[9; 6],
            long_mode,
            cpl: Some(cpl),
            ret: &mut ret,
        };
        assert_eq!(
            vcpu_loop::VcpuIo::hypercall(&mut io, &mut call),
            vcpu_loop::Next::Continue
        );
        assert_eq!(ret, expected);
    }
    // A hypercall exit that this machine did not request.
    let call = Step::Hypercall {
        abi: HypercallAbi::Kvm,
        number: SUM,
    };
    let (replies, unclaimed, _) = play(&mut io, vec![call]);
    assert_eq!(replies, [Reply::Hypercall(ENOSYS)]);
    assert_eq!(unclaimed.count(Access::Hypercall), 1);
}

#[test]
fn h11_refused_msrs_are_told_of_once_each_and_not_for_ever() {
    let mut msrs = VcpuMsrs::<FakeRegisters>::new(0, None, true);
    for _ in 0..3 {
        for index in 0..1000 {
            assert_eq!(msrs.read(index), para_msr::Outcome::NotHandled);
            assert_eq!(msrs.write(index, 0), para_msr::Outcome::NotHandled);
        }
    }
    assert_eq!(msrs.reported(), 64);
}

#[test]
fn a_handler_that_stops_its_vcpu_pauses_it() {
    let machine = Machine::pio();
    let io = machine.io(0);
    let value = MsrValue { index: 1, value: 2 };
    let answers = [
        (para_msr::Outcome::Handled(7), MsrReply::Value(7)),
        (para_msr::Outcome::Stop(7), MsrReply::Pause(Some(7))),
        (para_msr::Outcome::GpException, MsrReply::Fault),
        (para_msr::Outcome::NotHandled, MsrReply::Unclaimed),
        (para_msr::Outcome::SetInKvm(value), MsrReply::Fault),
    ];
    for (outcome, reply) in answers {
        assert_eq!(io.reply(outcome), reply);
    }
    // After the end of the run no guest code runs, whatever the answer.
    machine.latch.set(Outcome::GuestExit(0));
    for (outcome, reply) in answers {
        assert_eq!(io.reply(outcome), reply.and_pause());
    }
}
