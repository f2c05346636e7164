// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of shared memory.

use std::ffi::OsStr;
use std::path::PathBuf;

use serde::de::MapAccess;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::device;
use super::words::{self, ByteSize, Word, WordError};
use crate::layout::{MAX_RAM, PAGE_SIZE};

/// A file that the guest has as memory, and that is in no snapshot.
///
/// As JSON it is an object with the flag's keys, such as `{"path": "/dev/shm/f", "size": "1M"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedMemorySpec {
    /// The file.
    #[serde(deserialize_with = "words::path")]
    pub path: PathBuf,
    /// How many of its bytes the guest has, from the first one on: a multiple of 4096. `None` is all of them.
    #[serde(default, deserialize_with = "size", serialize_with = "write_size")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A size that shared memory can't have. The message continues the phrase "no shared memory: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} bytes are no multiple of {PAGE_SIZE} from {PAGE_SIZE} to {MAX_RAM}; give another size, such as 1M"
)]
pub struct SharedSizeError(pub u64);

impl SharedMemorySpec {
    /// All of the file at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SharedMemorySpec {
            path: path.into(),
            size: None,
        }
    }

    /// Checks what can be checked without the host, except for what is wrong with any path.
    ///
    /// # Errors
    /// The size is not possible.
    pub fn validate(&self) -> Result<(), SharedSizeError> {
        self.size.map_or(Ok(()), check_shared_size)
    }
}

/// Checks that shared memory can have `size` bytes.
///
/// # Errors
/// It can't.
pub fn check_shared_size(size: u64) -> Result<(), SharedSizeError> {
    match (PAGE_SIZE..=MAX_RAM).contains(&size) && size.is_multiple_of(PAGE_SIZE) {
        true => Ok(()),
        false => Err(SharedSizeError(size)),
    }
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    words::word(from).map(Some)
}

fn write_size<S: Serializer>(size: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => to.collect_str(&ByteSize(*size)),
        None => to.serialize_none(),
    }
}

impl Word for Option<SharedMemorySpec> {
    const EXPECTED: &'static str = "an object such as {\"path\": \"/dev/shm/f\", \"size\": \"1M\"}";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Self::from_os_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        match device::from_word(word) {
            Ok(memory) => Ok(Some(memory)),
            Err(why) => Err(WordError::SharedMemory(why.to_string())),
        }
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        SharedMemorySpec::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> Result<SharedMemorySpec, String> {
        let spec = Option::<SharedMemorySpec>::from_word(word);
        let spec = spec.map_err(|why| why.to_string())?.unwrap();
        spec.validate().map_err(|why| why.to_string())?;
        Ok(spec)
    }

    #[test]
    fn it_has_a_path_and_perhaps_a_size() {
        let spec = SharedMemorySpec::new("/dev/shm/a,b");
        assert_eq!(read("path=/dev/shm/a,,b"), Ok(spec.clone()));
        let sized = SharedMemorySpec {
            size: Some(1 << 20),
            ..spec
        };
        assert_eq!(read("size=1M,path=/dev/shm/a,,b"), Ok(sized.clone()));
        let json = serde_json::to_string(&sized).unwrap();
        assert_eq!(json, r#"{"path":"/dev/shm/a,b","size":"1M"}"#);
        assert_eq!(
            serde_json::from_str::<SharedMemorySpec>(&json).unwrap(),
            sized
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (word, why) in [
            ("size=1M", "missing field `path`"),
            ("path=", "path= has no value"),
            ("path=f,size=1X", "not a size"),
            ("path=f,size=0", "0 bytes are no multiple of 4096"),
            ("path=f,size=4097", "4097 bytes are no multiple of 4096"),
            ("path=f,size=2T", "2199023255552 bytes are no multiple"),
            ("path=f,readonly", "unknown field `readonly`"),
        ] {
            let error = read(word).unwrap_err();
            assert!(error.contains(why), "{word}: {error}");
        }
    }
}
