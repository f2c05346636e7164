// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames: Ethernet (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791) and TCP (RFC 9293).
//!
//! Checksums of received packets are not looked at: the guest may leave them to the device, and its memory loses nothing.

use std::net::Ipv4Addr;

/// The most bytes of a frame that [`is_for`] looks at.
pub(crate) const HEAD: usize = ETHERNET + ARP;
const ETHERNET: usize = 14;
const ARP: usize = 28;
const IP: usize = 20;
const TCP: usize = 20;
/// The bytes of the option for the largest segment.
const MSS_OPTION: usize = 4;
/// The bytes of headers before a segment's data.
const HEADERS: usize = ETHERNET + IP + TCP;
/// The longest frame that is sent.
pub(super) const MAX_FRAME: usize = HEADERS + MAX_MSS;
/// The most bytes of data in a segment: those of an MTU of 1500.
pub(super) const MAX_MSS: usize = 1460;

/// The service's Ethernet address. It is Firecracker's.
const OUR_MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// The service's port.
pub(super) const PORT: u16 = 80;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 1 << 1;
pub(super) const RST: u8 = 1 << 2;
pub(super) const PSH: u8 = 1 << 3;
pub(super) const ACK: u8 = 1 << 4;

/// The guest's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub port: u16,
}

/// A frame for the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// The guest asks for our Ethernet address.
    Who { mac: [u8; 6], ip: Ipv4Addr },
    /// A TCP segment.
    Segment(Segment<'a>),
}

/// A TCP segment of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub from: Peer,
    /// The port that it is for.
    pub to: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// The largest segment that the guest takes, if it says so.
    pub mss: Option<u16>,
    pub data: &'a [u8],
}

impl Segment<'_> {
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A TCP segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing<'a> {
    pub to: Peer,
    /// The port that it is from.
    pub from: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub data: &'a [u8],
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    array::<4>(bytes, at).map(Ipv4Addr::from)
}

/// Whether a frame is for `ours`: an ARP request for it, or an IPv4 packet. The first [`HEAD`] bytes are enough.
pub(crate) fn is_for(frame: &[u8], ours: Ipv4Addr) -> bool {
    let at = match word(frame, 12) {
        Some(0x0800) => ETHERNET + 16,
        // For IPv4 over Ethernet.
        Some(0x0806) if array(frame, ETHERNET) == Some([0, 1, 8, 0, 6, 4]) => ETHERNET + 24,
        _ => return false,
    };
    address(frame, at) == Some(ours)
}

/// Reads a frame [for the service](is_for). `None` if it is nothing that gets an answer, such as a fragment.
pub(super) fn read(frame: &[u8]) -> Option<Incoming<'_>> {
    let packet = frame.get(ETHERNET..)?;
    if word(frame, 12) == Some(0x0806) {
        let is_request = word(packet, 6) == Some(1);
        let (mac, ip) = (array(packet, 8)?, address(packet, 14)?);
        return is_request.then_some(Incoming::Who { mac, ip });
    }
    let (first, total) = (*packet.first()?, usize::from(word(packet, 2)?));
    let head = usize::from(first & 15) * 4;
    let is_fragment = word(packet, 6)? & 0x3fff != 0;
    let is_tcp = *packet.get(9)? == 6;
    if first >> 4 != 4 || head < IP || is_fragment || !is_tcp {
        return None;
    }
    // A frame may be longer than its packet.
    let segment = packet.get(head..total.min(packet.len()))?;
    let data = usize::from(*segment.get(12)? >> 4) * 4;
    let from = Peer {
        mac: array(frame, 6)?,
        ip: address(packet, 12)?,
        port: word(segment, 0)?,
    };
    Some(Incoming::Segment(Segment {
        from,
        to: word(segment, 2)?,
        seq: long(segment, 4)?,
        ack: long(segment, 8)?,
        flags: *segment.get(13)?,
        window: word(segment, 14)?,
        mss: mss(segment.get(TCP..data)?),
        data: segment.get(data..)?,
    }))
}

/// The largest segment, from a segment's options.
fn mss(mut options: &[u8]) -> Option<u16> {
    loop {
        options = match *options {
            [] | [0, ..] => return None,
            [1, ref rest @ ..] => rest,
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([high, low])),
            // A length counts its own bytes.
            [_, length, ..] => options.get(usize::from(length.max(2))..)?,
            [_] => return None,
        };
    }
}

/// The start of a frame to the guest.
fn ethernet(out: &mut Vec<u8>, to: [u8; 6], kind: u16) {
    out.clear();
    out.extend(to);
    out.extend(OUR_MAC);
    out.extend(kind.to_be_bytes());
}

/// Makes `out` the frame that tells the guest our Ethernet address.
pub(super) fn write_arp(out: &mut Vec<u8>, ours: Ipv4Addr, mac: [u8; 6], ip: Ipv4Addr) {
    ethernet(out, mac, 0x0806);
    out.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend(OUR_MAC);
    out.extend(ours.octets());
    out.extend(mac);
    out.extend(ip.octets());
}

/// Makes `out` the frame of a segment. One that opens a connection tells our largest segment.
pub(super) fn write_segment(out: &mut Vec<u8>, ours: Ipv4Addr, segment: &Outgoing<'_>) {
    let has_mss = segment.flags & SYN != 0;
    let head = TCP + if has_mss { MSS_OPTION } else { 0 };
    // Fits: a frame has at most `MAX_FRAME` bytes.
    let length = (head + segment.data.len()) as u16;
    ethernet(out, segment.to.mac, 0x0800);
    out.extend([0x45, 0]);
    out.extend((IP as u16 + length).to_be_bytes());
    // Never a fragment, 64 hops, TCP, and the checksum.
    out.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    out.extend(ours.octets());
    out.extend(segment.to.ip.octets());
    let sum = checksum(sum(&out[ETHERNET..]));
    out[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());

    let at = out.len();
    out.extend(segment.from.to_be_bytes());
    out.extend(segment.to.port.to_be_bytes());
    out.extend(segment.seq.to_be_bytes());
    out.extend(segment.ack.to_be_bytes());
    out.extend([(head / 4) as u8 * 16, segment.flags]);
    out.extend(segment.window.to_be_bytes());
    out.extend([0; 4]);
    if has_mss {
        out.extend([2, MSS_OPTION as u8]);
        out.extend((MAX_MSS as u16).to_be_bytes());
    }
    out.extend(segment.data);
    // The addresses belong to it, and the protocol and the length.
    let pseudo = sum_of_addresses(ours, segment.to.ip) + 6 + u64::from(length);
    let sum = checksum(pseudo + sum_from(out, at));
    out[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

fn sum_of_addresses(ours: Ipv4Addr, theirs: Ipv4Addr) -> u64 {
    sum(&ours.octets()) + sum(&theirs.octets())
}

fn sum_from(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).map_or(0, sum)
}

/// The sum of a packet's words (RFC 1071).
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let words = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)));
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    words.sum::<u64>() + last
}

/// The checksum for a sum of words.
pub(super) fn checksum(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
