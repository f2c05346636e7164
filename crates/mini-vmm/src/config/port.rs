// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of console ports.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer, ser};
use virtio_models::console::MAX_PORTS;

use super::device::Listed;
use super::words::{self, Word, WordError};

/// A named port between processes of the guest and of the host.
///
/// As JSON it is an object with the flag's keys, such as `{"name": "org.example.log", "to": "file:log"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Its name in the guest: up to [`MAX_NAME`](Self::MAX_NAME) bytes.
    pub name: String,
    /// The host's end.
    #[serde(deserialize_with = "words::word")]
    pub to: PortTarget,
}

/// The host's end of a console port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortTarget {
    /// The VMM's standard input and output.
    Stdio,
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// The guest's data goes to this file.
    File(PathBuf),
    /// A listening Unix socket at this path; one client at a time.
    Unix(PathBuf),
    /// An open descriptor, by its inherited number. 0 is for input only, 1 and 2 for output only.
    Fd(u32),
}

/// Why a list of console ports is not possible. The messages continue the phrase "no console port: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// A name that the guest can't show as a file.
    #[error(
        "the name {name:?} is not possible; write 1 to {} letters, digits and any of .-_:",
        PortSpec::MAX_NAME
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two have the same name.
    #[error("two ports are named {name:?}; give each its own name")]
    SameName {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("{ports} ports are too many; give {} or fewer", MAX_PORTS - 1)]
    TooMany {
        /// How many.
        ports: usize,
    },
    /// Several readers of standard input.
    #[error(
        "port {name:?} reads standard input, which something else reads, too; say --serial off, or to=fd:1 if the port needs \
         only output"
    )]
    Input {
        /// The port's name.
        name: String,
    },
}

impl PortSpec {
    /// The longest name in bytes: a file name in the guest.
    pub const MAX_NAME: usize = 64;

    /// Checks the name.
    ///
    /// # Errors
    /// [`PortError::Name`].
    pub fn validate(&self) -> Result<(), PortError> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        let name = &self.name;
        let fits = (1..=Self::MAX_NAME).contains(&name.len()) && name.chars().all(is_part);
        match fits && !name.starts_with('.') {
            true => Ok(()),
            false => Err(PortError::Name { name: name.clone() }),
        }
    }
}

impl PortTarget {
    /// The path that it names.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            PortTarget::File(path) | PortTarget::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// Whether it reads the VMM's standard input.
    pub const fn reads_stdin(&self) -> bool {
        matches!(self, PortTarget::Stdio | PortTarget::Fd(0))
    }

    /// The word that is read back as this value.
    pub fn to_word(&self) -> OsString {
        let mut word = OsString::from(match self {
            PortTarget::Stdio => "stdio",
            PortTarget::Pty => "pty",
            PortTarget::File(_) => "file:",
            PortTarget::Unix(_) => "unix:",
            PortTarget::Fd(_) => "fd:",
        });
        match self {
            PortTarget::Fd(fd) => word.push(fd.to_string()),
            other => word.push(other.path().map_or(OsStr::new(""), |path| path.as_os_str())),
        }
        word
    }
}

/// Checks all ports together. `has_input` tells whether something else reads standard input.
///
/// # Errors
/// [`PortError`] is the first thing that is not possible.
pub(super) fn validate(ports: &[PortSpec], mut has_input: bool) -> Result<(), PortError> {
    if ports.len() >= MAX_PORTS {
        let ports = ports.len();
        return Err(PortError::TooMany { ports });
    }
    for (at, port) in ports.iter().enumerate() {
        port.validate()?;
        let name = || port.name.clone();
        if ports[..at].iter().any(|other| other.name == port.name) {
            return Err(PortError::SameName { name: name() });
        }
        if port.to.reads_stdin() && std::mem::replace(&mut has_input, true) {
            return Err(PortError::Input { name: name() });
        }
    }
    Ok(())
}

