// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Capabilities (PCI Local Bus Specification 3.0, section 6.7).

/// A capability, without its ID and next pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    id: u8,
    body: Vec<u8>,
    writable: Vec<u8>,
    live: bool,
}

impl Capability {
    /// A capability that no guest can change.
    pub fn fixed(id: u8, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let writable = vec![0; body.len()];
        Capability {
            id,
            body,
            writable,
            live: false,
        }
    }

    /// A capability that stores what a guest writes. Only the bits set in `writable` can change.
    ///
    /// # Panics
    /// `body` and `writable` differ in length.
    pub fn stored(id: u8, body: impl Into<Vec<u8>>, writable: impl Into<Vec<u8>>) -> Self {
        let (body, writable) = (body.into(), writable.into());
        assert_eq!(body.len(), writable.len(), "each byte has a mask");
        Capability {
            id,
            body,
            writable,
            live: false,
        }
    }

    /// A capability whose `len` bytes after ID and next pointer are handled by the device
    /// ([`PciDevice::read_capability`](crate::PciDevice::read_capability)).
    pub fn live(id: u8, len: u8) -> Self {
        let mut capability = Self::fixed(id, vec![0; usize::from(len)]);
        capability.live = true;
        capability
    }

    /// Its id.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Whether the device handles it.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Its size in bytes, including ID and next pointer.
    pub(crate) fn len(&self) -> usize {
        2 + self.body.len()
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn writable(&self) -> &[u8] {
        &self.writable
    }
}
