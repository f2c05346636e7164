// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a new host gives a saved machine: files, networks, a console.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::{self, Cache, Draft, NetSpec, OnReboot, SerialSpec, VmSpec};
use crate::text::shown;

/// The keys that may differ from those of the saved machine.
pub const OVERRIDES: [&str; 15] = [
    "disk",
    "cloud-init",
    "net",
    "vsock",
    "shared-memory",
    "console-port",
    "console",
    "serial",
    "serial-bandwidth",
    "on-panic",
    "timeout",
    "metrics",
    "event-log",
    "sealed",
    "snapshot-dir",
];

/// Those of them that reach files and networks for the guest's devices.
pub const DEVICES: [&str; 7] = [
    "disk",
    "cloud-init",
    "net",
    "vsock",
    "shared-memory",
    "console-port",
    "console",
];

/// Why a machine can't go on with what it is given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdaptError {
    /// The machine has what it was saved with.
    #[error("--{key} can't differ from the saved machine's; leave it out")]
    Fixed {
        /// The key.
        key: String,
    },
    /// The number of devices is another one.
    #[error(
        "the saved machine has {saved} of what --{key} adds, and {given} given; give each, in the order of the saved \
         machine{}",
        if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
    )]
    Count {
        /// The key.
        key: &'static str,
        /// How many the saved machine has.
        saved: usize,
        /// How many were given, as words.
        given: String,
        /// What they were.
        names: Vec<String>,
    },
    /// What the guest wrote to a disk is in the snapshot, and has no place.
    #[error(
        "the saved machine wrote to an overlay of {0:?}, which goes on in another one; add `,overlay=tmp` to its --disk"
    )]
    Overlay(PathBuf),
    /// The shared memory has another size.
    #[error(
        "the saved machine has {saved} bytes of shared memory, not {given}; leave the size out"
    )]
    SharedSize {
        /// The bytes of the saved machine.
        saved: u64,
        /// The bytes that were given.
        given: u64,
    },
    /// Only one of both has COM1.
    #[error("the saved machine {} COM1, so --serial off {} possible", if *has { "has" } else { "has no" }, if *has { "is not" } else { "alone is" })]
    Serial {
        /// Whether the saved machine has it.
        has: bool,
    },
    /// A key is none of [`DEVICES`].
    #[error("{:?} is none of {}; leave it out", shown(.0), DEVICES.join(", "))]
    NoDevice(String),
    /// A value in JSON is not valid.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Only one of both has a virtio console.
    #[error("the saved machine {} virtio console, so --console off {} possible", if *has { "has a" } else { "has no" }, if *has { "is not" } else { "alone is" })]
    Console {
        /// Whether the saved machine has it.
        has: bool,
    },
    /// The guest knows a port by another name.
    #[error(
        "the saved machine's console port {saved:?} is named {given:?} here; give its name, and the ports in their order"
    )]
    PortName {
        /// Its name.
        saved: String,
        /// The one that was given.
        given: String,
    },
    /// A value is not valid.
    #[error(transparent)]
    Config(#[from] config::Error),
}