impl Word for PortTarget {
    const EXPECTED: &'static str = "\"stdio\", \"pty\", \"file:PATH\", \"unix:PATH\" or \"fd:N\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Self::from_os_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        let (kind, value) = match word.as_bytes().iter().position(|byte| *byte == b':') {
            Some(at) => (
                &word.as_bytes()[..at],
                Some(OsStr::from_bytes(&word.as_bytes()[at + 1..])),
            ),
            None => (word.as_bytes(), None),
        };
        let value = value.filter(|value| !value.is_empty());
        match (kind, value) {
            (b"stdio", None) if word == "stdio" => Ok(PortTarget::Stdio),
            (b"pty", None) if word == "pty" => Ok(PortTarget::Pty),
            (b"file", Some(path)) => Ok(PortTarget::File(path.into())),
            (b"unix", Some(path)) => Ok(PortTarget::Unix(path.into())),
            (b"fd", Some(fd)) => {
                let fd = fd.to_str().and_then(|fd| fd.parse().ok());
                fd.map(PortTarget::Fd).ok_or(WordError::PortTarget)
            }
            _ => Err(WordError::PortTarget),
        }
    }
}

impl Serialize for PortTarget {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let word = self.to_word().into_string().map_err(|word| {
            ser::Error::custom(format_args!("{word:?} is not UTF-8, which JSON needs"))
        })?;
        to.serialize_str(&word)
    }
}

impl<'de> Deserialize<'de> for PortTarget {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

impl Listed for PortSpec {
    const EXPECTED: &'static str =
        "a list of ports such as [{\"name\": \"org.example.log\", \"to\": \"file:log\"}]";
    const REFUSED: fn(String) -> WordError = WordError::ConsolePort;
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Valid ports of every kind.
    pub(in crate::config) fn any_ports() -> impl Strategy<Value = Vec<PortSpec>> {
        let path = || "[ -~é\n]{1,40}".prop_map(PathBuf::from);
        let to = prop_oneof![
            Just(PortTarget::Pty),
            path().prop_map(PortTarget::File),
            path().prop_map(PortTarget::Unix),
            (1..u32::MAX).prop_map(PortTarget::Fd),
        ];
        let named = |ports: Vec<PortTarget>| {
            let ports = ports.into_iter().enumerate();
            let port = |(number, to)| PortSpec {
                name: format!("org.x-{number}"),
                to,
            };
            ports.map(port).collect()
        };
        proptest::collection::vec(to, 0..4).prop_map(named)
    }

    fn read(words: &[&str]) -> Result<Vec<PortSpec>, String> {
        let mut ports = Vec::new();
        for word in words {
            let port = Vec::<PortSpec>::from_word(word).map_err(|why| why.to_string())?;
            ports.put(port);
        }
        validate(&ports, false).map_err(|why| why.to_string())?;
        Ok(ports)
    }

    #[test]
    fn a_port_has_a_name_and_an_end() {
        for (to, target) in [
            ("stdio", PortTarget::Stdio),
            ("pty", PortTarget::Pty),
            ("file:a:b", PortTarget::File("a:b".into())),
            ("unix:/run/p,,1", PortTarget::Unix("/run/p,1".into())),
            ("fd:7", PortTarget::Fd(7)),
        ] {
            let port = read(&[&format!("name=org.x_1,to={to}")]).unwrap().remove(0);
            assert_eq!(
                port,
                PortSpec {
                    name: "org.x_1".into(),
                    to: target
                }
            );
            let json = serde_json::to_string(&port).unwrap();
            assert_eq!(serde_json::from_str::<PortSpec>(&json).unwrap(), port);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (words, why) in [
            (&["name=a"][..], "missing field `to`"),
            (&["to=pty"], "missing field `name`"),
            (
                &["name=a,to=tcp:1"],
                "stdio, pty, file:PATH, unix:PATH or fd:N",
            ),
            (
                &["name=a,to=file:"],
                "stdio, pty, file:PATH, unix:PATH or fd:N",
            ),
            (
                &["name=a,to=fd:-1"],
                "stdio, pty, file:PATH, unix:PATH or fd:N",
            ),
            (
                &["name=a,to=pty:x"],
                "stdio, pty, file:PATH, unix:PATH or fd:N",
            ),
            (&["name=a/b,to=pty"], "the name \"a/b\" is not possible"),
            (&["name=..,to=pty"], "the name \"..\" is not possible"),
            (
                &["name=a,to=pty", "name=a,to=pty"],
                "two ports are named \"a\"",
            ),
            (
                &["name=a,to=stdio", "name=b,to=fd:0"],
                "port \"b\" reads standard input",
            ),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.contains(why), "{words:?}: {error}");
        }
        let words: Vec<_> = (0..32).map(|n| format!("name=p{n},to=fd:1")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        read(&words[..31]).unwrap();
        assert!(
            read(&words)
                .unwrap_err()
                .contains("32 ports are too many; give 31 or fewer")
        );
    }
}
