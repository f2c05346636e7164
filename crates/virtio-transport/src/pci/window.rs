// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The function's vendor-specific capabilities. One of them is a window to BAR 0 (virtio 1.4, 4.1.4).

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

use super::{COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STEP, common};

/// The kinds of capabilities.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The window's length in bytes, including ID and next pointer.
const WINDOW: u8 = 20;
/// The offset of its data.
const DATA: u8 = 16;

/// A capability with the ID 9, vendor-specific.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// The constant bytes after ID and next pointer.
    Fixed(Vec<u8>),
    /// The number of bytes after ID and next pointer. They are read with
    /// [`PciTransport::read_window`](super::PciTransport::read_window) and written with
    /// [`write_window`](super::PciTransport::write_window).
    Live(u8),
}

/// Bytes 2 to 15 of a capability in BAR 0.
fn body(len: u8, kind: u8, offset: u64, length: u32) -> Vec<u8> {
    let mut body = vec![len, kind, 0, 0, 0, 0];
    // Fits: it is inside the BAR.
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body
}

/// All capabilities of a device.
pub(super) fn capabilities(layout: &Layout) -> Vec<Capability> {
    let queues = layout.queues.len().max(1) as u32;
    let mut notify = body(20, NOTIFY_CFG, NOTIFY, queues * NOTIFY_STEP);
    notify.extend(NOTIFY_STEP.to_le_bytes());
    let mut list = vec![
        Capability::Fixed(body(16, COMMON_CFG, COMMON, common::LEN as u32)),
        Capability::Fixed(notify),
        Capability::Fixed(body(16, ISR_CFG, ISR, 1)),
    ];
    if layout.config_len != 0 {
        // Whole words: Linux doesn't read a configuration that it can't map (4.1.4.6).
        let len = layout.config_len.next_multiple_of(4);
        list.push(Capability::Fixed(body(16, DEVICE_CFG, DEVICE, len)));
    }
    list.push(Capability::Live(WINDOW - 2));
    list
}

/// The window's fields. Plain, untrusted data: a driver can write anything, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowState {
    /// The BAR.
    pub bar: u8,
    /// The offset in the BAR, in bytes.
    pub offset: u32,
    /// The number of bytes to access.
    pub length: u32,
}

/// The capability through which a driver accesses BAR 0 without mapping it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// BAR, offset and length: bytes 4 to 15 of the capability.
    fields: [u8; 12],
}

impl Window {
    pub(super) fn save(&self) -> WindowState {
        let [bar, _, _, _, a, b, c, d, e, f, g, h] = self.fields;
        WindowState {
            bar,
            offset: u32::from_le_bytes([a, b, c, d]),
            length: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// Fills `data` with fields, and with 0 elsewhere.
    pub(super) fn read(&self, at: u8, data: &mut [u8]) {
        let mut image = [0; WINDOW as usize];
        image[2..4].copy_from_slice(&[WINDOW, PCI_CFG]);
        image[4..16].copy_from_slice(&self.fields);
        for (index, byte) in (usize::from(at)..).zip(data) {
            *byte = image.get(index).copied().unwrap_or(0);
        }
    }

    /// Handles writes to BAR, offset and length.
    pub(super) fn write(&mut self, at: u8, data: &[u8]) {
        for (index, byte) in (usize::from(at)..).zip(data) {
            // Bytes 5 to 7 are an identifier and padding.
            if matches!(index, 4 | 8..16) {
                self.fields[index - 4] = *byte;
            }
        }
    }

    /// The target in BAR 0 of an access to the window's data, and its length. `None` unless the window's length is 1, 2
    /// or 4, and its offset a multiple of that (4.1.4.9.2).
    pub(super) fn target(&self, at: u8, len: usize) -> Option<(u64, usize)> {
        let WindowState {
            bar,
            offset,
            length,
        } = self.save();
        let goes = at == DATA
            && bar == 0
            && matches!(length, 1 | 2 | 4)
            && len >= length as usize
            && offset.is_multiple_of(length);
        goes.then_some((offset.into(), length as usize))
    }
}

impl From<WindowState> for Window {
    fn from(state: WindowState) -> Self {
        let mut fields = [0; 12];
        fields[0] = state.bar;
        fields[4..8].copy_from_slice(&state.offset.to_le_bytes());
        fields[8..12].copy_from_slice(&state.length.to_le_bytes());
        Window { fields }
    }
}
