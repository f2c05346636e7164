// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header of a packet, `struct virtio_vsock_hdr` (virtio 1.4, 5.10.6).

/// Its length in bytes.
pub const HEADER: usize = 44;

/// The CID of the host (5.10.4).
pub const HOST_CID: u64 = 2;

/// The type of stream sockets (5.10.6.2).
pub(super) const STREAM: u16 = 1;

/// The operations (5.10.6).
pub(super) mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The flags of a shutdown (5.10.6.5): which direction its sender no longer uses.
pub(super) mod shut {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A header as it is in guest memory. Guest memory is accessed in units of a value's parts.
pub(super) type Words = [u32; HEADER / 4];

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// The number of bytes of the payload.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_words(words: Words) -> Self {
        let words = words.map(u32::from_le);
        let wide = |low: usize| u64::from(words[low]) | u64::from(words[low + 1]) << 32;
        Header {
            src_cid: wide(0),
            dst_cid: wide(2),
            src_port: words[4],
            dst_port: words[5],
            len: words[6],
            kind: words[7] as u16,
            op: (words[7] >> 16) as u16,
            flags: words[8],
            buf_alloc: words[9],
            fwd_cnt: words[10],
        }
    }

    pub(super) fn to_words(self) -> Words {
        let words = [
            self.src_cid as u32,
            (self.src_cid >> 32) as u32,
            self.dst_cid as u32,
            (self.dst_cid >> 32) as u32,
            self.src_port,
            self.dst_port,
            self.len,
            u32::from(self.kind) | u32::from(self.op) << 16,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        words.map(u32::to_le)
    }

    /// The answer to a packet of the guest that belongs to no connection. A reset has no answer: the next connection may
    /// have the same ports.
    pub(super) fn refusal(&self) -> Option<Header> {
        let refusal = Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        };
        (self.op != op::RST).then_some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_its_place() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 0x1112_1314_1516_1718,
            src_port: 0x2122_2324,
            dst_port: 0x3132_3334,
            len: 0x4142_4344,
            kind: 0x5152,
            op: 0x6162,
            flags: 0x7172_7374,
            buf_alloc: 0x8182_8384,
            fwd_cnt: 0x9192_9394,
        };
        let words = header.to_words();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes.len(), HEADER);
        for (at, first) in [(0, 8), (8, 0x18), (16, 0x24), (20, 0x34), (24, 0x44)] {
            assert_eq!(bytes[at], first);
        }
        for (at, first) in [(28, 0x52), (30, 0x62), (32, 0x74), (36, 0x84), (40, 0x94)] {
            assert_eq!(bytes[at], first);
        }
        assert_eq!(Header::from_words(words), header);
    }

    #[test]
    fn a_reset_has_no_answer() {
        let packet = |op| Header {
            src_port: 7,
            dst_port: 8,
            kind: 9,
            op,
            ..Header::default()
        };
        let refusal = packet(op::RW).refusal().unwrap();
        assert_eq!((refusal.src_port, refusal.dst_port), (8, 7));
        assert_eq!((refusal.kind, refusal.op), (9, op::RST));
        assert_eq!(packet(op::RST).refusal(), None);
    }
}