/// The saved machine `saved` with what `flags` give it. Whatever reaches files or networks of the host must be given.
///
/// # Errors
/// [`AdaptError`] says what is missing or not possible.
pub fn adapt(saved: VmSpec, flags: &[(&'static str, OsString)]) -> Result<VmSpec, AdaptError> {
    let fixed = flags.iter().find(|(key, _)| !OVERRIDES.contains(key));
    if let Some((key, _)) = fixed {
        let key = (*key).to_owned();
        return Err(AdaptError::Fixed { key });
    }
    adapt_with(saved, |mut draft| {
        let mut flags = flags.iter();
        flags.try_for_each(|(key, word)| draft.say(key, word))?;
        Ok(draft)
    })
}

/// As [`adapt`], with keys and values of a config file, which must be some of [`DEVICES`].
///
/// # Errors
/// [`AdaptError`] says what is missing or not possible.
pub fn adapt_json(saved: VmSpec, given: &Map<String, Value>) -> Result<VmSpec, AdaptError> {
    if let Some(key) = given.keys().find(|key| !DEVICES.contains(&key.as_str())) {
        return Err(AdaptError::NoDevice(key.clone()));
    }
    let text = serde_json::to_string(given)?;
    adapt_with(saved, |draft| Ok(draft.read_json(&text)?))
}

fn adapt_with(
    saved: VmSpec,
    give: impl FnOnce(Draft) -> Result<Draft, AdaptError>,
) -> Result<VmSpec, AdaptError> {
    let draft = Draft::from(VmSpec {
        disk: Vec::new(),
        net: Vec::new(),
        vsock: None,
        shared_memory: None,
        console_port: Vec::new(),
        cloud_init: None,
        on_reboot: OnReboot::Exit,
        sealed: false,
        ..saved.clone()
    });
    let mut spec = give(draft)?.finish_partly()?;
    spec.mmds = saved.mmds.clone();
    let disks = saved.disk.iter().map(|disk| format!("{:?}", disk.path));
    count("disk", saved.disk.len(), spec.disk.len(), disks.collect())?;
    let nets = saved.net.iter().map(|net| net.link.to_string());
    count("net", saved.net.len(), spec.net.len(), nets.collect())?;
    let vsocks = [&saved, &spec].map(|spec| usize::from(spec.vsock.is_some()));
    let socket = saved.vsock.iter().map(|vsock| {
        let socket = vsock.socket.display();
        format!("cid={},socket={socket}", vsock.cid)
    });
    count("vsock", vsocks[0], vsocks[1], socket.collect())?;
    check_ports(&spec, &saved)?;
    let seeds = [&saved, &spec].map(|spec| usize::from(spec.cloud_init.is_some()));
    count("cloud-init", seeds[0], seeds[1], Vec::new())?;
    keep_shared(&mut spec, &saved)?;
    let [has, given] = [&saved, &spec].map(|spec| spec.serial != SerialSpec::Off);
    if has != given {
        return Err(AdaptError::Serial { has });
    }
    let [has, given] = [&saved, &spec].map(|spec| spec.console != SerialSpec::Off);
    if has != given {
        return Err(AdaptError::Console { has });
    }
    for (net, saved) in spec.net.iter_mut().zip(&saved.net) {
        keep(net, saved);
    }
    for (disk, saved) in spec.disk.iter_mut().zip(&saved.disk) {
        if saved.overlay.is_some() && disk.overlay.is_none() {
            return Err(AdaptError::Overlay(saved.path.clone()));
        }
        (disk.queues, disk.slot) = (saved.queues, saved.slot);
        // The guest knows whether it can flush.
        if [disk.cache, saved.cache].contains(&Cache::Unsafe) {
            disk.cache = saved.cache;
        }
        disk.serial = disk.serial.take().or_else(|| saved.serial.clone());
    }
    Ok(spec)
}

/// The guest knows its console ports by their names.
fn check_ports(spec: &VmSpec, saved: &VmSpec) -> Result<(), AdaptError> {
    let names = saved.console_port.iter().map(|port| port.name.clone());
    let [has, given] = [saved, spec].map(|spec| spec.console_port.len());
    count("console-port", has, given, names.collect())?;
    let mut pairs = saved.console_port.iter().zip(&spec.console_port);
    match pairs.find(|(saved, given)| saved.name != given.name) {
        Some((saved, given)) => Err(AdaptError::PortName {
            saved: saved.name.clone(),
            given: given.name.clone(),
        }),
        None => Ok(()),
    }
}

fn count(
    key: &'static str,
    saved: usize,
    given: usize,
    names: Vec<String>,
) -> Result<(), AdaptError> {
    if saved == given {
        return Ok(());
    }
    let given = match given {
        0 => "none is".to_owned(),
        1 => "1 is".to_owned(),
        more => format!("{more} are"),
    };
    Err(AdaptError::Count {
        key,
        saved,
        given,
        names,
    })
}

/// The guest knows the size of its shared memory.
fn keep_shared(spec: &mut VmSpec, saved: &VmSpec) -> Result<(), AdaptError> {
    let has = [saved, &*spec].map(|spec| usize::from(spec.shared_memory.is_some()));
    let size = saved.shared_memory.as_ref().and_then(|memory| memory.size);
    let bytes = size.map(|size| format!("{size} bytes"));
    count("shared-memory", has[0], has[1], bytes.into_iter().collect())?;
    let Some(memory) = &mut spec.shared_memory else {
        return Ok(());
    };
    match (size, memory.size) {
        (Some(saved), Some(given)) if saved != given => {
            Err(AdaptError::SharedSize { saved, given })
        }
        _ => {
            memory.size = size;
            Ok(())
        }
    }
}

/// What the guest knows of its network stays.
fn keep(net: &mut NetSpec, saved: &NetSpec) {
    net.mac = net.mac.or(saved.mac);
    net.mtu = net.mtu.or(saved.mtu);
    net.queues = saved.queues;
    net.slot = saved.slot;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskSpec, LinkSpec, PortTarget, VsockSpec};

    fn saved() -> VmSpec {
        VmSpec {
            cpus: 2,
            disk: vec![DiskSpec {
                queues: 2,
                cache: Cache::Unsafe,
                ..DiskSpec::new("disk.img")
            }],
            net: vec![NetSpec {
                mtu: Some(1400),
                ..NetSpec::new(LinkSpec::Tap("tap0".into()))
            }],
            on_reboot: OnReboot::Reset,
            ..VmSpec::new("")
        }
    }

    fn adapted(flags: &[(&'static str, &str)]) -> Result<VmSpec, String> {
        let flags: Vec<_> = flags
            .iter()
            .map(|(key, word)| (*key, word.into()))
            .collect();
        adapt(saved(), &flags).map_err(|error| error.to_string())
    }

    #[test]
    fn files_and_networks_are_given_again_and_the_rest_stays() {
        let flags = [("disk", "path=/new/disk"), ("net", "tap=tap7")];
        let spec = adapted(&flags).unwrap();
        assert_eq!(spec.disk[0].path.to_str(), Some("/new/disk"));
        assert_eq!((spec.disk[0].queues, spec.cpus), (2, 2));
        assert_eq!(spec.disk[0].cache, Cache::Unsafe);
        assert_eq!(spec.net[0].link, LinkSpec::Tap("tap7".into()));
        assert_eq!(spec.net[0].mtu, Some(1400));
        assert_eq!(spec.on_reboot, OnReboot::Exit);
        for left_out in 0..2 {
            let error = adapted(&flags[left_out..=left_out]).unwrap_err();
            assert!(error.contains("none is given"), "{error}");
        }
        let error = adapted(&[]).unwrap_err();
        assert!(error.contains("\"disk.img\""), "{error}");
        let two = [flags[0], flags[0], flags[1]];
        assert!(adapted(&two).unwrap_err().contains("2 are given"));
    }

    #[test]
    fn an_overlay_goes_on_in_an_overlay() {
        let mut saved = saved();
        saved.disk[0].overlay = Some("tmp".into());
        let adapted = |disk: &str| {
            let flags = [("disk", disk.into()), ("net", "tap=tap7".into())];
            adapt(saved.clone(), &flags).map_err(|error| error.to_string())
        };
        let spec = adapted("path=/new/disk,overlay=/fast").unwrap();
        assert_eq!(spec.disk[0].overlay.as_deref(), Some("/fast".as_ref()));
        let error = adapted("path=/new/disk").unwrap_err();
        assert!(error.contains("add `,overlay=tmp`"), "{error}");
    }

    #[test]
    fn a_vsock_is_given_again_with_another_socket_or_cid() {
        let saved = VmSpec {
            vsock: Some(VsockSpec::new(3, "old")),
            ..VmSpec::new("")
        };
        let spec = adapt(saved.clone(), &[("vsock", "cid=4,socket=new".into())]).unwrap();
        assert_eq!(spec.vsock, Some(VsockSpec::new(4, "new")));
        let error = adapt(saved, &[]).unwrap_err().to_string();
        assert!(error.contains("none is given"), "{error}");
        assert!(error.contains("(cid=3,socket=old)"), "{error}");
        let error = adapt(VmSpec::new(""), &[("vsock", "cid=4,socket=new".into())]);
        assert!(error.unwrap_err().to_string().contains("1 is given"));
    }

    #[test]
    fn ports_and_consoles_are_given_again_with_other_ends() {
        let ports = |words: &[&str]| -> Vec<(&'static str, OsString)> {
            let port = |word: &&str| ("console-port", (*word).into());
            words.iter().map(port).collect()
        };
        let saved = VmSpec {
            console: SerialSpec::Pty,
            ..adapt_new(&ports(&["name=a,to=pty", "name=b,to=file:f"]))
        };
        let mut flags = ports(&["name=a,to=unix:s", "name=b,to=fd:5"]);
        flags.push(("console", "file=log".into()));
        let spec = adapt(saved.clone(), &flags).unwrap();
        assert_eq!(spec.console, SerialSpec::File("log".into()));
        assert_eq!(spec.console_port[1].to, PortTarget::Fd(5));
        for (flags, why) in [
            (
                ports(&[]),
                "none is given; give each, in the order of the saved machine (a, b)",
            ),
            (
                ports(&["name=b,to=pty", "name=a,to=pty"]),
                "port \"a\" is named \"b\" here",
            ),
        ] {
            let error = adapt(saved.clone(), &flags).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let off = [("console", "off".into())];
        let error = adapt(
            VmSpec {
                console_port: Vec::new(),
                ..saved
            },
            &off,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("has a virtio console"),
            "{error}"
        );
        let error = adapt(VmSpec::new(""), &flags[2..]).unwrap_err();
        assert!(
            error.to_string().contains("has no virtio console"),
            "{error}"
        );
    }

    /// A machine with these options.
    fn adapt_new(flags: &[(&'static str, OsString)]) -> VmSpec {
        let mut draft = Draft::default();
        for (key, word) in flags {
            draft.say(key, word).unwrap();
        }
        draft.finish_partly().unwrap()
    }

    #[test]
    fn what_the_guest_has_seen_can_not_differ() {
        let flags = [("disk", "path=d"), ("net", "tap=tap7")];
        for (key, word, why) in [
            ("cpus", "4", "--cpus can't differ"),
            ("kernel", "k", "--kernel can't differ"),
            ("memory", "1G", "--memory can't differ"),
            ("serial", "off", "has COM1"),
            ("cloud-init", "dir", "1 is given"),
        ] {
            let flags = [&flags[..], &[(key, word)]].concat();
            let error = adapted(&flags).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
