// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages of the vhost-user protocol, as bytes (QEMU's `docs/interop/vhost-user.rst`).

/// The bytes before a message's body: request, flags and the body's length, 32 bits each.
pub(super) const HEADER: usize = 12;
/// The longest body of an answer. A configuration is the longest that is asked for.
const MAX_BODY: usize = 4096;

/// Version 1 of the protocol, in bits 0 and 1 of the flags.
const VERSION: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: there are protocol features, and rings start disabled.
pub(super) const F_PROTOCOL: u64 = 1 << 30;

/// The protocol's features.
pub(super) mod protocol {
    /// The number of queues can be asked for.
    pub const MQ: u64 = 1;
    /// Each message can be confirmed.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The configuration is the backend's.
    pub const CONFIG: u64 = 1 << 9;
}

/// A message's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    GetConfig = 24,
    SetConfig = 25,
}

/// A message of a frontend, which may ask for a confirmation.
pub(super) fn message(request: Request, body: &[u8], is_confirmed: bool) -> Vec<u8> {
    let flags = if is_confirmed {
        VERSION | NEEDS_REPLY
    } else {
        VERSION
    };
    let header = [request as u32, flags, body.len() as u32];
    let mut bytes = words(&header);
    bytes.extend(body);
    bytes
}

/// 32-bit numbers as bytes.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The number at `at` of an answer's body.
pub(super) fn word(body: &[u8], at: usize) -> Option<u32> {
    let bytes = body.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The body of an answer that is one number.
pub(super) fn number(body: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(body.try_into().ok()?))
}

/// The length of the body of an answer to `request`, by its header. `None` if it is no such answer.
pub(super) fn body_len(header: &[u8], request: Request) -> Option<usize> {
    let flags = word(header, 4)?;
    let len = word(header, 8)? as usize;
    let is_answer = word(header, 0)? == request as u32
        && flags & 3 == VERSION
        && flags & IS_REPLY != 0
        && len <= MAX_BODY;
    is_answer.then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_requests_number_and_a_bounded_length() {
        let header = |request, flags, len| words(&[request, flags, len]);
        let len = |header: Vec<u8>| body_len(&header, Request::GetFeatures);
        assert_eq!(len(header(1, 5, 8)), Some(8));
        assert_eq!(len(header(1, 5, 4096)), Some(4096));
        for (request, flags, size) in [(2, 5, 8), (1, 1, 8), (1, 4, 8), (1, 6, 8), (1, 5, 4097)] {
            assert_eq!(len(header(request, flags, size)), None);
        }
        assert_eq!(body_len(&[0; 11], Request::GetFeatures), None);
    }

    #[test]
    fn a_message_says_whether_it_is_confirmed() {
        let sent = message(Request::SetOwner, &[7], true);
        assert_eq!(sent, [&words(&[3, 9, 1])[..], &[7]].concat());
        assert_eq!(message(Request::SetOwner, &[], false), words(&[3, 1, 0]));
    }
}
