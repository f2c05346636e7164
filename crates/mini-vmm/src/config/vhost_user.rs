// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of devices that other processes serve.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use virtio_models::vhost_user::{Kind, MAX_QUEUES, MAX_TAG, Shape};

use super::device::Listed;
use super::iothread::{self, IoThreadName};
use super::words::{self, Number, Word, WordError};

/// The longest configuration of a device of another type, in bytes (`VHOST_USER_MAX_CONFIG_SIZE`).
const MAX_CONFIG: u32 = 256;
/// The largest device ID that the transports have.
const MAX_ID: u16 = 63;

/// A device that the process at a Unix socket serves, by the vhost-user protocol.
///
/// As JSON it is an object with the flag's keys, such as `{"socket": "fs.sock", "device": "fs", "tag": "work"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserSpec {
    /// The path of the backend's socket.
    #[serde(deserialize_with = "words::path")]
    pub socket: PathBuf,
    /// The device's type.
    pub device: VhostUserDevice,
    /// The name by which the guest mounts a file system: 1 to [`MAX_TAG`] bytes.
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The number of queues for requests, 1 to [`MAX_QUEUES`]. By default a disk has as many as its backend says, and
    /// other devices have one.
    #[serde(default, deserialize_with = "number")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The length of the configuration of a device that is given by its ID, in bytes: up to 256.
    #[serde(default, deserialize_with = "number")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<u16>,
    /// The I/O thread of the device. By default it is the one that devices share.
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<IoThreadName>,
}

/// The type of a device that another process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhostUserDevice {
    /// A file system.
    Fs,
    /// A disk.
    Block,
    /// A network.
    Net,
    /// Any other, by its ID in the virtio specification: 1 to 63.
    Id(u16),
}

/// Why such a device is not possible. The messages continue the phrase "no vhost-user device: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VhostUserError {
    /// A file system has no name.
    #[error("a file system needs tag=NAME, by which the guest mounts it")]
    NoTag,
    /// Only a file system has a tag.
    #[error("tag= is for device=fs; leave it out")]
    Tag,
    /// A tag is empty or too long.
    #[error("tag={tag:?} is not 1 to {MAX_TAG} bytes; choose another")]
    TagLength {
        /// The tag.
        tag: String,
    },
    /// The number of queues is not possible.
    #[error("queues={queues} is not a number of queues from 1 to {MAX_QUEUES}; choose one")]
    Queues {
        /// The number.
        queues: u16,
    },
    /// A network has one pair of queues.
    #[error("queues= is not for device=net, which has one pair of queues; leave it out")]
    Net,
    /// The configuration is too long, or not for this type.
    #[error(
        "config=BYTES is for a device by its number, and at most {MAX_CONFIG}; change it or leave it out"
    )]
    Config,
    /// There is no such device ID.
    #[error(
        "device={id} is not a device ID from 1 to {MAX_ID}; write fs, blk, net or one of these"
    )]
    Id {
        /// The number.
        id: u16,
    },
}

impl VhostUserSpec {
    /// A device of this type that the process at this socket serves, with defaults for everything else.
    pub fn new(socket: impl Into<PathBuf>, device: VhostUserDevice) -> Self {
        VhostUserSpec {
            socket: socket.into(),
            device,
            tag: None,
            queues: None,
            config: None,
            iothread: None,
        }
    }

    /// Checks what can be checked without the host, except for the path.
    ///
    /// # Errors
    /// [`VhostUserError`] is the first thing that is not possible.
    pub fn validate(&self) -> Result<(), VhostUserError> {
        match (self.device, &self.tag) {
            (VhostUserDevice::Fs, None) => return Err(VhostUserError::NoTag),
            (VhostUserDevice::Fs, Some(tag)) => check_tag(tag)?,
            (_, Some(_)) => return Err(VhostUserError::Tag),
            (VhostUserDevice::Id(id), _) if !(1..=MAX_ID).contains(&id) => {
                return Err(VhostUserError::Id { id });
            }
            _ => {}
        }
        match self.queues {
            Some(_) if self.device == VhostUserDevice::Net => return Err(VhostUserError::Net),
            Some(queues) if !(1..=MAX_QUEUES).contains(&queues) => {
                return Err(VhostUserError::Queues { queues });
            }
            _ => {}
        }
        let takes_config = matches!(self.device, VhostUserDevice::Id(_));
        let is_config = |len: u16| takes_config && u32::from(len) <= MAX_CONFIG;
        match self.config.is_none_or(is_config) {
            true => Ok(()),
            false => Err(VhostUserError::Config),
        }
    }

