// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control queues' protocol (5.3.6.2). It has no descriptors and no memory, so all of it is tested as a state machine.
//!
//! What the guest is owed is kept as a few bits for each port. So a driver that floods the queue makes nothing grow.

use serde::{Deserialize, Serialize};

use super::peer::Size;

/// The events (5.3.6.2).
pub(super) mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// The length of a message without a name or a size.
pub(super) const HEADER: usize = 8;

/// The state of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// The guest was told of the port.
    pub is_added: bool,
    /// The guest has the port.
    pub is_ready: bool,
    /// The guest was told that it is a console.
    pub is_console: bool,
    /// The guest was told its name.
    pub is_named: bool,
    /// The size that the guest was told.
    pub size: Option<Size>,
    /// A process of the guest has opened it.
    pub is_open: bool,
    /// The guest was told that the host has opened it.
    pub is_told: bool,
    /// The host has closed it since then.
    pub was_closed: bool,
    /// The bytes of the next transmit buffer that the host already has.
    pub sent: u64,
}

/// What a port is, on the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature<'a> {
    pub(super) is_console: bool,
    pub(super) name: &'a str,
    pub(super) is_open: bool,
    pub(super) size: Option<Size>,
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(id.to_le_bytes());
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

/// A message of the guest: port, event and value.
pub(super) fn parse(bytes: [u8; HEADER]) -> (u32, u16, u16) {
    let [a, b, c, d, e, f, g, h] = bytes;
    let id = u32::from_le_bytes([a, b, c, d]);
    (id, u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]))
}

impl PortState {
    /// Takes a message of the guest about the port. One that makes no sense has no effect.
    pub(super) const fn take(&mut self, event: u16, value: u16) {
        match event {
            event::PORT_READY if self.is_added => self.is_ready = value != 0,
            event::PORT_OPEN if self.is_ready => self.is_open = value != 0,
            _ => {}
        }
    }

    /// Notes that the host closed the port, so that the guest learns of it even if it is open again by then.
    pub(super) const fn observe(&mut self, is_open: bool) {
        self.was_closed |= self.is_told && !is_open;
    }

    /// The next message that the guest is owed about port `id`.
    pub(super) fn next(&mut self, id: u32, nature: &Nature<'_>) -> Option<Vec<u8>> {
        self.observe(nature.is_open);
        if !self.is_added {
            self.is_added = true;
            return Some(message(id, event::DEVICE_ADD, 0));
        }
        if !self.is_ready {
            return None;
        }
        if nature.is_console && !self.is_console {
            self.is_console = true;
            return Some(message(id, event::CONSOLE_PORT, 1));
        }
        if let Some(size) = nature
            .size
            .filter(|size| nature.is_console && self.size != Some(*size))
        {
            self.size = Some(size);
            let mut bytes = message(id, event::RESIZE, 0);
            bytes.extend(size.cols.to_le_bytes());
            bytes.extend(size.rows.to_le_bytes());
            return Some(bytes);
        }
        if !nature.name.is_empty() && !self.is_named {
            self.is_named = true;
            let mut bytes = message(id, event::PORT_NAME, 1);
            bytes.extend(nature.name.as_bytes());
            return Some(bytes);
        }
        if self.was_closed {
            (self.was_closed, self.is_told) = (false, false);
            return Some(message(id, event::PORT_OPEN, 0));
        }
        if nature.is_open && !self.is_told {
            self.is_told = true;
            return Some(message(id, event::PORT_OPEN, 1));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUIET: Nature<'static> = Nature {
        is_console: false,
        name: "",
        is_open: false,
        size: None,
    };

    /// All messages that are owed now: events and values.
    fn all(state: &mut PortState, nature: &Nature<'_>) -> Vec<(u16, u16)> {
        let messages = std::iter::from_fn(|| state.next(7, nature));
        let parsed = messages.map(|bytes| {
            let (id, event, value) = parse(bytes[..HEADER].try_into().unwrap());
            assert_eq!(id, 7);
            (event, value)
        });
        parsed.collect()
    }

    #[test]
    fn a_console_is_told_all_of_it_in_order() {
        let mut state = PortState::default();
        let nature = Nature {
            is_console: true,
            name: "org.x",
            is_open: true,
            size: Some(Size {
                cols: 0x0150,
                rows: 25,
            }),
        };
        assert_eq!(all(&mut state, &nature), [(event::DEVICE_ADD, 0)]);
        state.take(event::PORT_READY, 1);
        state.is_console = true;
        let resize = state.next(7, &nature).unwrap();
        assert_eq!(resize[HEADER..], [0x50, 1, 25, 0], "columns, then rows");
        let name = state.next(7, &nature).unwrap();
        assert_eq!(&name[HEADER..], b"org.x");
        assert_eq!(all(&mut state, &nature), [(event::PORT_OPEN, 1)]);
        let mut state = PortState {
            is_ready: true,
            is_added: true,
            ..PortState::default()
        };
        let events = all(&mut state, &nature);
        let order = [
            event::CONSOLE_PORT,
            event::RESIZE,
            event::PORT_NAME,
            event::PORT_OPEN,
        ];
        assert!(events.iter().map(|(event, _)| *event).eq(order));
    }

    #[test]
    fn a_short_absence_is_told() {
        let open = Nature {
            is_open: true,
            ..QUIET
        };
        let mut state = PortState::default();
        all(&mut state, &open);
        state.take(event::PORT_READY, 1);
        assert_eq!(all(&mut state, &open), [(event::PORT_OPEN, 1)]);
        state.observe(false);
        state.observe(true);
        assert_eq!(
            all(&mut state, &open),
            [(event::PORT_OPEN, 0), (event::PORT_OPEN, 1)]
        );
        assert_eq!(all(&mut state, &QUIET), [(event::PORT_OPEN, 0)]);
    }

    proptest! {
        /// Whatever the guest says and the host does: each port is added, named and a console once; closed and open
        /// alternate; and what is owed ends.
        #[test]
        fn nothing_is_told_twice(steps in prop::collection::vec((0..9_u16, any::<u16>(), any::<bool>(), any::<bool>()), 0..200)) {
            let mut state = PortState::default();
            let mut told = Vec::new();
            for (event, value, is_open, reads) in steps {
                state.take(event, value % 3);
                let nature = Nature { is_console: true, name: "n", is_open, size: None };
                state.observe(is_open);
                if reads {
                    let owed = all(&mut state, &nature);
                    prop_assert!(owed.len() <= 5);
                    let is_up_to_date = !state.is_ready || state.is_told == is_open;
                    prop_assert!(is_up_to_date);
                    told.extend(owed);
                }
            }
            for once in [event::DEVICE_ADD, event::CONSOLE_PORT, event::PORT_NAME] {
                prop_assert!(told.iter().filter(|(event, _)| *event == once).count() <= 1);
            }
            let opens = told.iter().filter(|(event, _)| *event == event::PORT_OPEN);
            for (at, (_, value)) in opens.enumerate() {
                prop_assert_eq!(usize::from(*value), (at + 1) % 2);
            }
        }
    }
}
