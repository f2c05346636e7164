// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The port of a port I/O stub.

use core::fmt;

/// An I/O port that a [`Stub::Pio`](crate::Stub::Pio) may write. It fits the one-byte immediate of `OUT
/// imm8, AL`, KVM doesn't treat it specially, and guests don't write it on their own.
///
/// The VMM must answer the port. This type doesn't know the VMM: the port must not belong to one of its devices,
/// nor be an ioeventfd or coalesced PIO, which would suppress the exit. Ports of devices that few VMs have are
/// allowed (DMA controllers at 0x00 to 0x0f, 0x81 to 0x8f and 0xc0 to 0xdf; embedded controller at 0x62 and 0x66).
/// A VMM that has such a device must choose another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u8", into = "u8"))]
pub struct PioPort(u8);

impl PioPort {
    /// Port 0xf5, which no device of a PC uses.
    pub const DEFAULT: Self = Self(0xf5);

    /// Makes a `PioPort` of a port number, 0x00 to 0xff.
    ///
    /// # Errors
    ///
    /// [`ForbiddenPort`] with the reason, if the port has another use in a PC, a guest or KVM.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::PioPort;
    ///
    /// assert_eq!(PioPort::new(0xf5), Ok(PioPort::DEFAULT));
    /// let error = PioPort::new(0xe9).unwrap_err();
    /// assert_eq!(error.port(), 0xe9);
    /// assert!(error.to_string().contains("debug console"));
    /// ```
    pub const fn new(port: u8) -> Result<Self, ForbiddenPort> {
        match owner(port) {
            Some(owner) => Err(ForbiddenPort { port, owner }),
            None => Ok(Self(port)),
        }
    }

    /// The port's number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What the port belongs to, `None` if it is free.
const fn owner(port: u8) -> Option<&'static str> {
    Some(match port {
        0x20 | 0x21 => "the first interrupt controller",
        0x40..=0x43 => "the interval timer",
        0x60 | 0x64 => "the keyboard controller",
        0x61 => "the timer's and speaker's control port",
        0x70 | 0x71 => "the real-time clock and its CMOS memory",
        0x7e => "a KVM quirk that advances RIP early (KVM_X86_QUIRK_OUT_7E_INC_RIP)",
        0x80 => "POST codes and the I/O delay of most systems",
        0x92 => "the A20 gate and fast reset",
        0xa0 | 0xa1 => "the second interrupt controller",
        0xb2 => "the APM command port, which raises an SMI",
        0xe9 => "the debug console of Bochs and QEMU",
        0xed => "the alternative I/O delay of Linux",
        0xf0 | 0xf1 => "the coprocessor's error latch",
        0xf4 => "the debug-exit device",
        _ => return None,
    })
}

impl Default for PioPort {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u8> for PioPort {
    type Error = ForbiddenPort;

    fn try_from(port: u8) -> Result<Self, ForbiddenPort> {
        Self::new(port)
    }
}

impl From<PioPort> for u8 {
    fn from(port: PioPort) -> Self {
        port.0
    }
}

impl From<PioPort> for u16 {
    fn from(port: PioPort) -> Self {
        port.0.into()
    }
}

impl fmt::Display for PioPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// A port that can't carry hypercalls, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForbiddenPort {
    port: u8,
    owner: &'static str,
}

impl ForbiddenPort {
    /// The refused port.
    pub const fn port(&self) -> u8 {
        self.port
    }

    /// What the port belongs to, as a noun phrase.
    pub const fn owner(&self) -> &'static str {
        self.owner
    }
}

impl fmt::Display for ForbiddenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "port {:#04x} can't carry hypercalls because it belongs to {}; choose another, such as {}",
            self.port,
            self.owner,
            PioPort::DEFAULT
        )
    }
}

impl core::error::Error for ForbiddenPort {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;
    use std::string::ToString;

    use super::*;

    #[test]
    fn exactly_the_taken_ports_are_refused() {
        let taken: BTreeSet<u8> = [
            0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x7e, 0x80, 0x92,
            0xa0, 0xa1, 0xb2, 0xe9, 0xed, 0xf0, 0xf1, 0xf4,
        ]
        .into();
        for port in 0..=u8::MAX {
            match PioPort::new(port) {
                Ok(accepted) => {
                    assert!(!taken.contains(&port), "{port:#x} was accepted");
                    assert_eq!(accepted.get(), port);
                    assert_eq!(u16::from(accepted), u16::from(port));
                }
                Err(error) => {
                    assert!(taken.contains(&port), "{error}");
                    assert_eq!(error.port(), port);
                }
            }
        }
    }

    #[test]
    fn the_default_is_a_port_that_may_be_asked_for() {
        assert_eq!(PioPort::new(PioPort::DEFAULT.get()), Ok(PioPort::default()));
    }

    #[test]
    fn a_refusal_names_port_owner_and_an_alternative() {
        assert_eq!(
            PioPort::new(0xf4).unwrap_err().to_string(),
            "port 0xf4 can't carry hypercalls because it belongs to the debug-exit device; choose another, such \
             as 0xf5"
        );
        assert_eq!(PioPort::new(0x05).unwrap().to_string(), "0x05");
    }
}
