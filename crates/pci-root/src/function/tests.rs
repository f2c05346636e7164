// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Mutex;

use super::*;
use crate::bar::{Bar, BarError};
use crate::config::{Capability, CapabilityError, Class, Ids};
use crate::msix::{Fired, Message, MsiSink};

struct NoSink;

impl MsiSink for NoSink {
    fn send(&self, _: Message) {}
}

/// The calls of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Read(u8, u64, usize),
    Write(u8, u64, Vec<u8>),
    ReadCapability(usize, u8, usize),
    WriteCapability(usize, u8, Vec<u8>),
}

/// Answers 0xd0 everywhere.
#[derive(Default)]
struct Recorder(Mutex<Vec<Asked>>);

impl Recorder {
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl PciDevice for Recorder {
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply {
        lock(&self.0).push(Asked::Read(bar, offset, data.len()));
        data.fill(0xd0);
        Reply::Done
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Reply {
        lock(&self.0).push(Asked::Write(bar, offset, data.to_vec()));
        Reply::Done
    }

    fn read_capability(&self, capability: usize, offset: u8, data: &mut [u8]) {
        lock(&self.0).push(Asked::ReadCapability(capability, offset, data.len()));
        data.fill(0xd0);
    }

    fn write_capability(&self, capability: usize, offset: u8, data: &[u8]) {
        lock(&self.0).push(Asked::WriteCapability(capability, offset, data.to_vec()));
    }
}

fn ids() -> Ids {
    Ids::new(0x1af4, 0x1044, Class::OTHER)
}

/// BAR 0 has the table at 0x100 and the pending bits at 0x200; there is also BAR 2. Capabilities: MSI-X at 0x40, fixed
/// at 0x4c, live at 0x50 with 6 bytes, live at 0x58 with 4.
fn function() -> (Arc<Recorder>, Arc<Msix>, Function) {
    let device = Arc::new(Recorder::default());
    let msix = Arc::new(Msix::new(3, Arc::new(NoSink)).unwrap());
    let place = MsixPlace {
        table: (0, 0x100),
        pba: (0, 0x200),
    };
    let build = || -> Result<Function, FunctionError> {
        Ok(FunctionBuilder::new(ids())?
            .bar(0, Bar::memory64(0x1000))?
            .bar(2, Bar::memory32(0x1000))?
            .msix(Arc::clone(&msix), place)?
            .capability(&Capability::fixed(9, [4, 5]))?
            .capability(&Capability::live(9, 4))?
            .capability(&Capability::live(9, 2))?
            .build(Arc::clone(&device) as Arc<dyn PciDevice>))
    };
    let function = build().unwrap();
    (device, msix, function)
}

#[test]
fn functions_that_can_not_be_are_refused() {
    let msix = |vectors| Arc::new(Msix::new(vectors, Arc::new(NoSink)).unwrap());
    let place = |table, pba| MsixPlace { table, pba };
    let with = |vectors, table, pba| {
        let builder = FunctionBuilder::new(ids())?.bar(0, Bar::memory32(0x1000))?;
        builder.msix(msix(vectors), place(table, pba)).map(drop)
    };
    let refused = |bar, offset, size| Err(FunctionError::MsixPlace { bar, offset, size });
    for (vectors, table, pba, expected) in [
        (2, (0, 0), (0, 0x20), Ok(())),
        (2, (0, 0xfe0), (0, 0), Ok(())),
        (2, (0, 0), (0, 0xff8), Ok(())),
        (2, (1, 0), (0, 0), refused(1, 0, 32)),
        (2, (6, 0), (0, 0), refused(6, 0, 32)),
        (2, (0, 0), (9, 0), refused(9, 0, 8)),
        (2, (0, 4), (0, 0x100), refused(0, 4, 32)),
        (2, (0, 0xfe8), (0, 0), refused(0, 0xfe8, 32)),
        (2, (0, 0), (0, 0x1000), refused(0, 0x1000, 8)),
        (2, (0, u64::MAX - 7), (0, 0), refused(0, u64::MAX - 7, 32)),
        (2, (0, 1 << 32), (0, 0), refused(0, 1 << 32, 32)),
        (2, (0, 0), (0, 0x18), refused(0, 0x18, 8)),
        (2, (0, 8), (0, 0x10), refused(0, 0x10, 8)),
        (2048, (0, 0), (0, 0), refused(0, 0, 0x8000)),
    ] {
        assert_eq!(with(vectors, table, pba), expected, "{table:x?} {pba:x?}");
    }
    let vendor = Ids {
        vendor: 0xffff,
        ..ids()
    };
    assert_eq!(
        FunctionBuilder::new(vendor).err(),
        Some(FunctionError::Vendor)
    );
    let builder = || FunctionBuilder::new(ids()).unwrap();
    let bar = BarError::Size { number: 0, size: 3 };
    assert_eq!(
        builder().bar(0, Bar::memory32(3)).err(),
        Some(FunctionError::Bar(bar))
    );
    let long = builder().capability(&Capability::live(9, 250)).err();
    let error = CapabilityError { id: 9, len: 252 };
    assert_eq!(long, Some(FunctionError::Capability(error)));
    let once = builder().bar(0, Bar::memory32(0x1000)).unwrap();
    let once = once.msix(msix(2), place((0, 0), (0, 0x20))).unwrap();
    let twice = once.msix(msix(2), place((0, 0), (0, 0x20))).err();
    assert_eq!(twice, Some(FunctionError::MsixTwice));
}

#[test]
fn the_msix_capability_says_what_there_is() {
    let (_, _, function) = function();
    let mut capability = [0; 12];
    function.read_config(0x40, &mut capability);
    assert_eq!(capability, [0x11, 0x4c, 2, 0, 0, 1, 0, 0, 0, 2, 0, 0]);
}

#[test]
fn message_control_is_the_vectors_at_every_width() {
    for len in 1..=8 {
        for register in 0x3c..0x48u16 {
            let (_, msix, function) = function();
            let covers = (register..register + len).contains(&0x43);
            assert!(!function.write_config(register, &vec![0xff; len.into()]));
            assert_eq!(
                msix.control(),
                if covers { 0xc0 } else { 0 },
                "{len} at {register:#x}"
            );
            msix.write_control(0x80);
            let mut all = [0; 0x100];
            function.read_config(0, &mut all);
            assert_eq!(all[0x43], 0x80);
            let mut data = vec![0; len.into()];
            function.read_config(register, &mut data);
            assert_eq!(data, all[register.into()..(register + len).into()]);
        }
    }
}

#[test]
fn live_capabilities_are_the_devices_at_every_width() {
    for len in 1..=12u16 {
        for register in 0x44..0x60u16 {
            let (device, _, function) = function();
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            let value: Vec<u8> = (0..len as u8).collect();
            let mut expected = vec![0; len.into()];
            for (number, start, end) in [(1, 0x50, 0x56), (2, 0x58, 0x5c)] {
                let first = register.max(start + 2);
                let last = (register + len).min(end);
                if first < last {
                    let part = usize::from(first - register)..usize::from(last - register);
                    let offset = (first - start) as u8;
                    reads.push(Asked::ReadCapability(number, offset, part.len()));
                    writes.push(Asked::WriteCapability(
                        number,
                        offset,
                        value[part.clone()].to_vec(),
                    ));
                    expected[part].fill(0xd0);
                }
            }
            let mut data = vec![0; len.into()];
            function.read_config(register, &mut data);
            assert_eq!(device.asked(), reads, "{len} at {register:#x}");
            for (at, byte) in (register..).zip(&data) {
                let is_live = (0x52..0x56).contains(&at) || (0x5a..0x5c).contains(&at);
                assert_eq!(*byte == 0xd0, is_live, "{at:#x}");
            }
            assert!(!function.write_config(register, &value));
            assert_eq!(device.asked(), writes, "{len} at {register:#x}");
        }
    }
}

#[test]
fn table_and_pending_bits_are_no_business_of_the_device() {
    // Table: 0x100 to 0x130. Pending bits: 0x200 to 0x208.
    for len in [1, 2, 3, 4, 7, 8, 16] {
        for offset in (0xf0..0x140).chain(0x1f0..0x210) {
            let (device, msix, function) = function();
            msix.write_control(0x80);
            msix.fire(0);
            let end = offset + len as u64;
            let (mut table, mut pba) = (0, 0);
            for at in offset..end {
                table += usize::from((0x100..0x130).contains(&at));
                pba += usize::from((0x200..0x208).contains(&at));
            }
            let mut data = vec![0; len];
            let reply = function.read_bar(0, offset, &mut data);
            let asked = device.asked();
            let mut expected = vec![0; len];
            if table == len {
                msix.read_table(offset - 0x100, &mut expected);
                assert_eq!((reply, asked, data), (Reply::Done, vec![], expected));
            } else if pba == len {
                msix.read_pba(offset - 0x200, &mut expected);
                assert_eq!((reply, asked, data), (Reply::Done, vec![], expected));
            } else if table + pba > 0 {
                assert_eq!((reply, asked), (Reply::Unclaimed, vec![]));
            } else {
                assert_eq!(
                    (reply, asked),
                    (Reply::Done, vec![Asked::Read(0, offset, len)])
                );
            }
            let before = msix.save();
            let value = vec![0xff; len];
            let reply = function.write_bar(0, offset, &value);
            let claimed = table == len || pba == len || table + pba == 0;
            assert_eq!(reply == Reply::Done, claimed);
            let of_device = table + pba == 0;
            let asked = if of_device {
                vec![Asked::Write(0, offset, value)]
            } else {
                vec![]
            };
            assert_eq!(device.asked(), asked);
            assert!(table == len || msix.save() == before);
            assert_eq!(msix.fire(1), Fired::Pending);
        }
    }
    // The other BAR has neither.
    let (device, _, function) = function();
    assert_eq!(function.read_bar(2, 0x100, &mut [0; 4]), Reply::Done);
    assert_eq!(function.write_bar(2, 0x200, &[1]), Reply::Done);
    let asked = [Asked::Read(2, 0x100, 4), Asked::Write(2, 0x200, vec![1])];
    assert_eq!(device.asked(), asked);
}

#[test]
fn offsets_that_no_bar_has_are_harmless() {
    let (device, _, function) = function();
    for offset in [u64::MAX - 7, u64::MAX] {
        assert_eq!(function.read_bar(0, offset, &mut [0; 16]), Reply::Done);
        assert_eq!(function.write_bar(0, offset, &[0; 16]), Reply::Done);
    }
    assert_eq!(device.asked().len(), 4);
    assert_eq!(function.read_bar(0, 0x130, &mut []), Reply::Done);
}

#[test]
fn a_function_that_no_root_has_answers_nowhere() {
    let (_, _, function) = function();
    assert!(!function.write_config(4, &[2]));
    assert_eq!(function.decoded(0), None);
    assert_eq!(function.decoded(6), None);
}

#[test]
fn a_forged_state_changes_nothing() {
    let (_, msix, function) = function();
    msix.write_control(0x80);
    let before = function.save();
    let mut forged = before.clone();
    forged.config[4] = 6;
    forged.msix.as_mut().unwrap().vectors.pop();
    assert!(matches!(
        function.restore(&forged),
        Err(FunctionStateError::Msix(_))
    ));
    forged = before.clone();
    forged.config[0] ^= 1;
    forged.msix.as_mut().unwrap().enabled = false;
    assert!(matches!(
        function.restore(&forged),
        Err(FunctionStateError::Config(_))
    ));
    forged = FunctionState {
        msix: None,
        ..before.clone()
    };
    assert_eq!(function.restore(&forged), Err(FunctionStateError::HasMsix));
    assert_eq!(function.save(), before);

    let plain = FunctionBuilder::new(ids())
        .unwrap()
        .build(Arc::new(NoDevice));
    let state = plain.save();
    assert_eq!(plain.restore(&state), Ok(false));
    let forged = FunctionState {
        msix: before.msix,
        ..state
    };
    assert_eq!(plain.restore(&forged), Err(FunctionStateError::HasMsix));
}
