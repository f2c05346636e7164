// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of shared directories.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::device::Listed;
use super::iothread::{self, IoThreadName};
use super::words::{self, WordError};

/// A directory of the host that the guest can mount.
///
/// As JSON it is an object with the flag's keys, such as `{"path": ".", "tag": "work"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// The directory.
    #[serde(deserialize_with = "words::path")]
    pub path: PathBuf,
    /// The name by which the guest mounts it: 1 to 36 bytes. By default `share` and the share's number, from 0 on.
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether the guest can change nothing in it.
    #[serde(default, deserialize_with = "words::word")]
    pub readonly: bool,
    /// What keeps virtiofsd to the directory.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// The I/O thread of the device. By default it is the one that devices share.
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<IoThreadName>,
}

/// What keeps virtiofsd to the directory that it shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Namespaces; none for an ordinary user whose host has none for it.
    #[default]
    Auto,
    /// Namespaces of its own. An ordinary user needs user namespaces.
    Namespace,
    /// A root directory of its own, for root only.
    Chroot,
    /// Only the rights of the user.
    None,
}

impl ShareSpec {
    /// A writable directory, with defaults for everything else.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ShareSpec {
            path: path.into(),
            tag: None,
            readonly: false,
            sandbox: Sandbox::default(),
            iothread: None,
        }
    }

    /// The tag of the share with this number.
    pub(crate) fn tag(&self, number: usize) -> String {
        let usual = || format!("share{number}");
        self.tag.clone().unwrap_or_else(usual)
    }
}

/// A list in JSON, or the directory of one flag.
impl Listed for ShareSpec {
    const EXPECTED: &'static str = "a list of directories such as [{\"path\": \".\"}]";
    const REFUSED: fn(String) -> WordError = WordError::Share;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::words::Word;
    use crate::config::{Error, VhostUserDevice, VhostUserError, VhostUserSpec, VmSpec};

    fn read(word: &str) -> Result<ShareSpec, String> {
        let shares = Vec::<ShareSpec>::from_word(word).map_err(|why| why.to_string())?;
        Ok(shares[0].clone())
    }

    #[test]
    fn a_share_is_a_directory_with_a_tag() {
        let share = read("path=a,,b").unwrap();
        assert_eq!(share, ShareSpec::new("a,b"));
        assert_eq!(share.tag(2), "share2");
        let full = ShareSpec {
            tag: Some("work".to_owned()),
            readonly: true,
            sandbox: Sandbox::Chroot,
            iothread: IoThreadName::new("fs"),
            ..ShareSpec::new(".")
        };
        let word = "path=.,tag=work,readonly,sandbox=chroot,iothread=fs";
        assert_eq!(read(word), Ok(full.clone()));
        assert_eq!(full.tag(2), "work");
        let json = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<ShareSpec>(&json).unwrap(), full);
        for (word, why) in [
            ("tag=a", "missing field `path`"),
            (".", "unknown field `.`"),
            ("path=.,sandbox=jail", "unknown variant `jail`"),
            ("path=.,dir=x", "unknown field `dir`"),
        ] {
            let error = read(word).unwrap_err();
            assert!(error.contains(why), "{word}: {error}");
        }
    }

    #[test]
    fn each_file_system_has_a_tag_of_its_own() {
        let spec = |shares: &[&str], tag: &str| VmSpec {
            share: shares
                .iter()
                .map(|tag| ShareSpec {
                    tag: Some((*tag).to_owned()).filter(|tag| !tag.is_empty()),
                    ..ShareSpec::new(".")
                })
                .collect(),
            vhost_user: vec![VhostUserSpec {
                tag: Some(tag.to_owned()),
                ..VhostUserSpec::new("s", VhostUserDevice::Fs)
            }],
            ..VmSpec::new("k")
        };
        spec(&["", "", "b"], "c").validate().unwrap();
        for (shares, tag) in [
            (&["b", "b"][..], "c"),
            (&["c"], "c"),
            (&["share1", ""], "c"),
            (&[""], "share0"),
        ] {
            let error = spec(shares, tag).validate().unwrap_err();
            assert!(matches!(error, Error::SameTag { .. }), "{error}");
        }
        let error = spec(&[&"x".repeat(37)], "c").validate().unwrap_err();
        assert!(matches!(
            error,
            Error::VhostUser(VhostUserError::TagLength { .. })
        ));
    }
}
