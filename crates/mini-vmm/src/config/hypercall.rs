// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings for hypercalls and MSRs.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use hypercall_patch::PioPort;
use para_abi::Convention;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::choices::choices;
use super::words::{self, Word, WordError, parse_port};
use super::{Error, VmSpec};
use crate::layout;

/// How the hypercalls of a guest that registers for them (MSR 0x87655678) reach their handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HypercallRoute {
    /// [`Vendor`](HypercallRoute::Vendor) if a probe showed that this KVM completes it and the ABI is
    /// [`HypercallAbi::Kvm`], else [`Pio`](HypercallRoute::Pio).
    #[default]
    Auto,
    /// VMCALL or VMMCALL, by the guest's CPU vendor. KVM itself answers, and only with its own registers
    /// ([`HypercallAbi::Kvm`]).
    Vendor,
    /// VMCALL or VMMCALL. KVM forwards all of them to the VMM.
    Forward,
    /// `out` to a port. The VMM answers. Without a port, a free one is chosen.
    Pio(Option<PioPort>),
}

impl HypercallRoute {
    /// The port of [`Pio`](HypercallRoute::Pio) if the debug-exit device has the default one. That device is too small
    /// to have both.
    const OTHER_PORT: PioPort = match PioPort::new(0xf9) {
        Ok(port) => port,
        Err(_) => panic!("port 0xf9 belongs to a device of the machine"),
    };

    /// The words with their meanings.
    pub(crate) const WORDS: &'static [(&'static str, &'static str)] = &[
        (
            "auto",
            "vendor where this KVM completes it and the ABI is kvm, else pio",
        ),
        ("vendor", "VMCALL or VMMCALL, which KVM itself answers"),
        (
            "forward",
            "VMCALL or VMMCALL, every one of which KVM forwards to the VMM",
        ),
        ("pio", "a port, pio=PORT to choose it; the VMM answers"),
    ];
}

impl FromStr for HypercallRoute {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "auto" => Ok(HypercallRoute::Auto),
            "vendor" => Ok(HypercallRoute::Vendor),
            "forward" => Ok(HypercallRoute::Forward),
            "pio" => Ok(HypercallRoute::Pio(None)),
            _ => {
                let port = word.strip_prefix("pio=").ok_or(WordError::Route)?;
                let port = parse_port(port).and_then(|port| u8::try_from(port).ok());
                let port = PioPort::new(port.ok_or(WordError::RoutePort)?);
                Ok(HypercallRoute::Pio(Some(
                    port.map_err(WordError::ForbiddenPort)?,
                )))
            }
        }
    }
}

impl Display for HypercallRoute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            HypercallRoute::Auto => f.write_str("auto"),
            HypercallRoute::Vendor => f.write_str("vendor"),
            HypercallRoute::Forward => f.write_str("forward"),
            HypercallRoute::Pio(None) => f.write_str("pio"),
            HypercallRoute::Pio(Some(port)) => write!(f, "pio={port}"),
        }
    }
}

impl Serialize for HypercallRoute {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HypercallRoute {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

impl Word for HypercallRoute {
    const EXPECTED: &'static str = "\"auto\", \"vendor\", \"forward\", \"pio\" or \"pio=PORT\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        word.parse()
    }
}

choices! {
    /// In which registers a hypercall that reaches the VMM has its number and arguments. A guest can't be asked, so it is a
    /// property of the machine.
    pub enum HypercallAbi {
        /// As for KVM's own: RAX; RBX, RCX, RDX, RSI.
        Kvm = "kvm",
        /// As in Linux of 2007: 64-bit RAX; RDI, RSI, RDX, RCX, R8, R9; 32-bit EBX; EAX, ECX, EDX, ESI, EDI, EBP.
        Para2007 = "2007",
        /// As the guests of 2007 that were never merged: 64-bit as 2007; 32-bit EAX; EBX, ECX, EDX, ESI, EDI, EBP.
        Para2007Draft = "2007-draft",
    }
}

impl HypercallAbi {
    /// The registers.
    pub const fn convention(self) -> Convention {
        match self {
            HypercallAbi::Kvm => Convention::Kvm,
            HypercallAbi::Para2007 => Convention::Para2007,
            HypercallAbi::Para2007Draft => Convention::Para2007Draft,
        }
    }
}

choices! {
    /// Which MSRs the guest may use. What it may not use is #GP for it, as on a CPU that has no such MSR.
    pub enum MsrPolicy {
        /// Those that KVM has.
        Allow = "allow",
        /// Those that KVM has and Linux guests need; others are counted, and named with -v.
        DenyUnknown = "deny-unknown",
        /// Those that KVM has; accesses that KVM refuses are counted, and named with -v.
        Log = "log",
    }
}

impl VmSpec {
    /// The port of hypercalls through port I/O.
    pub fn hypercall_port(&self) -> PioPort {
        match self.hypercall {
            HypercallRoute::Pio(Some(port)) => port,
            _ if takes_port(self.debug_exit, PioPort::DEFAULT) => HypercallRoute::OTHER_PORT,
            _ => PioPort::DEFAULT,
        }
    }
}

/// Whether the debug-exit device at `debug_exit`, if there is one, has `port`.
pub(super) fn takes_port(debug_exit: Option<u16>, port: PioPort) -> bool {
    let port = u16::from(port);
    debug_exit.is_some_and(|first| port >= first && port - first < layout::DEBUG_EXIT_SIZE)
}

/// Checks the settings for hypercalls.
pub(super) fn validate(spec: &VmSpec) -> Result<(), Error> {
    let (route, debug_exit) = (spec.hypercall, spec.debug_exit);
    if !spec.para && route != HypercallRoute::Auto {
        return Err(Error::RouteWithoutMsr { route });
    }
    if spec.hypercall_abi != HypercallAbi::Kvm {
        let abi = spec.hypercall_abi;
        match route {
            _ if !spec.para => return Err(Error::AbiWithoutMsr { abi }),
            HypercallRoute::Vendor => return Err(Error::AbiOfVendor { abi }),
            _ => {}
        }
    }
    if spec.snapshot_dir.is_some() && (!spec.para || spec.sealed || route == HypercallRoute::Vendor)
    {
        return Err(Error::SnapshotDir);
    }
    match (route, debug_exit) {
        (HypercallRoute::Pio(Some(port)), Some(first)) if takes_port(debug_exit, port) => {
            Err(Error::HypercallPort {
                port,
                debug_exit: first,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_asks_only_where_its_call_can_arrive() {
        let spec = |route| VmSpec {
            snapshot_dir: Some("snaps".into()),
            hypercall: route,
            ..VmSpec::new("vmlinux")
        };
        for route in [
            HypercallRoute::Auto,
            HypercallRoute::Forward,
            HypercallRoute::Pio(None),
        ] {
            spec(route).validate().unwrap();
        }
        let vendor = spec(HypercallRoute::Vendor);
        let mut deaf = spec(HypercallRoute::Auto);
        deaf.para = false;
        let mut sealed = spec(HypercallRoute::Auto);
        sealed.sealed = true;
        for spec in [vendor, deaf, sealed] {
            assert!(matches!(spec.validate(), Err(Error::SnapshotDir)));
        }
    }
}
