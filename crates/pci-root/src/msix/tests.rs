// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

mod model;

#[derive(Default)]
struct Sink {
    sent: Mutex<Vec<Message>>,
    changed: Mutex<Vec<(u16, Option<Message>)>>,
}

impl MsiSink for Sink {
    fn send(&self, message: Message) {
        lock(&self.sent).push(message);
    }

    fn changed(&self, vector: u16, message: Option<Message>) {
        lock(&self.changed).push((vector, message));
    }
}

impl Sink {
    fn sent(&self) -> Vec<Message> {
        std::mem::take(&mut lock(&self.sent))
    }

    fn changed(&self) -> Vec<(u16, Option<Message>)> {
        std::mem::take(&mut lock(&self.changed))
    }
}

fn msix(vectors: u16) -> (Arc<Sink>, Msix) {
    let sink = Arc::new(Sink::default());
    let msix = Msix::new(vectors, Arc::clone(&sink) as Arc<dyn MsiSink>).unwrap();
    (sink, msix)
}

fn message(vector: u16) -> Message {
    Message {
        address: 0xfee0_0000 | u64::from(vector) << 12,
        data: 0x30 + u32::from(vector),
    }
}

/// As Linux does: address low, address high, data, then the mask bit.
fn set(msix: &Msix, vector: u16, masked: bool) {
    let entry = u64::from(vector) * ENTRY_SIZE;
    let Message { address, data } = message(vector);
    msix.write_table(entry, &(address as u32).to_le_bytes());
    msix.write_table(entry + 4, &((address >> 32) as u32).to_le_bytes());
    msix.write_table(entry + 8, &data.to_le_bytes());
    msix.write_table(entry + 12, &u32::from(masked).to_le_bytes());
}

fn pending(msix: &Msix) -> Vec<u16> {
    let mut bits = vec![0; msix.pba_size() as usize];
    msix.read_pba(0, &mut bits);
    let is_set = |vector: &u16| bits[usize::from(vector / 8)] >> (vector % 8) & 1 != 0;
    (0..msix.vectors()).filter(is_set).collect()
}

#[test]
fn a_function_has_1_to_2048_vectors() {
    for (vectors, good) in [
        (0, false),
        (1, true),
        (2048, true),
        (2049, false),
        (u16::MAX, false),
    ] {
        let made = Msix::new(vectors, Arc::new(Sink::default()));
        assert_eq!(made.is_ok(), good, "{vectors}");
    }
    let (_, large) = msix(2048);
    assert_eq!((large.table_size(), large.pba_size()), (0x8000, 0x100));
    assert_eq!(msix(65).1.pba_size(), 16);
}

#[test]
fn what_becomes_of_an_interrupt() {
    // (control, vector is masked, result)
    for (control, masked, fired) in [
        (0x00, false, Fired::Dropped),
        (0x00, true, Fired::Dropped),
        (FUNCTION_MASK, false, Fired::Dropped),
        (ENABLE, false, Fired::Sent),
        (ENABLE, true, Fired::Pending),
        (ENABLE | FUNCTION_MASK, false, Fired::Pending),
        (ENABLE | FUNCTION_MASK, true, Fired::Pending),
    ] {
        let (sink, msix) = msix(3);
        set(&msix, 1, masked);
        msix.write_control(control);
        assert_eq!(msix.fire(1), fired, "{control:#x} {masked}");
        let sent = if fired == Fired::Sent {
            vec![message(1)]
        } else {
            vec![]
        };
        assert_eq!(sink.sent(), sent);
        let waits = if fired == Fired::Pending {
            vec![1]
        } else {
            vec![]
        };
        assert_eq!(pending(&msix), waits);
        assert_eq!(msix.message(1).is_some(), fired == Fired::Sent);
        assert_eq!(msix.fire(3), Fired::Dropped);
        assert_eq!(msix.fire(u16::MAX), Fired::Dropped);
    }
}

