// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of devices: opened and checked once, before the guest starts, and kept through resets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use virtio_models::balloon;
use virtio_models::block::{self, OpenError};
use virtio_models::vhost_user::Backend;
use virtio_models::vsock::Host;

use super::SavedOverlay;
use super::console_ports::{self, PortHost, PortHostError};
use super::network::{self, Network, NetworkError};
use super::share::{self, Share, ShareError};
use super::vhost_user::{self, VhostUserHostError};
use super::vsock;
use crate::cloud_init::{self, SeedError};
use crate::config::{DiskSpec, Mac, SharedMemorySpec, VmSpec};
use crate::console::Hvc;
use crate::inputs;
use crate::memory::{SharedMemory, SharedMemoryError};
use crate::socket_file::SocketError;
use crate::telemetry::EventLog;

/// What a machine's devices use on the host. Clones are the same files.
#[derive(Clone, Default)]
pub struct Backends {
    /// The disks' images, then the cloud-init seed if there is one.
    pub(super) disks: Vec<block::Image>,
    /// The networks' links.
    pub(super) nets: Vec<Network>,
    /// The socket device's socket.
    pub(super) vsock: Option<Arc<dyn Host>>,
    /// The shared directories.
    pub(super) shares: Vec<Share>,
    /// The processes that serve devices.
    pub(super) vhost_user: Vec<Arc<Backend>>,
    /// The file that the guest has as memory.
    pub(crate) shared: Option<SharedMemory>,
    /// The console ports' ends.
    pub(super) ports: Vec<PortHost>,
    /// What the virtio console is connected to, once that is open.
    pub(crate) hvc: Arc<OnceLock<Hvc>>,
    /// The control of the balloon, which keeps its target size over resets.
    pub(super) balloon: Option<Arc<balloon::Control>>,
    /// Takes their problems.
    pub(crate) events: EventLog,
}

/// Why the host's side of a device can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A disk's image can't be used.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// There is no cloud-init seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A network can't be connected.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A socket device can't be connected.
    #[error(transparent)]
    Vsock(#[from] SocketError),
    /// A device's process can't be used.
    #[error(transparent)]
    VhostUser(#[from] VhostUserHostError),
    /// A directory can't be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A file can't be shared memory.
    #[error(transparent)]
    Shared(#[from] SharedMemoryError),
    /// The shared memory is something else, too.
    #[error(
        "the shared memory {path:?} is also {other:?}, which the guest would damage; name another file"
    )]
    SharedInput {
        /// Its path.
        path: PathBuf,
        /// The path of what it is.
        other: PathBuf,
    },
    /// A console port can't be connected.
    #[error(transparent)]
    Port(#[from] PortHostError),
    /// Two disks are one file, and the guest can write to it.
    #[error(
        "the disks {first:?} and {second:?} are one file, which a guest would damage; use a copy, or say `readonly` for \
         both"
    )]
    SameDisk {
        /// The path of one.
        first: PathBuf,
        /// The path of the other.
        second: PathBuf,
    },
}

impl Backends {
    /// The address of each network's device.
    pub(crate) fn macs(&self) -> impl Iterator<Item = Mac> {
        self.nets.iter().map(|net| net.config.mac)
    }

    /// Opens what the devices of `spec` use. Creates and changes nothing, but starts passt for networks that want it and
    /// virtiofsd for shared directories, and makes the files of sockets and of console ports.
    /// `go_on` is asked while that takes long, and may stop it.
    ///
    /// # Errors
    /// [`BackendError`] names the file or network that can't be used, and why.
    pub fn open(spec: &VmSpec, go_on: &dyn Fn() -> bool) -> Result<Self, BackendError> {
        Self::open_saved(spec, &[], go_on)
    }

