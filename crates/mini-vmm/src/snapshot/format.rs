// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the files of a snapshot hold. All of it is plain data, and untrusted when it is read.

use std::fmt::{self, Display, Formatter};
use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::load::Error;
use crate::config::check_memory;
use crate::machine::MachineState;
use crate::memory;
use crate::mmds::{MmdsSpec, Store, Version};

/// The format that is written. Older ones stay readable.
pub const FORMAT: u32 = 1;

/// The largest manifest in bytes. Sixty-four disks and networks need a tenth of it.
pub const MAX_MANIFEST: u64 = 1 << 20;

/// The largest state in bytes. A vCPU needs about 50 KiB.
pub const MAX_STATE: u64 = 16 << 20;

/// The most Diffs between a snapshot and a Full one.
pub const MAX_DEPTH: u32 = 255;

/// The space for metadata in a restored machine without an API, in bytes. Nobody could store any.
const MAX_METADATA: usize = 0;

/// A snapshot's identity, made anew for each. It pairs the state with its memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id(pub(super) [u8; 16]);

impl Id {
    /// Reads 32 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok())?;
        Some(Id(number?.to_be_bytes()))
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Id::parse(&text).ok_or_else(|| de::Error::custom("an id has 32 hexadecimal digits"))
    }
}

/// Which pages the memory file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// All of them. A hole in the file is zeros.
    Full,
    /// Those that may have changed since its parent.
    Diff,
}

/// A range of guest memory. The memory file has the ranges one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// The guest-physical address where it starts.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A device that has a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceVersion {
    /// Its name.
    pub id: String,
    /// The version of its state.
    pub version: u32,
}

impl PartialEq<(&String, u32)> for &DeviceVersion {
    fn eq(&self, (id, version): &(&String, u32)) -> bool {
        self.id == **id && self.version == *version
    }
}

/// The part of a snapshot that is the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatePart {
    /// The version of its form, counted from 1.
    pub version: u32,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (ISO-HDLC) of its bytes. It finds damage, not malice.
    pub crc32: u32,
}

/// The part of a snapshot that is guest memory. It has no checksum, because it is read only where the guest touches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPart {
    /// The version of its form, counted from 1.
    pub version: u32,
    /// The guest's bytes. The tail follows them.
    pub size: u64,
}

/// The part of a snapshot that is what the guest wrote to a disk with an overlay. Its file is a qcow2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlayPart {
    /// The number of the disk, counted from 0.
    pub disk: usize,
    /// The version of its form, counted from 1.
    pub version: u32,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (ISO-HDLC) of its bytes.
    pub crc32: u32,
}

/// The parts of a snapshot beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// The state.
    pub state: StatePart,
    /// Guest memory.
    pub memory: MemoryPart,
    /// The overlays of disks, in the order of the disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<OverlayPart>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it
fn is_full(depth: &u32) -> bool {
    *depth == 0
}

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The program that wrote it.
    pub program: String,
    /// Its identity.
    pub id: Id,
    /// The snapshot that this one continues, if its kind needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// How many Diffs there are since the last Full snapshot, with this one: 0 for a Full one.
    #[serde(default, skip_serializing_if = "is_full")]
    pub depth: u32,
    /// Which pages there are.
    pub kind: Kind,
    /// The vendor string of the guest's CPUs (CPUID leaf 0).
    pub cpu_vendor: String,
    /// The number of vCPUs.
    pub cpus: u32,
    /// The ranges of guest memory.
    pub memory: Vec<Region>,
    /// The devices with a state, in order.
    pub devices: Vec<DeviceVersion>,
    /// The route of hypercalls.
    pub route: String,
    /// The other parts.
    pub parts: Parts,
}

/// The form of the state's file, which is part of [`Manifest::format`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile<M = Map<String, Value>> {
    /// The machine's description, in the words of a config file.
    pub machine: M,
    /// The machine's state.
    pub state: MachineState,
    /// What clients call its devices.
    #[serde(default)]
    pub labels: Labels,
    /// The vCPU whose call returns the clone's number, if the guest asked for the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<u32>,
    /// Its metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// How a machine reaches the metadata service. What is stored there is its host's, and in no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    version: Version,
    nets: Vec<usize>,
    address: Ipv4Addr,
    imds_compat: bool,
}

impl From<&MmdsSpec> for Metadata {
    fn from(spec: &MmdsSpec) -> Self {
        Metadata {
            version: spec.version,
            nets: spec.nets.clone(),
            address: spec.address,
            imds_compat: spec.imds_compat,
        }
    }
}

impl From<Metadata> for MmdsSpec {
    /// With an empty store.
    fn from(saved: Metadata) -> Self {
        MmdsSpec {
            version: saved.version,
            nets: saved.nets,
            address: saved.address,
            imds_compat: saved.imds_compat,
            store: Store::new(MAX_METADATA),
        }
    }
}

/// The names that clients of the API gave to devices, in the order of the description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// Of disks.
    pub drives: Vec<String>,
    /// Of networks.
    pub nets: Vec<String>,
}

impl Manifest {
    /// Reads a manifest, and checks what it says about itself.
    ///
    /// # Errors
    /// [`Error`] says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        // Only the format, because another one may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let manifest = serde_json::from_slice(bytes);
        if !matches!(manifest, Ok(Manifest { format: FORMAT, .. })) {
            let Format { format } = serde_json::from_slice(bytes).map_err(Error::Manifest)?;
            if format != FORMAT {
                return Err(Error::Format { found: format });
            }
        }
        let manifest = manifest.map_err(Error::Manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Error> {
        let Parts {
            state,
            memory,
            overlays,
        } = &self.parts;
        let overlays = overlays.iter().map(|part| ("overlay", part.version));
        let versions = [("state", state.version), ("memory", memory.version)];
        for (part, found) in versions.into_iter().chain(overlays) {
            if found != 1 {
                return Err(Error::Version { part, found });
            }
        }
        match (self.kind, self.parent, self.depth) {
            (Kind::Full, None, 0) | (Kind::Diff, Some(_), 1..=MAX_DEPTH) => {}
            (Kind::Full, Some(_), _) => {
                return Err(Error::Lie("it has a parent and all of the memory"));
            }
            _ => return Err(Error::Lie("its place in a chain of Diffs is not possible")),
        }
        if state.size > MAX_STATE {
            return Err(Error::Lie("its state is larger than any machine's"));
        }
        let regions = memory::regions(memory.size);
        let mut said = self.memory.iter();
        let is_ours = check_memory(memory.size).is_ok()
            && regions.len() == self.memory.len()
            && regions.iter().all(|(start, size)| {
                said.next()
                    .is_some_and(|region| region.start == start.0 && region.size == *size as u64)
            });
        match is_ours {
            true => Ok(()),
            false => Err(Error::Lie("no machine has such memory")),
        }
    }
}