#[test]
fn pending_vectors_are_sent_once_at_each_way_to_unmask() {
    let (sink, msix) = msix(130);
    for vector in 0..130 {
        set(&msix, vector, false);
    }
    msix.write_control(ENABLE | FUNCTION_MASK);
    for vector in [129, 64, 0, 129] {
        assert_eq!(msix.fire(vector), Fired::Pending);
    }
    assert_eq!(pending(&msix), [0, 64, 129]);
    // One of them is also masked itself.
    set(&msix, 64, true);
    msix.write_control(ENABLE);
    assert_eq!(sink.sent(), [message(0), message(129)]);
    assert_eq!(pending(&msix), [64]);
    set(&msix, 64, false);
    assert_eq!(sink.sent(), [message(64)]);
    assert!(pending(&msix).is_empty());
    msix.write_control(ENABLE);
    assert_eq!(sink.sent(), []);
}

#[test]
fn what_waits_goes_to_where_the_vector_was_moved() {
    let (sink, msix) = msix(1);
    set(&msix, 0, true);
    msix.write_control(ENABLE);
    assert_eq!(msix.fire(0), Fired::Pending);
    msix.write_table(8, &0x99u32.to_le_bytes());
    msix.write_table(12, &[0]);
    let moved = Message {
        data: 0x99,
        ..message(0)
    };
    assert_eq!(sink.sent(), [moved]);
}

#[test]
fn msix_that_goes_off_forgets_what_was_pending() {
    let (sink, msix) = msix(2);
    set(&msix, 0, false);
    msix.write_control(ENABLE | FUNCTION_MASK);
    assert_eq!(msix.fire(0), Fired::Pending);
    msix.write_control(0);
    assert!(pending(&msix).is_empty());
    msix.write_control(ENABLE);
    assert_eq!(sink.sent(), []);
}

#[test]
fn the_sink_hears_of_each_message_that_changes() {
    let (sink, msix) = msix(3);
    set(&msix, 0, false);
    set(&msix, 2, false);
    assert_eq!(sink.changed(), []);
    msix.write_control(ENABLE);
    assert_eq!(
        sink.changed(),
        [(0, Some(message(0))), (2, Some(message(2)))]
    );
    msix.write_table(2 * ENTRY_SIZE + 8, &message(2).data.to_le_bytes());
    assert_eq!(sink.changed(), []);
    msix.write_table(2 * ENTRY_SIZE + 8, &[0x77]);
    let moved = Message {
        data: 0x77,
        ..message(2)
    };
    assert_eq!(sink.changed(), [(2, Some(moved))]);
    msix.write_table(2 * ENTRY_SIZE + 12, &[1]);
    assert_eq!(sink.changed(), [(2, None)]);
    msix.write_control(ENABLE | FUNCTION_MASK);
    assert_eq!(sink.changed(), [(0, None)]);
}

#[test]
fn the_table_takes_every_width_at_every_place() {
    let size = 3 * ENTRY_SIZE as usize;
    for len in [1, 2, 3, 4, 5, 7, 8, 16, 40] {
        for at in 0..size + 2 {
            let (_, msix) = msix(3);
            msix.write_table(at as u64, &vec![0xff; len]);
            let mut table = vec![0xee; size + 64];
            msix.read_table(0, &mut table);
            for (i, byte) in table.iter().enumerate() {
                let first = match i % 16 {
                    _ if i >= size => 0,
                    VECTOR_CONTROL => 1,
                    _ => 0,
                };
                let written = match i % 16 {
                    _ if i >= size => 0,
                    0 => 0xfc,
                    13..16 => 0,
                    VECTOR_CONTROL => 1,
                    _ => 0xff,
                };
                let expected = if (at..at + len).contains(&i) {
                    written
                } else {
                    first
                };
                assert_eq!(*byte, expected, "{len} bytes at {at}, byte {i}");
            }
            let mut again = vec![0xee; len];
            msix.read_table(at as u64, &mut again);
            assert_eq!(again, table[at..at + len]);
        }
    }
}

const VECTOR_CONTROL: usize = 12;

