// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine description under construction: first from a config file, then from flags.

use std::ffi::OsStr;
use std::fmt::{self, Formatter};
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::words::{Count, Word, WordError, Worded};
use super::{Error, VmSpec};

/// The values set so far. A later value overrides an earlier one; devices are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    spec: VmSpec,
    // Not in `spec`, since they may still be missing or depend on other values.
    kernel: Option<PathBuf>,
    cmdline: Option<String>,
    cpus: Count,
}

/// A source of one value.
trait Source {
    type Error;

    /// Reads the value into `place`.
    fn read<T: Word>(self, place: &mut T) -> Result<(), Self::Error>;
}

/// Defines the list of keys, and a function that finds the field of each.
macro_rules! keys {
    ($draft:ident: $($key:literal => $place:expr,)+) => {
        /// The keys of a machine in JSON, which are the names of its flags.
        pub const KEYS: &[&str] = &[$($key),+];

        impl Draft {
            /// Sets `key` from `source`. `None` if there is no such key.
            fn say_by<S: Source>(&mut self, key: &str, source: S) -> Option<Result<(), S::Error>> {
                let $draft = self;
                match key {
                    $($key => Some(source.read(&mut $place)),)+
                    _ => None,
                }
            }
        }
    };
}

keys! { draft:
    "kernel" => draft.kernel,
    "initrd" => draft.spec.initrd,
    "cmdline" => draft.cmdline,
    "boot-protocol" => draft.spec.boot_protocol,
    "decompress" => draft.spec.decompress,
    "cpus" => draft.cpus,
    "memory" => draft.spec.memory,
    "cpu-features" => draft.spec.cpu_features,
    "msrs" => draft.spec.msrs,
    "kvm-capabilities" => draft.spec.kvm_capabilities,
    "nested" => draft.spec.nested,
    "legacy-timer" => draft.spec.legacy_timer,
    "rtc" => draft.spec.rtc,
    "serial" => draft.spec.serial,
    "serial-bandwidth" => draft.spec.serial_bandwidth,
    "console" => draft.spec.console,
    "console-port" => draft.spec.console_port,
    "virtio" => draft.spec.virtio,
    "hotplug" => draft.spec.hotplug,
    "rng" => draft.spec.rng,
    "disk" => draft.spec.disk,
    "cloud-init" => draft.spec.cloud_init,
    "net" => draft.spec.net,
    "vsock" => draft.spec.vsock,
    "share" => draft.spec.share,
    "vhost-user" => draft.spec.vhost_user,
    "shared-memory" => draft.spec.shared_memory,
    "balloon" => draft.spec.balloon,
    "debug-exit" => draft.spec.debug_exit,
    "on-reboot" => draft.spec.on_reboot,
    "on-panic" => draft.spec.on_panic,
    "timeout" => draft.spec.timeout,
    "hypercall" => draft.spec.hypercall,
    "hypercall-abi" => draft.spec.hypercall_abi,
    "para" => draft.spec.para,
    "msr-policy" => draft.spec.msr_policy,
    "sealed" => draft.spec.sealed,
    "metrics" => draft.spec.metrics,
    "event-log" => draft.spec.event_log,
    "snapshot-dir" => draft.spec.snapshot_dir,
}

impl Default for Draft {
    /// Nothing is set.
    fn default() -> Self {
        let spec = VmSpec::new(PathBuf::new());
        Draft {
            kernel: None,
            cmdline: None,
            cpus: Count(spec.cpus.into()),
            spec,
        }
    }
}

impl Draft {
    /// Sets `key` from the word of the flag `--key`.
    ///
    /// # Errors
    /// When there is no such key, or `word` is not valid for it.
    pub fn say(&mut self, key: &str, word: &OsStr) -> Result<(), Error> {
        match self.say_by(key, Flag(word)) {
            Some(said) => said.map_err(|why| Error::Word {
                key: key.into(),
                word: word.into(),
                why,
            }),
            None => Err(Error::UnknownKey { key: key.into() }),
        }
    }

