// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Filters and MSR state on real KVM, with a tiny real-mode guest. Without a usable /dev/kvm each test prints
//! SKIP.
// Giving memory to a VM is an unsafe call; this is the only one of these tests.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{
    Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit,
    VcpuFd, VmFd,
};
use para_msr::filter::{Access, FilterDefault, MsrFilter, MsrFilterBuilder};
use para_msr::handlers::{Constant, Shadow, WriteIgnore};
use para_msr::kvm::{ExitReasons, KvmMsrs};
use para_msr::saved::{MAX_BATCH, MsrAccess, MsrPolicy, MsrValue};
use para_msr::{MsrDispatch, MsrDispatchBuilder, MsrRange, profile};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The 2007 API's MSR, which no KVM knows.
const MSR_KVM_API_MAGIC: u32 = 0x8765_5678;
const MSR_TSC: u32 = 0x10;
const MSR_STAR: u32 = 0xc000_0081;
const EINVAL: i32 = 22;
const E2BIG: i32 = 7;

/// KVM, or the reason why not on stderr.
fn kvm(test: &str) -> Option<Kvm> {
    let reason = match std::env::var_os("MINI_VMM_NO_KVM") {
        Some(value) if value == "1" => "MINI_VMM_NO_KVM=1".to_owned(),
        _ => match Kvm::new() {
            Ok(kvm) => return Some(kvm),
            Err(error) => format!("/dev/kvm: {error}"),
        },
    };
    eprintln!("SKIP: {test}: {reason}");
    None
}

/// What the guest is to do.
#[derive(Clone, Copy, Debug)]
enum Do {
    Read(u32),
    Write(u32, u64),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// An exit, with its reason.
    Exit(u32, MsrExitReason),
    /// The guest read this.
    Value(u64),
    /// The guest's write succeeded.
    Written,
    /// The guest got #GP.
    Gp,
}

use Seen::*;

/// The guest's #GP handler: tells, skips the two bytes of RDMSR or WRMSR, and the two ports after a read
/// follow.
const GP_HANDLER: &[u8] = &[
    0xe6, 0x13, // out 0x13, al
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02, // add word [bp + 2], 2
    0x5d, 0xcf, // pop bp; iret
];

fn code(steps: &[Do]) -> Vec<u8> {
    let mut code = Vec::new();
    let imm = |opcode: u8, value: u32| [&[0x66, opcode][..], &value.to_le_bytes()].concat();
    for step in steps {
        match *step {
            Do::Read(index) => {
                code.extend(imm(0xb9, index)); // mov ecx, index
                code.extend([0x0f, 0x32]); // rdmsr
                code.extend([0x66, 0xe7, 0x20]); // out 0x20, eax
                code.extend([0x66, 0x89, 0xd0]); // mov eax, edx
                code.extend([0x66, 0xe7, 0x21]); // out 0x21, eax
            }
            Do::Write(index, value) => {
                code.extend(imm(0xb9, index)); // mov ecx, index
                code.extend(imm(0xb8, value as u32)); // mov eax, low
                code.extend(imm(0xba, (value >> 32) as u32)); // mov edx, high
                code.extend([0x0f, 0x30]); // wrmsr
                code.extend([0xe6, 0x22]); // out 0x22, al
            }
        }
    }
    code.push(0xf4); // hlt
    code
}

struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
}

impl Machine {
    fn new(kvm: &Kvm) -> Self {
        const RAM: usize = 0x1_0000;
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is `memory`, which lives as long as the VM: nobody takes it out of `self`.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Machine { vm, memory }
    }

    fn vcpu(&self, id: u64) -> VcpuFd {
        let vcpu = self.vm.create_vcpu(id).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu
    }

    /// Runs the steps to their end, with accesses that exit answered by `msrs`.
    fn run(&self, vcpu: &mut VcpuFd, msrs: &mut MsrDispatch, steps: &[Do]) -> Vec<Seen> {
        self.memory
            .write_slice(GP_HANDLER, GuestAddress(0x500))
            .unwrap();
        self.memory
            .write_obj(0x500u32, GuestAddress(13 * 4))
            .unwrap();
        self.memory
            .write_slice(&code(steps), GuestAddress(0x1000))
            .unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rsp, regs.rflags) = (0x1000, 0x8000, 2);
        vcpu.set_regs(&regs).unwrap();
        let (mut seen, mut low, mut failed) = (Vec::new(), 0, false);
        loop {
            match vcpu.run().unwrap() {
                VcpuExit::X86Rdmsr(exit) => {
                    seen.push(Exit(exit.index, exit.reason));
                    match msrs.read(exit.index).or_gp() {
                        Some(value) => *exit.data = value,
                        None => *exit.error = 1,
                    }
                }
                VcpuExit::X86Wrmsr(exit) => {
                    seen.push(Exit(exit.index, exit.reason));
                    *exit.error = msrs.write(exit.index, exit.data).or_gp().is_none().into();
                }
                VcpuExit::IoOut(0x13, _) => {
                    seen.push(Gp);
                    failed = true;
                }
                VcpuExit::IoOut(0x20, data) => low = u32::from_le_bytes(data.try_into().unwrap()),
                VcpuExit::IoOut(0x21, data) => {
                    let high = u32::from_le_bytes(data.try_into().unwrap());
                    if !std::mem::take(&mut failed) {
                        seen.push(Value(u64::from(high) << 32 | u64::from(low)));
                    }
                }
                VcpuExit::IoOut(0x22, _) => {
                    if !std::mem::take(&mut failed) {
                        seen.push(Written);
                    }
                }
                VcpuExit::Hlt => return seen,
                other => panic!("{other:?} after {seen:x?}"),
            }
        }
    }
}

