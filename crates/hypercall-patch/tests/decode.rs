// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that the crate writes, decoded with an independent disassembler.
#![allow(clippy::unwrap_used)]

use hypercall_patch::{HypercallInsn, PAGE_SIZE, PioPort, Stub, hyperv, xen};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

const BITNESSES: [u32; 2] = [32, 64];
const INSNS: [(HypercallInsn, Code); 2] = [
    (HypercallInsn::Vmcall, Code::Vmcall),
    (HypercallInsn::Vmmcall, Code::Vmmcall),
];

fn decode(bytes: &[u8], bitness: u32) -> Vec<Instruction> {
    Decoder::with_ip(bitness, bytes, 0x1000, DecoderOptions::NONE)
        .into_iter()
        .collect()
}

fn codes(bytes: &[u8], bitness: u32) -> Vec<Code> {
    decode(bytes, bitness)
        .iter()
        .map(Instruction::code)
        .collect()
}

fn ret(bitness: u32) -> Code {
    if bitness == 64 {
        Code::Retnq
    } else {
        Code::Retnd
    }
}

#[test]
fn r9_native_stubs_are_one_hypercall_and_a_return() {
    for bitness in BITNESSES {
        for (insn, code) in INSNS {
            let stub = Stub::of_insn(insn);
            assert_eq!(
                codes(&stub.bytes(), bitness),
                [code, ret(bitness)],
                "{stub}"
            );
            assert_eq!(decode(&stub.bytes(), bitness)[0].len(), 3);
            assert_eq!(codes(&insn.bytes(), bitness), [code]);
        }
    }
}

#[test]
fn r9_port_io_stubs_write_al_to_their_port_and_return() {
    for bitness in BITNESSES {
        for port in (0..=u8::MAX).filter_map(|port| PioPort::new(port).ok()) {
            let bytes = Stub::Pio(port).bytes();
            assert_eq!(
                codes(&bytes, bitness),
                [Code::Out_imm8_AL, ret(bitness), Code::Int3]
            );
            let out = decode(&bytes, bitness)[0];
            assert_eq!(out.immediate8(), port.get());
            assert_eq!(out.op1_register(), Register::AL);
        }
    }
}

#[test]
fn h6_the_return_is_where_the_stub_says() {
    let pio = (0..=u8::MAX).filter_map(|port| PioPort::new(port).ok().map(Stub::Pio));
    for stub in [Stub::Vmx, Stub::Svm].into_iter().chain(pio) {
        for bitness in BITNESSES {
            let code = decode(&stub.bytes(), bitness);
            assert_eq!(code[1].code(), ret(bitness));
            assert_eq!(code[1].ip(), 0x1000 + stub.ret_offset() as u64, "{stub}");
        }
    }
}

#[test]
fn xen_slots_load_their_number_call_and_return() {
    for bitness in BITNESSES {
        for (insn, code) in INSNS {
            let mut page = [0; PAGE_SIZE];
            xen::write_page(&mut page, insn);
            for (number, slot) in page.chunks_exact(xen::SLOT_LEN).enumerate() {
                let decoded = decode(slot, bitness);
                let head: Vec<_> = decoded.iter().take(3).map(Instruction::code).collect();
                assert_eq!(head, [Code::Mov_r32_imm32, code, ret(bitness)]);
                assert_eq!(decoded[0].op0_register(), Register::EAX);
                assert_eq!(decoded[0].immediate32() as usize, number);
                assert_eq!(decoded.len(), 3 + 23);
                assert!(decoded[3..].iter().all(|pad| pad.code() == Code::Int3));
            }
        }
    }
}

#[test]
fn hyperv_code_calls_and_returns_and_marks_its_calls_beside_xen() {
    for bitness in BITNESSES {
        for (insn, code) in INSNS {
            assert_eq!(codes(&hyperv::code(insn), bitness), [code, ret(bitness)]);
            let with_xen = hyperv::code_with_xen(insn);
            assert_eq!(
                codes(&with_xen, bitness),
                [Code::Or_EAX_imm32, code, ret(bitness)]
            );
            assert_eq!(decode(&with_xen, bitness)[0].immediate32(), 0x8000_0000);
        }
    }
}

#[test]
fn h8_an_unaligned_write_is_a_mov_and_a_return_until_its_last_store() {
    // What the guests of 2007 reserve: mov eax, -38; ret.
    let before = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3];
    for stub in [Stub::Vmx, Stub::Svm, Stub::Pio(PioPort::DEFAULT)] {
        let mut now = before;
        for at in (0..Stub::LEN).rev() {
            for bitness in BITNESSES {
                let decoded = decode(&now, bitness);
                assert_eq!(
                    codes(&now, bitness),
                    [Code::Mov_r32_imm32, ret(bitness)],
                    "{now:02x?}"
                );
                assert!(
                    (decoded[0].immediate32() as i32) < 0,
                    "{now:02x?} would be success"
                );
            }
            now[at] = stub.bytes()[at];
        }
        assert_eq!(Stub::identify(&now), Some(stub));
        assert_eq!(now[4..], before[4..]);
    }
}