    /// The machine, with defaults for what was not set.
    ///
    /// # Errors
    /// When [`VmSpec::validate`] fails, or no kernel was given.
    pub fn finish(self) -> Result<VmSpec, Error> {
        if self.kernel.is_none() {
            return Err(Error::NoKernel);
        }
        let spec = self.finish_partly()?;
        spec.validate()?;
        Ok(spec)
    }

    /// Like [`finish`](Self::finish), but without a kernel its path is empty.
    ///
    /// # Errors
    /// When a value is not valid.
    pub fn finish_partly(self) -> Result<VmSpec, Error> {
        let Count(cpus) = self.cpus;
        let default_cmdline = || VmSpec::default_cmdline(&self.spec.serial, &self.spec.console);
        let spec = VmSpec {
            kernel: self.kernel.unwrap_or_default(),
            cmdline: self.cmdline.unwrap_or_else(default_cmdline),
            cpus: u8::try_from(cpus).map_err(|_| Error::TooManyCpus { cpus })?,
            ..self.spec
        };
        spec.validate_partly()?;
        Ok(spec)
    }

    /// Sets the values in `json`, an object as in a config file.
    ///
    /// # Errors
    /// When it is not JSON, or has a key or value that is not valid.
    pub fn read_json(self, json: &str) -> Result<Draft, serde_json::Error> {
        let mut from = serde_json::Deserializer::from_str(json);
        let draft = from.deserialize_map(DraftVisitor(self))?;
        from.end()?;
        Ok(draft)
    }
}

impl From<VmSpec> for Draft {
    /// Everything is set as in `spec`. An empty path of the kernel is none.
    fn from(spec: VmSpec) -> Self {
        let kernel = Some(&spec.kernel).filter(|path| !path.as_os_str().is_empty());
        Draft {
            kernel: kernel.cloned(),
            cmdline: Some(spec.cmdline.clone()),
            cpus: Count(spec.cpus.into()),
            spec,
        }
    }
}

/// Checks that `word` is valid for `key`, which must be one of [`KEYS`].
pub(crate) fn check_word(key: &str, word: &OsStr) -> Result<(), WordError> {
    Draft::default().say_by(key, Flag(word)).unwrap_or(Ok(()))
}

/// The word of a flag.
struct Flag<'a>(&'a OsStr);

impl Source for Flag<'_> {
    type Error = WordError;

    fn read<T: Word>(self, place: &mut T) -> Result<(), WordError> {
        place.put(T::from_os_word(self.0)?);
        Ok(())
    }
}

/// The value of a JSON entry. `null` sets nothing.
struct Entry<'a, 'de, A>(&'a mut A, PhantomData<&'de ()>);

impl<'de, A: MapAccess<'de>> Source for Entry<'_, 'de, A> {
    type Error = A::Error;

    fn read<T: Word>(self, place: &mut T) -> Result<(), A::Error> {
        if let Some(Worded(value)) = self.0.next_value()? {
            *place = value;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Draft {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(DraftVisitor(Draft::default()))
    }
}

/// Adds the entries of an object to a draft.
struct DraftVisitor(Draft);

impl<'de> Visitor<'de> for DraftVisitor {
    type Value = Draft;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("an object such as {\"kernel\": \"vmlinux\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Draft, A::Error> {
        let DraftVisitor(mut draft) = self;
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let Some(known) = KEYS.iter().find(|known| **known == key) else {
                return Err(de::Error::custom(Error::UnknownKey { key }));
            };
            if seen.contains(&known) {
                return Err(de::Error::duplicate_field(known));
            }
            seen.push(known);
            draft
                .say_by(known, Entry(&mut map, PhantomData))
                .unwrap_or(Ok(()))?;
        }
        Ok(draft)
    }
}

impl<'de> Deserialize<'de> for VmSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Draft::deserialize(from)?
            .finish()
            .map_err(de::Error::custom)
    }
}
