// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state machine, with any packets and any behaviour of the host's process, in any order.

use proptest::prelude::*;

use super::*;

const CID: u64 = 3;

/// Something that happens.
#[derive(Clone, Debug)]
enum Act {
    /// The guest sends a packet: operation, length, flags, and its numbers.
    Packet(u16, u32, u32, u32, u32),
    /// The process takes up to so many bytes.
    Take(u32),
    /// The process has so many bytes.
    Send(u32),
    /// The process no longer uses these directions.
    End(u32),
    /// The guest has a buffer for a packet.
    Buffer,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let op = prop_oneof![
        8 => Just(op::RW),
        4 => Just(op::CREDIT_UPDATE),
        2 => Just(op::RESPONSE),
        1 => 0..10_u16,
    ];
    let number = || prop_oneof![0..5000_u32, Just(BUFFER), any::<u32>()];
    let act = prop_oneof![
        6 => (op, 0..20_000_u32, 0..8_u32, number(), number())
            .prop_map(|(op, len, flags, alloc, taken)| Act::Packet(op, len, flags, alloc, taken)),
        3 => (0..100_000_u32).prop_map(Act::Take),
        3 => (1..100_000_u32).prop_map(Act::Send),
        1 => (0..4_u32).prop_map(Act::End),
        6 => Just(Act::Buffer),
    ];
    proptest::collection::vec(act, 0..200)
}

/// What must hold, whatever happens.
#[derive(Default)]
struct Model {
    /// The bytes of the guest that the process has still to take.
    kept: u32,
    /// All that was sent to the guest, and all that the process took.
    sent: u32,
    taken: u32,
    /// What the guest said last.
    credit: u32,
    flags: u32,
    requests: u32,
    responses: u32,
    is_open: bool,
}

impl Model {
    fn guest_says(&mut self, flow: &mut Flow, header: &Header) -> bool {
        let was_receiving = flow.is_receiving();
        let step = flow.take(header, self.kept as usize);
        match step {
            Step::Data => {
                assert!(self.is_open && was_receiving);
                self.kept += header.len;
                assert!(self.kept <= BUFFER, "more than the guest was told of");
            }
            Step::Rest if header.op == op::RW => self.taken = self.taken.wrapping_add(header.len),
            Step::Opened => {
                assert!(!self.is_open && self.requests == 1);
                self.is_open = true;
            }
            Step::Gone | Step::Reset => return false,
            Step::Rest | Step::Shut => assert!(self.is_open),
        }
        true
    }

    fn host_sends(&mut self, flow: &mut Flow, len: u32) {
        let len = len.min(flow.credit());
        if !flow.is_sending() || len == 0 {
            return;
        }
        assert!(self.is_open && self.flags & shut::SEND == 0);
        let before = flow.credit();
        let header = flow.data(CID, len);
        self.sent = self.sent.wrapping_add(len);
        assert_eq!((header.op, header.len), (op::RW, len));
        assert_eq!(flow.credit(), before - len);
        self.check(&header);
    }

    /// Each packet has valid numbers (5.10.6.3) and addresses.
    fn check(&self, header: &Header) {
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER, self.taken));
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(
            (header.src_port, header.dst_port, header.kind),
            (5, 6, STREAM)
        );
    }

    fn packet(&mut self, flow: &mut Flow) {
        let was_due = flow.is_due();
        let Some(header) = flow.packet(CID) else {
            assert!(!was_due);
            return;
        };
        self.check(&header);
        match header.op {
            op::REQUEST => self.requests += 1,
            op::RESPONSE => self.responses += 1,
            op::SHUTDOWN => {
                assert_eq!(header.flags & self.flags, self.flags, "flags are permanent");
                self.flags = header.flags;
            }
            op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
            other => panic!("{other}"),
        }
        assert!(self.requests <= 1 && self.responses <= 1);
    }

    fn run(&mut self, flow: &mut Flow, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Packet(op, len, flags, buf_alloc, fwd_cnt) => {
                    let header = Header {
                        src_port: 6,
                        dst_port: 5,
                        len,
                        op,
                        flags,
                        buf_alloc,
                        fwd_cnt,
                        ..Header::default()
                    };
                    if !self.guest_says(flow, &header) {
                        return;
                    }
                    let on_way = self.sent.wrapping_sub(fwd_cnt);
                    self.credit = buf_alloc.saturating_sub(on_way);
                    assert_eq!(flow.credit(), self.credit);
                }
                Act::Take(len) => {
                    let len = len.min(self.kept);
                    self.kept -= len;
                    self.taken = self.taken.wrapping_add(len);
                    flow.taken(len);
                }
                Act::Send(len) => self.host_sends(flow, len),
                Act::End(directions) if self.is_open => {
                    flow.end(directions);
                    assert!(directions & shut::SEND == 0 || !flow.is_sending());
                    assert!(directions & shut::RECEIVE == 0 || !flow.is_receiving());
                }
                Act::End(_) => {}
                Act::Buffer => self.packet(flow),
            }
        }
        // All that is due has an end.
        for _ in 0..8 {
            self.packet(flow);
        }
        assert!(!flow.is_due());
    }
}

proptest! {
    #[test]
    fn a_connection_to_the_guest_keeps_the_rules(acts in acts()) {
        let mut flow = Flow::to_guest(Key { local: 5, peer: 6 });
        Model::default().run(&mut flow, acts);
    }

    #[test]
    fn a_connection_from_the_guest_keeps_the_rules(acts in acts(), buf_alloc: u32, fwd_cnt: u32) {
        let request = Header {
            src_port: 6,
            dst_port: 5,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        };
        let mut flow = Flow::from_guest(&request);
        let mut model = Model { is_open: true, ..Model::default() };
        model.run(&mut flow, acts);
    }

    #[test]
    fn any_words_are_a_header(words: [u32; 11]) {
        prop_assert_eq!(Header::from_words(words).to_words(), words);
    }
}