    /// What the backend is to serve.
    pub(crate) fn shape(&self) -> Shape {
        let kind = match self.device {
            VhostUserDevice::Fs => Kind::Fs {
                tag: self.tag.clone().unwrap_or_default(),
            },
            VhostUserDevice::Block => Kind::Block,
            VhostUserDevice::Net => Kind::Net,
            VhostUserDevice::Id(id) => Kind::Other {
                id,
                config_len: self.config.unwrap_or(0).into(),
            },
        };
        Shape {
            queues: self.queues,
            ..Shape::new(kind)
        }
    }
}

/// Checks the name of a file system.
pub(super) fn check_tag(tag: &str) -> Result<(), VhostUserError> {
    match (1..=MAX_TAG).contains(&tag.len()) && !tag.contains('\0') {
        true => Ok(()),
        false => Err(VhostUserError::TagLength {
            tag: tag.to_owned(),
        }),
    }
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let Number(number) = words::word(from)?;
    // Any larger number is as wrong.
    Ok(Some(u16::try_from(number).unwrap_or(u16::MAX)))
}

impl Word for VhostUserDevice {
    const EXPECTED: &'static str = "fs, blk, net or a device ID such as 5";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        match word {
            "fs" => Ok(VhostUserDevice::Fs),
            "blk" => Ok(VhostUserDevice::Block),
            "net" => Ok(VhostUserDevice::Net),
            _ => {
                let Number(id) = Number::from_word(word).map_err(|_| WordError::VirtioDevice)?;
                // Any larger number is as wrong.
                Ok(VhostUserDevice::Id(u16::try_from(id).unwrap_or(u16::MAX)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for VhostUserDevice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

impl Serialize for VhostUserDevice {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            VhostUserDevice::Fs => to.serialize_str("fs"),
            VhostUserDevice::Block => to.serialize_str("blk"),
            VhostUserDevice::Net => to.serialize_str("net"),
            VhostUserDevice::Id(id) => to.serialize_u16(*id),
        }
    }
}

/// A list in JSON, or the device of one flag.
impl Listed for VhostUserSpec {
    const EXPECTED: &'static str = "a list of devices such as [{\"socket\": \"fs.sock\", \"device\": \"fs\", \"tag\": \"work\"}]";
    const REFUSED: fn(String) -> WordError = WordError::VhostUser;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> Result<VhostUserSpec, String> {
        let specs = Vec::<VhostUserSpec>::from_word(word).map_err(|why| why.to_string())?;
        specs[0].validate().map_err(|why| why.to_string())?;
        Ok(specs[0].clone())
    }

    #[test]
    fn a_device_has_a_socket_and_a_type() {
        let fs = VhostUserSpec {
            tag: Some("work".to_owned()),
            queues: Some(2),
            iothread: IoThreadName::new("fs"),
            ..VhostUserSpec::new("/run/a,b", VhostUserDevice::Fs)
        };
        let word = "socket=/run/a,,b,device=fs,tag=work,queues=2,iothread=fs";
        assert_eq!(read(word), Ok(fs.clone()));
        let json = serde_json::to_string(&fs).unwrap();
        assert_eq!(serde_json::from_str::<VhostUserSpec>(&json).unwrap(), fs);
        let other = VhostUserSpec {
            config: Some(8),
            ..VhostUserSpec::new("s", VhostUserDevice::Id(27))
        };
        assert_eq!(read("device=27,socket=s,config=8"), Ok(other.clone()));
        let json = serde_json::to_string(&other).unwrap();
        assert_eq!(json, r#"{"socket":"s","device":27,"config":8}"#);
        assert_eq!(serde_json::from_str::<VhostUserSpec>(&json).unwrap(), other);
        assert_eq!(
            read("socket=s,device=blk").unwrap().shape().kind,
            Kind::Block
        );
        assert_eq!(read("socket=s,device=net").unwrap().shape().kind, Kind::Net);
    }

    #[test]
    fn mistakes_are_named() {
        let long = format!("socket=s,device=fs,tag={}", "x".repeat(37));
        for (word, why) in [
            ("socket=s", "missing field `device`"),
            ("device=fs", "missing field `socket`"),
            ("socket=s,device=fs", "needs tag=NAME"),
            ("socket=s,device=blk,tag=x", "tag= is for device=fs"),
            (&long, "is not 1 to 36 bytes"),
            ("socket=s,device=net,queues=2", "one pair of queues"),
            (
                "socket=s,device=blk,queues=0",
                "queues=0 is not a number of queues from 1 to 64",
            ),
            ("socket=s,device=blk,queues=65", "queues=65 is not"),
            ("socket=s,device=blk,config=1", "config=BYTES is for"),
            ("socket=s,device=5,config=257", "config=BYTES is for"),
            ("socket=s,device=0", "device=0 is not a device ID"),
            ("socket=s,device=64", "device=64 is not a device ID"),
            ("socket=s,device=disk", "\"disk\" is no type of device"),
            ("socket=s,device=fs,path=x", "unknown field `path`"),
        ] {
            let error = read(word).unwrap_err();
            assert!(error.contains(why), "{word}: {error}");
        }
    }
}
