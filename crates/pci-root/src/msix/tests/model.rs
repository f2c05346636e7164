// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random accesses and interrupts, compared to a naive model: an interrupt is sent, pending or dropped, and nothing
//! else is ever sent.

use proptest::prelude::*;

use super::*;

const COUNT: u16 = 70;

#[derive(Clone, Debug)]
enum Step {
    Fire(u16),
    Control(u8),
    Table(u64, Vec<u8>),
    Mask(u16, bool),
    /// Restore the state to another table.
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    // A few vectors at the edges, so that steps hit the same ones.
    let vector = || prop::sample::select(vec![0, 1, 63, 64, 69]);
    let bytes = prop::collection::vec(any::<u8>(), 1..=8);
    let place = (vector(), 0..20u64).prop_map(|(vector, at)| u64::from(vector) * ENTRY_SIZE + at);
    prop_oneof![
        3 => prop_oneof![vector(), 0..=COUNT + 1].prop_map(Step::Fire),
        2 => any::<u8>().prop_map(Step::Control),
        2 => (place, bytes).prop_map(|(place, bytes)| Step::Table(place, bytes)),
        3 => (vector(), any::<bool>()).prop_map(|(vector, masked)| Step::Mask(vector, masked)),
        1 => Just(Step::Restore),
    ]
}

/// What a guest knows: the table's bytes, and the pending vectors.
struct Model {
    table: Vec<u8>,
    control: u8,
    waiting: Vec<u16>,
}

impl Model {
    fn message(&self, vector: u16) -> Option<Message> {
        let entry = &self.table[usize::from(vector) * 16..][..16];
        let open = self.control == 0x80 && entry[12] == 0;
        open.then(|| Message {
            address: u64::from_le_bytes(entry[..8].try_into().unwrap()),
            data: u32::from_le_bytes(entry[8..12].try_into().unwrap()),
        })
    }

    fn write(&mut self, place: u64, bytes: &[u8]) {
        for (at, byte) in (place as usize..).zip(bytes) {
            let mask = match at % 16 {
                0 => 0xfc,
                12 => 1,
                13..16 => 0,
                _ => 0xff,
            };
            if let Some(old) = self.table.get_mut(at) {
                *old = byte & mask;
            }
        }
    }

    /// The messages to send now, in the order of the vectors.
    fn settle(&mut self) -> Vec<Message> {
        if self.control & 0x80 == 0 {
            self.waiting.clear();
        }
        self.waiting.sort_unstable();
        self.waiting.dedup();
        let (sent, waiting) = self
            .waiting
            .iter()
            .partition(|vector| self.message(**vector).is_some());
        self.waiting = waiting;
        Vec::into_iter(sent)
            .filter_map(|vector: u16| self.message(vector))
            .collect()
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_made_up(steps in prop::collection::vec(step(), 1..80)) {
        let (sink, mut table) = msix(COUNT);
        let mut current: Vec<_> = vec![None; COUNT.into()];
        let entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let mut model = Model { table: entry.repeat(COUNT.into()), control: 0, waiting: Vec::new() };
        for step in steps {
            match step {
                Step::Fire(vector) => {
                    let expected = if vector >= COUNT || model.control & 0x80 == 0 {
                        Fired::Dropped
                    } else if model.message(vector).is_some() {
                        Fired::Sent
                    } else {
                        Fired::Pending
                    };
                    prop_assert_eq!(table.fire(vector), expected);
                    if expected != Fired::Dropped {
                        model.waiting.push(vector);
                    }
                }
                Step::Control(value) => {
                    table.write_control(value);
                    model.control = value & 0xc0;
                }
                Step::Table(place, bytes) => {
                    table.write_table(place, &bytes);
                    model.write(place, &bytes);
                }
                Step::Mask(vector, masked) => {
                    let place = u64::from(vector) * ENTRY_SIZE + 12;
                    table.write_table(place, &[masked.into(), 0, 0, 0]);
                    model.write(place, &[masked.into(), 0, 0, 0]);
                }
                Step::Restore => {
                    let other = Msix::new(COUNT, Arc::clone(&sink) as Arc<dyn MsiSink>).unwrap();
                    prop_assert_eq!(other.restore(&table.save()), Ok(()));
                    current.fill(None);
                    table = other;
                }
            }
            prop_assert_eq!(sink.sent(), model.settle());
            for (vector, message) in sink.changed() {
                prop_assert_ne!(&current[usize::from(vector)], &message);
                current[usize::from(vector)] = message;
            }
            let mut bytes = vec![0; model.table.len()];
            table.read_table(0, &mut bytes);
            prop_assert!(bytes == model.table);
            prop_assert_eq!(&pending(&table), &model.waiting);
            prop_assert_eq!(table.control(), model.control);
            for vector in 0..COUNT {
                prop_assert_eq!(table.message(vector), model.message(vector));
                prop_assert_eq!(current[usize::from(vector)], model.message(vector));
            }
        }
    }
}