#[test]
fn offsets_that_no_table_has_are_harmless() {
    let (sink, msix) = msix(1);
    msix.write_control(ENABLE);
    for offset in [
        16,
        u64::from(u32::MAX),
        65536 * ENTRY_SIZE,
        u64::MAX - 3,
        u64::MAX,
    ] {
        let mut data = [0xee; 8];
        msix.write_table(offset, &[0; 8]);
        msix.read_table(offset, &mut data);
        assert_eq!(data, [0; 8]);
        msix.read_pba(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert_eq!(msix.message(0), None);
    assert_eq!(sink.changed(), []);
}

#[test]
fn a_state_comes_back_and_sends_nothing() {
    let (_, saved) = msix(70);
    set(&saved, 3, false);
    set(&saved, 69, true);
    saved.write_control(ENABLE);
    saved.fire(69);
    let state = saved.save();

    let (sink, fresh) = msix(70);
    assert_eq!(fresh.restore(&state), Ok(()));
    assert_eq!(fresh.save(), state);
    assert_eq!(
        (sink.sent(), sink.changed()),
        (vec![], vec![(3, Some(message(3)))])
    );
    set(&fresh, 69, false);
    assert_eq!(sink.sent(), [message(69)]);
}

#[test]
fn a_forged_state_changes_nothing() {
    let (sink, msix) = msix(2);
    set(&msix, 0, false);
    msix.write_control(ENABLE);
    sink.changed();
    let before = msix.save();
    let forged = |forge: fn(&mut MsixState)| {
        let mut state = before.clone();
        forge(&mut state);
        state
    };
    for (state, error) in [
        (
            forged(|s| s.vectors.truncate(1)),
            MsixStateError::Vectors {
                found: 1,
                expected: 2,
            },
        ),
        (
            forged(|s| s.vectors.clear()),
            MsixStateError::Vectors {
                found: 0,
                expected: 2,
            },
        ),
        (
            forged(|s| s.vectors[1].address = 2),
            MsixStateError::Address {
                vector: 1,
                address: 2,
            },
        ),
        (
            forged(|s| s.vectors[0].pending = true),
            MsixStateError::Pending { vector: 0 },
        ),
        (
            forged(|s| {
                s.vectors[1].pending = true;
                s.enabled = false;
            }),
            MsixStateError::Pending { vector: 1 },
        ),
    ] {
        assert_eq!(msix.restore(&state), Err(error));
        assert_eq!(msix.save(), before);
    }
    assert_eq!((sink.sent(), sink.changed()), (vec![], vec![]));
}

#[test]
fn an_interrupt_never_goes_where_the_vector_was_before() {
    /// Records messages sent after `gate` says that the vector has left its first address.
    #[derive(Default)]
    struct Moving {
        late: Mutex<u32>,
        moved: std::sync::atomic::AtomicBool,
    }
    impl MsiSink for Moving {
        fn send(&self, message: Message) {
            if self.moved.load(std::sync::atomic::Ordering::SeqCst) && message.data == 1 {
                *lock(&self.late) += 1;
            }
        }
    }
    let sink = Arc::new(Moving::default());
    let msix = Msix::new(1, Arc::clone(&sink) as Arc<dyn MsiSink>).unwrap();
    msix.write_control(ENABLE);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| (0..20_000).map(|_| msix.fire(0)).last());
        for round in 0..1000 {
            sink.moved.store(false, std::sync::atomic::Ordering::SeqCst);
            msix.write_table(8, &[1]);
            msix.write_table(12, &[0]);
            msix.write_table(12, &[1]);
            // From here on nothing may be sent to the first address.
            sink.moved.store(true, std::sync::atomic::Ordering::SeqCst);
            msix.write_table(8, &[2 + (round % 8) as u8]);
            msix.write_table(12, &[0]);
            msix.write_table(12, &[1]);
        }
        assert!(device.join().is_ok());
    });
    assert_eq!(*lock(&sink.late), 0);
}