    /// As [`open`](Self::open), for a machine that goes on with these overlays. They are copied.
    ///
    /// # Errors
    /// [`BackendError`]. A damaged overlay is one.
    pub fn open_saved(
        spec: &VmSpec,
        overlays: &[SavedOverlay],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self, BackendError> {
        check_distinct(&spec.disk)?;
        let disks = spec.disk.iter().enumerate().map(|(number, disk)| {
            match overlays.iter().find(|saved| saved.disk == number) {
                None => block::open(&disk.block()),
                Some(saved) => block::open_saved(&disk.block(), &|to| saved.copy_to(to, go_on)),
            }
        });
        let mut disks: Vec<_> = disks.collect::<Result<_, _>>()?;
        if let Some(dir) = &spec.cloud_init {
            disks.push(seed(dir)?);
        }
        let shared = spec.shared_memory.as_ref();
        let shared = shared.map(|shared| open_shared(spec, shared)).transpose()?;
        let nets = network::open(&spec.net, spec.mmds.as_ref(), go_on)?;
        let others = spec.vhost_user.iter();
        let others = others.map(|device| vhost_user::open(device, spec.sealed));
        let vhost_user = others.collect::<Result<_, _>>()?;
        let shares = share::open(&spec.share)?;
        let balloon = spec.balloon.as_ref().map(|balloon| {
            let control = balloon::Control::new(balloon.pages(), balloon.stats);
            Arc::new(control)
        });
        // Last, because they leave files for a while.
        let vsock = spec.vsock.as_ref();
        let vsock = vsock.map(|vsock| vsock::open(vsock, spec.sealed));
        Ok(Backends {
            disks,
            nets,
            vsock: vsock.transpose()?,
            shares,
            vhost_user,
            shared,
            ports: console_ports::open_all(&spec.console_port)?,
            hvc: Arc::default(),
            balloon,
            events: EventLog::default(),
        })
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends")
            .field("disks", &self.disks)
            .field("nets", &self.nets)
            .field("vsock", &self.vsock.is_some())
            .field("shares", &self.shares)
            .field("vhost_user", &self.vhost_user)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// Opens the image of one of the disks of `spec` anew, by the same rules.
///
/// # Errors
/// [`BackendError`], as [`Backends::open`].
pub(crate) fn open_disk(spec: &VmSpec, disk: &DiskSpec) -> Result<block::Image, BackendError> {
    check_distinct(&spec.disk)?;
    Ok(block::open(&disk.block())?)
}

/// Opens shared memory, which must be nothing else of the machine.
fn open_shared(spec: &VmSpec, shared: &SharedMemorySpec) -> Result<SharedMemory, BackendError> {
    let others = VmSpec {
        shared_memory: None,
        ..spec.clone()
    };
    match inputs::same_as(&shared.path, &others) {
        None => Ok(SharedMemory::open(shared)?),
        Some(other) => Err(BackendError::SharedInput {
            path: shared.path.clone(),
            other,
        }),
    }
}

/// The disk with the cloud-init seed from `dir`.
fn seed(dir: &Path) -> Result<block::Image, SeedError> {
    let disk = block::Disk {
        readonly: true,
        ..block::Disk::default()
    };
    block::Image::raw(cloud_init::seed(dir)?, disk).map_err(SeedError::Memory)
}

/// Checks that disks share only images that the guest can't change. Their locks would find that, too, but not whose
/// they are.
fn check_distinct(disks: &[DiskSpec]) -> Result<(), BackendError> {
    let mut seen: Vec<(&DiskSpec, (u64, u64))> = Vec::new();
    for disk in disks {
        // A path without a file is reported when it is opened.
        let Some(file) = inputs::identity(&disk.path) else {
            continue;
        };
        let same = seen
            .iter()
            .find(|(other, at)| *at == file && (disk.changes_image() || other.changes_image()));
        if let Some((other, _)) = same {
            return Err(BackendError::SameDisk {
                first: other.path.clone(),
                second: disk.path.clone(),
            });
        }
        seen.push((disk, file));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn disk(path: &Path, readonly: bool) -> DiskSpec {
        DiskSpec {
            readonly,
            ..DiskSpec::new(path)
        }
    }

    fn open(disk: Vec<DiskSpec>) -> Result<Backends, String> {
        let spec = VmSpec {
            disk,
            ..VmSpec::new("vmlinux")
        };
        Backends::open(&spec, &|| true).map_err(|error| error.to_string())
    }

    #[test]
    fn disks_share_only_what_they_do_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link, other) = (
            dir.path().join("a"),
            dir.path().join("link"),
            dir.path().join("b"),
        );
        fs::write(&path, [0; 512]).unwrap();
        fs::write(&other, [0; 512]).unwrap();
        fs::hard_link(&path, &link).unwrap();
        for second in [&path, &link] {
            for (first_reads, second_reads) in [(false, false), (true, false), (false, true)] {
                let disks = vec![disk(&path, first_reads), disk(second, second_reads)];
                let error = open(disks).unwrap_err();
                assert!(error.contains("are one file"), "{error}");
                assert!(error.contains(&format!("{second:?}")), "{error}");
            }
            let shared = open(vec![disk(&path, true), disk(second, true)]).unwrap();
            assert_eq!(shared.disks.len(), 2);
        }
        let overlay = DiskSpec {
            overlay: Some(dir.path().into()),
            ..DiskSpec::new(&path)
        };
        open(vec![overlay.clone(), overlay.clone(), disk(&link, true)]).unwrap();
        open(vec![overlay, disk(&link, false)]).unwrap_err();
        open(vec![disk(&path, false), disk(&other, false)]).unwrap();
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing was created"
        );
    }

    #[test]
    fn a_seed_is_the_last_disk_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("user-data"), "#cloud-config\n").unwrap();
        fs::write(dir.path().join("a"), [0; 512]).unwrap();
        let spec = VmSpec {
            disk: vec![disk(&dir.path().join("a"), false)],
            cloud_init: Some(dir.path().into()),
            ..VmSpec::new("vmlinux")
        };
        let disks = Backends::open(&spec, &|| true).unwrap().disks;
        let disks: Vec<_> = disks.iter().map(block::Image::disk).collect();
        assert!(!disks[0].readonly && disks[1].readonly);
        // 21 blocks of the file system's own, and the two files.
        assert_eq!(disks[1].sectors, 23 * 4);
    }

    #[test]
    fn shared_memory_is_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, [0; 4096]).unwrap();
        let with = |disk: Vec<DiskSpec>| VmSpec {
            disk,
            shared_memory: Some(SharedMemorySpec::new(&path)),
            ..VmSpec::new("vmlinux")
        };
        let backends = Backends::open(&with(Vec::new()), &|| true).unwrap();
        assert_eq!(backends.shared.unwrap().size(), 4096);
        let readonly = with(vec![disk(&path, true)]);
        let error = Backends::open(&readonly, &|| true).unwrap_err().to_string();
        assert!(error.contains("is also"), "{error}");
        // What is written elsewhere must not be it, either.
        assert_eq!(inputs::same_as(&path, &with(Vec::new())), Some(path));
    }

    #[test]
    fn a_disk_without_a_file_is_missing_not_shared() {
        let missing = || disk(Path::new("/nonexistent/disk"), false);
        let error = open(vec![missing(), missing()]).unwrap_err();
        assert!(error.contains("there is no disk image"), "{error}");
    }
}
