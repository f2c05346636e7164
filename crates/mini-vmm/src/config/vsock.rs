// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of the socket device.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::de::MapAccess;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use virtio_models::vsock::{UnixHost, is_guest_cid};

use super::device;
use super::iothread::{self, IoThreadName};
use super::words::{self, Number, Word, WordError};

/// The socket device.
///
/// As JSON it is an object with the flag's keys, such as `{"cid": 3, "socket": "v.sock"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's CID: 3 to 4294967294. Only the guest sees it.
    #[serde(deserialize_with = "cid")]
    pub cid: u32,
    /// The path of the Unix socket that the host's processes connect to. A process that serves the guest's connections
    /// to port N listens at this path with `_N` behind it.
    #[serde(deserialize_with = "words::path")]
    pub socket: PathBuf,
    /// The I/O thread of the device. By default it is the one that devices share.
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<IoThreadName>,
}

/// Why a socket device is not possible. The messages continue the phrase "no vsock: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockError {
    /// The CID is reserved.
    #[error("cid={cid} is reserved; choose one from 3 to {}", u32::MAX - 1)]
    Cid {
        /// The number.
        cid: u32,
    },
    /// The path is too long for a socket's address, or would be with a port behind it.
    #[error(
        "the path {path:?} is too long; shorten it to {} bytes or fewer, so that a port fits behind it",
        UnixHost::MAX_PATH
    )]
    LongPath {
        /// The path.
        path: PathBuf,
    },
}

impl VsockSpec {
    /// A device with this CID, on a socket at this path.
    pub fn new(cid: u32, socket: impl Into<PathBuf>) -> Self {
        VsockSpec {
            cid,
            socket: socket.into(),
            iothread: None,
        }
    }

    /// Checks what can be checked without the host, except for what is wrong with any path.
    ///
    /// # Errors
    /// [`VsockError`] is the first thing that is not possible.
    pub fn validate(&self) -> Result<(), VsockError> {
        if !is_guest_cid(self.cid) {
            return Err(VsockError::Cid { cid: self.cid });
        }
        if self.socket.as_os_str().as_bytes().len() > UnixHost::MAX_PATH {
            let path = self.socket.clone();
            return Err(VsockError::LongPath { path });
        }
        Ok(())
    }
}

fn cid<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let Number(cid) = words::word(from)?;
    // Any larger number is as wrong.
    Ok(u32::try_from(cid).unwrap_or(u32::MAX))
}

impl Word for Option<VsockSpec> {
    const EXPECTED: &'static str = "an object such as {\"cid\": 3, \"socket\": \"v.sock\"}";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Self::from_os_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        match device::from_word(word) {
            Ok(vsock) => Ok(Some(vsock)),
            Err(why) => Err(WordError::Vsock(why.to_string())),
        }
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        VsockSpec::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> Result<VsockSpec, String> {
        let spec = Option::<VsockSpec>::from_word(word);
        let spec = spec.map_err(|why| why.to_string())?.unwrap();
        spec.validate().map_err(|why| why.to_string())?;
        Ok(spec)
    }

    #[test]
    fn a_device_has_a_cid_and_a_socket() {
        let spec = VsockSpec::new(3, "/run/v,1.sock");
        assert_eq!(read("cid=3,socket=/run/v,,1.sock"), Ok(spec.clone()));
        let fast = VsockSpec {
            iothread: IoThreadName::new("fast"),
            ..spec
        };
        let word = "socket=/run/v,,1.sock,iothread=fast,cid=3";
        assert_eq!(read(word), Ok(fast.clone()));
        let json = serde_json::to_string(&fast).unwrap();
        assert_eq!(serde_json::from_str::<VsockSpec>(&json).unwrap(), fast);
        assert_eq!(
            json,
            r#"{"cid":3,"socket":"/run/v,1.sock","iothread":"fast"}"#
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (word, why) in [
            (
                "cid=0,socket=v",
                "cid=0 is reserved; choose one from 3 to 4294967294",
            ),
            ("cid=1,socket=v", "cid=1 is reserved"),
            ("cid=2,socket=v", "cid=2 is reserved"),
            ("cid=4294967295,socket=v", "is reserved"),
            ("cid=99999999999,socket=v", "is reserved"),
            ("cid=-1,socket=v", "\"-1\" is not a whole number"),
            ("cid=x,socket=v", "\"x\" is not a whole number"),
            ("cid=3", "missing field `socket`"),
            ("socket=v", "missing field `cid`"),
            ("cid=3,socket=", "socket= has no value"),
            ("cid=3,cid=4,socket=v", "duplicate field `cid`"),
            (
                "cid=3,path=v",
                "unknown field `path`, expected one of `cid`, `socket`",
            ),
        ] {
            let error = read(word).unwrap_err();
            assert!(error.contains(why), "{word}: {error}");
        }
        let path = "x".repeat(UnixHost::MAX_PATH);
        read(&format!("cid=3,socket={path}")).unwrap();
        let error = read(&format!("cid=3,socket={path}x")).unwrap_err();
        assert!(
            error.contains("is too long; shorten it to 96 bytes"),
            "{error}"
        );
    }
}