fn filtered(index: u32) -> Seen {
    Exit(index, MsrExitReason::Filter)
}

fn nobody() -> MsrDispatch {
    MsrDispatchBuilder::new().build()
}

fn builder(default: FilterDefault) -> MsrFilterBuilder {
    MsrFilterBuilder::new(default)
}

#[test]
fn h15_the_magic_msr_exits_by_the_filter_and_its_value_round_trips() {
    let Some(kvm) = kvm("h15_the_magic_msr_exits_by_the_filter_and_its_value_round_trips") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow).deny(MSR_KVM_API_MAGIC, Access::Both);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let shadow = Shadow::<1>::new(MSR_KVM_API_MAGIC, 0)
        .unwrap()
        .reserved(0xfff);
    let mut msrs = MsrDispatchBuilder::new()
        .insert(MSR_KVM_API_MAGIC, shadow)
        .unwrap()
        .build();
    let value = 0xfedc_ba98_7654_3000;
    let steps = [
        Do::Write(MSR_KVM_API_MAGIC, value),
        Do::Read(MSR_KVM_API_MAGIC),
        Do::Write(MSR_KVM_API_MAGIC, 1),
        Do::Read(MSR_KVM_API_MAGIC),
    ];
    let seen = machine.run(&mut vcpu, &mut msrs, &steps);
    let exit = filtered(MSR_KVM_API_MAGIC);
    assert_eq!(
        seen,
        [
            exit,
            Written,
            exit,
            Value(value),
            exit,
            Gp,
            exit,
            Value(value)
        ]
    );
    // Nobody answers: #GP both ways, and the count says so.
    let mut msrs = nobody();
    let seen = machine.run(&mut vcpu, &mut msrs, &steps[..2]);
    assert_eq!(seen, [exit, Gp, exit, Gp]);
    assert_eq!(msrs.counters().not_handled(), 2);
}

#[test]
fn one_direction_exits_and_the_other_is_kvms() {
    let Some(kvm) = kvm("one_direction_exits_and_the_other_is_kvms") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow)
        .deny(MSR_STAR, Access::Read)
        .deny(0x8b, Access::Both);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut msrs = MsrDispatchBuilder::new()
        .insert(MSR_STAR, Constant::new(0x1234))
        .unwrap()
        .insert(0x8b, WriteIgnore(Constant::new(7 << 32)))
        .unwrap()
        .build();
    let steps = [
        Do::Write(MSR_STAR, 99),
        Do::Read(MSR_STAR),
        Do::Write(0x8b, 0),
        Do::Read(0x8b),
    ];
    let seen = machine.run(&mut vcpu, &mut msrs, &steps);
    let expected = [
        Written,
        filtered(MSR_STAR),
        Value(0x1234),
        filtered(0x8b),
        Written,
        filtered(0x8b),
        Value(7 << 32),
    ];
    assert_eq!(seen, expected);
    // A filter doesn't hold for the host.
    let mut star = [MsrValue {
        index: MSR_STAR,
        value: 0,
    }];
    assert_eq!(KvmMsrs(&vcpu).get(&mut star), Ok(1));
    assert_eq!(star[0].value, 99);
    // The filter can be replaced, also between runs.
    let open = builder(FilterDefault::Allow).compile().unwrap();
    open.replace(&machine.vm).unwrap();
    let seen = machine.run(&mut vcpu, &mut msrs, &[Do::Read(MSR_STAR)]);
    assert_eq!(seen, [Value(99)]);
}

