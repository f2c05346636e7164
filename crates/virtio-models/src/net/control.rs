// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the control queue (virtio 1.4, 5.1.9.5).

use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use vm_memory::GuestMemory;

/// The class and the command that set the number of pairs of queues in use (5.1.9.5.6).
const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];

pub(super) const OK: u8 = 0;
pub(super) const ERR: u8 = 1;

/// A command that the device knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Use this many pairs of queues.
    Pairs(usize),
}

/// Reads a command. Returns `None` if it is none that the device knows.
pub(super) fn read<G: GuestMemory>(view: &View<'_, G>, chain: &Chain) -> Option<Command> {
    let mut reader = chain.reader(view);
    let mut command = [0; 4];
    reader.read(&mut command).ok()?;
    let [class, command, low, high] = command;
    ([class, command] == MQ_VQ_PAIRS_SET)
        .then(|| Command::Pairs(u16::from_le_bytes([low, high]).into()))
}