#[test]
fn with_the_linux_profile_all_else_is_denied() {
    let Some(kvm) = kvm("with_the_linux_profile_all_else_is_denied") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Deny)
        .allow_profile(profile::LINUX)
        .deny(MSR_KVM_API_MAGIC, Access::Both)
        .compile()
        .unwrap();
    filter.install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let denied = [
        0x9e,
        0x4000_0000,
        0x474f_4f00,
        0xc001_0111,
        MSR_KVM_API_MAGIC,
    ];
    for index in denied {
        for step in [Do::Read(index), Do::Write(index, 0)] {
            let seen = machine.run(&mut vcpu, &mut nobody(), &[step]);
            assert_eq!(seen, [filtered(index), Gp], "{index:#x}");
        }
    }
    let steps = [
        Do::Read(MSR_TSC),
        Do::Write(MSR_STAR, 5),
        Do::Read(MSR_STAR),
        Do::Read(0x277),
    ];
    let seen = machine.run(&mut vcpu, &mut nobody(), &steps);
    assert!(
        matches!(seen[..], [Value(_), Written, Value(5), Value(_)]),
        "{seen:x?}"
    );
    // Every MSR of the profile is KVM's to answer, in the allowed direction: with a value or #GP, but by no exit.
    // Only reads: writes would change the vCPU under test.
    let reads: Vec<Do> = profile::LINUX
        .iter()
        .filter(|entry| entry.access.reads())
        .map(|entry| Do::Read(entry.range.last()))
        .collect();
    for step in &reads {
        let seen = machine.run(&mut vcpu, &mut nobody(), &[*step]);
        assert!(
            matches!(seen[..], [Value(_)] | [Gp]),
            "{step:x?}: {seen:x?}"
        );
    }
}

#[test]
fn no_filter_holds_for_x2apic_and_the_last_msr() {
    let Some(kvm) = kvm("no_filter_holds_for_x2apic_and_the_last_msr") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let last = MsrRange::new(0xffff_fff0, u32::MAX).unwrap();
    let filter = builder(FilterDefault::Allow)
        .deny(0x802, Access::Both)
        .deny(last, Access::Both)
        .compile()
        .unwrap();
    assert_eq!(filter.uncovered().len(), 2);
    filter.install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let before = 0xffff_fffe;
    let steps = [Do::Read(before), Do::Read(u32::MAX), Do::Read(0x802)];
    let seen = machine.run(&mut vcpu, &mut nobody(), &steps);
    // The x2APIC is off, and KVM knows no MSR 0xffffffff: #GP (0, if it ignores unknown MSRs), but no exit.
    assert_eq!(seen[..2], [filtered(before), Gp]);
    assert!(matches!(seen[2..], [Gp | Value(0), Gp]), "{seen:x?}");
    // Nor does a range of KVM's own that holds it, whose end is 0 in 32 bits.
    let wraps = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: 0xffff_fff0,
        msr_count: 16,
        bitmap: &[0; 8],
    };
    machine
        .vm
        .set_msr_filter(MsrFilterDefaultAction::ALLOW, &[wraps])
        .unwrap();
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(before)]);
    assert!(!seen.contains(&filtered(before)), "{seen:x?}");
}

#[test]
fn kvm_refuses_what_the_types_refuse() {
    let Some(kvm) = kvm("kvm_refuses_what_the_types_refuse") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let set = |default, count: u32| {
        let bitmap = vec![0xff; (count as usize).div_ceil(64) * 8];
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ,
            base: 0,
            msr_count: count,
            bitmap: &bitmap,
        };
        machine
            .vm
            .set_msr_filter(default, &[range])
            .map_err(|error| error.errno())
    };
    let allow = MsrFilterDefaultAction::ALLOW;
    assert_eq!(set(allow, 0x3000), Ok(()));
    assert_eq!(set(allow, 0x3001), Err(EINVAL));
    let nothing = machine.vm.set_msr_filter(MsrFilterDefaultAction::DENY, &[]);
    assert_eq!(nothing.map_err(|error| error.errno()), Err(EINVAL));
    // What stands for it here is taken, and denies.
    builder(FilterDefault::Deny)
        .compile()
        .unwrap()
        .install(&machine.vm)
        .unwrap();
    let mut vcpu = machine.vcpu(0);
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(MSR_TSC), Do::Read(0)]);
    assert_eq!(seen, [filtered(MSR_TSC), Gp, filtered(0), Gp]);
}

#[test]
fn unknown_msrs_exit_if_asked_for() {
    let Some(kvm) = kvm("unknown_msrs_exit_if_asked_for") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter: MsrFilter = builder(FilterDefault::Allow).compile().unwrap();
    let reasons = ExitReasons {
        unknown: true,
        invalid: true,
    };
    filter.install_with(&machine.vm, reasons).unwrap();
    let mut vcpu = machine.vcpu(0);
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(0x474f_4f00)]);
    // The second: kvm.ignore_msrs=1 on this host.
    let unknown = Exit(0x474f_4f00, MsrExitReason::Unknown);
    assert!(
        matches!(seen[..], [exit, Gp] if exit == unknown) || seen == [Value(0)],
        "{seen:x?}"
    );
}

/// Random wishes about MSRs that KVM doesn't know: a denied access exits, an allowed one doesn't.
#[test]
fn kvm_does_what_compiled_filters_say() {
    let Some(kvm) = kvm("kvm_does_what_compiled_filters_say") else {
        return;
    };
    let machine = Machine::new(&kvm);
    builder(FilterDefault::Allow)
        .compile()
        .unwrap()
        .install(&machine.vm)
        .unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u32| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % below
    };
    let base = 0x4750_0000;
    let (mut exits, mut others) = (0, 0);
    for round in 0..12 {
        let default = [FilterDefault::Allow, FilterDefault::Deny][round % 2];
        let mut wishes = builder(default);
        let mut probes = Vec::new();
        for _ in 0..6 {
            let first = base + random(0x8000);
            let range = MsrRange::new(first, first + random(0x1000)).unwrap();
            let access = [Access::Read, Access::Write, Access::Both][random(3) as usize];
            wishes = match random(2) {
                0 => wishes.deny(range, access),
                _ => wishes.allow(range, access),
            };
            probes.extend([first - 1, first, range.last(), range.last() + 1]);
        }
        let filter = wishes.compile().unwrap();
        filter.replace(&machine.vm).unwrap();
        for index in probes {
            for (step, allowed) in [
                (Do::Read(index), filter.allows_read(index)),
                (Do::Write(index, 0), filter.allows_write(index)),
            ] {
                let seen = machine.run(&mut vcpu, &mut nobody(), &[step]);
                assert_eq!(
                    seen.contains(&filtered(index)),
                    !allowed,
                    "{step:x?}: {seen:x?}"
                );
                *if allowed { &mut others } else { &mut exits } += 1;
            }
        }
    }
    assert!(exits > 50 && others > 50, "{exits} exits, {others} others");
}

#[test]
fn a_restore_on_kvm_goes_on_past_what_it_rejects() {
    let Some(kvm) = kvm("a_restore_on_kvm_goes_on_past_what_it_rejects") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let (old, new) = (machine.vcpu(0), machine.vcpu(1));
    let policy = MsrPolicy::linux().deny(MSR_KVM_API_MAGIC);
    let star = MsrValue {
        index: MSR_STAR,
        value: 0x1122_3344_5566_7788,
    };
    assert_eq!(KvmMsrs(&old).set(&[star]), Ok(1));
    let listed = kvm.get_msr_index_list().unwrap();
    let extra = [0x474f_4f00, MSR_KVM_API_MAGIC, 0x2ff];
    let indices: Vec<u32> = listed.as_slice().iter().copied().chain(extra).collect();
    let saved = policy.save(&mut KvmMsrs(&old), &indices).unwrap();
    saved.check().unwrap();
    assert!(saved.values.contains(&star));
    assert!(
        !saved
            .values
            .iter()
            .any(|msr| msr.index == MSR_KVM_API_MAGIC)
    );
    // A state from another host, that has MSRs that no KVM has, in front.
    let mut state = vec![
        MsrValue {
            index: 0x4750_0000,
            value: 1,
        },
        MsrValue {
            index: MSR_KVM_API_MAGIC,
            value: 0x1000,
        },
    ];
    state.extend(&saved.values);
    let report = policy.restore(&mut KvmMsrs(&new), &state).unwrap();
    report.check().unwrap();
    assert_eq!(report.denied, [MSR_KVM_API_MAGIC]);
    // With kvm.ignore_msrs=1, KVM takes what it doesn't know.
    let accounted = report.written + report.skipped.len() + report.denied.len();
    assert_eq!(accounted, state.len());
    let mut read = [MsrValue {
        index: MSR_STAR,
        value: 0,
    }];
    assert_eq!(KvmMsrs(&new).get(&mut read), Ok(1));
    assert_eq!(read, [star]);
}

#[test]
fn kvm_takes_a_batch_and_not_one_more() {
    let Some(kvm) = kvm("kvm_takes_a_batch_and_not_one_more") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let vcpu = machine.vcpu(0);
    let mut many = vec![
        MsrValue {
            index: MSR_STAR,
            value: 0
        };
        MAX_BATCH + 1
    ];
    assert_eq!(KvmMsrs(&vcpu).get(&mut many[..MAX_BATCH]), Ok(MAX_BATCH));
    let errno = KvmMsrs(&vcpu).get(&mut many).map_err(|error| error.errno());
    assert_eq!(errno, Err(E2BIG));
}
