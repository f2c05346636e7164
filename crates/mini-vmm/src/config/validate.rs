// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks of a machine description that don't need the host.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::kvm::check_msrs;
use super::vhost_user::check_tag;
use super::{
    CmdlineError, CpuFeature, DiskSpec, Error, LinkSpec, MemoryError, NetSpec, PortTarget,
    SerialSpec, VmSpec, hypercall, port,
};
use crate::{layout, mmds};

/// The longest path of a Unix socket: the size of `sun_path` minus the NUL, see unix(7).
pub(super) const MAX_SOCKET_PATH: usize = 107;

impl VmSpec {
    /// Checks everything that can be checked without the host.
    ///
    /// # Errors
    /// The first value that is not valid.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_partly()?;
        validate_path("kernel", &self.kernel)
    }

    /// Checks the number of vCPUs.
    pub(crate) fn check_cpus(&self) -> Result<(), Error> {
        match self.cpus {
            0 => Err(Error::NoCpus),
            cpus if cpus > layout::MAX_CPUS => Err(Error::TooManyCpus { cpus: cpus.into() }),
            _ => Ok(()),
        }
    }

    /// Checks the disks, as far as that needs no host.
    pub(crate) fn check_disks(&self) -> Result<(), Error> {
        validate_disks(&self.disk)
    }

    /// Checks the networks, as far as that needs no host.
    pub(crate) fn check_nets(&self) -> Result<(), Error> {
        validate_nets(&self.net)
    }

    /// Checks the socket device, as far as that needs no host.
    pub(crate) fn check_vsock(&self) -> Result<(), Error> {
        let Some(vsock) = &self.vsock else {
            return Ok(());
        };
        validate_path("vsock socket", &vsock.socket)?;
        Ok(vsock.validate()?)
    }

    /// Checks shared directories and devices of other processes, as far as that needs no host.
    pub(crate) fn check_vhost_user(&self) -> Result<(), Error> {
        let count = self.share.len() + self.vhost_user.len();
        if count > Self::MAX_VHOST_USER {
            return Err(Error::TooManyVhostUser { count });
        }
        for share in &self.share {
            validate_path("shared directory", &share.path)?;
            share.tag.as_deref().map_or(Ok(()), check_tag)?;
        }
        for device in &self.vhost_user {
            validate_socket("vhost-user socket", &device.socket)?;
            device.validate()?;
        }
        let shares = self.share.iter().enumerate();
        let shares = shares.map(|(number, share)| share.tag(number));
        let others = self.vhost_user.iter().filter_map(|fs| fs.tag.clone());
        let mut seen = HashSet::new();
        for tag in shares.chain(others) {
            if !seen.insert(tag.clone()) {
                return Err(Error::SameTag { tag });
            }
        }
        Ok(())
    }

    /// Checks the console ports, as far as that needs no host.
    pub(crate) fn check_ports(&self) -> Result<(), Error> {
        let has_input = [&self.serial, &self.console].contains(&&SerialSpec::Stdio);
        port::validate(&self.console_port, has_input)?;
        for port in &self.console_port {
            match &port.to {
                PortTarget::File(path) => validate_path("console port", path)?,
                PortTarget::Unix(path) => validate_socket("console port socket", path)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the balloon.
    pub(crate) fn check_balloon(&self) -> Result<(), Error> {
        let checked = self
            .balloon
            .as_ref()
            .map(|balloon| balloon.validate(self.memory));
        Ok(checked.unwrap_or(Ok(()))?)
    }

    /// Like [`validate`](Self::validate), but the kernel may still be missing: its path is empty.
    pub(super) fn validate_partly(&self) -> Result<(), Error> {
        self.check_cpus()?;
        check_msrs(&self.msrs)?;
        check_memory(self.memory)?;
        check_cmdline(&self.cmdline)?;
        let mut names = self.cpu_features.iter().map(|feature| &feature.name);
        if let Some(name) = names.find(|name| !CpuFeature::is_name(name)) {
            return Err(Error::FeatureName { name: name.clone() });
        }
        validate_timeout(self.timeout)?;
        validate_debug_exit(self.debug_exit)?;
        hypercall::validate(self)?;
        if !self.kernel.as_os_str().is_empty() {
            validate_path("kernel", &self.kernel)?;
        }
        if let Some(initrd) = &self.initrd {
            validate_path("initrd", initrd)?;
        }
        self.check_disks()?;
        if let Some(dir) = &self.cloud_init {
            validate_path("cloud-init directory", dir)?;
        }
        self.check_nets()?;
        self.check_slots()?;
        self.check_vsock()?;
        self.check_vhost_user()?;
        if let Some(memory) = &self.shared_memory {
            validate_path("shared memory", &memory.path)?;
            memory.validate()?;
        }
        self.check_balloon()?;
        self.check_mmds()?;
        validate_serial(["serial file", "serial socket"], &self.serial)?;
        validate_serial(["console file", "console socket"], &self.console)?;
        self.check_ports()
    }

    /// Checks that there can be such a metadata service.
    pub(crate) fn check_mmds(&self) -> Result<(), Error> {
        let Some(mmds) = &self.mmds else {
            return Ok(());
        };
        let nets = self.net.len();
        if let Some(&number) = mmds.nets.iter().find(|number| **number >= nets) {
            return Err(Error::MmdsNet { number, nets });
        }
        let address = mmds.address;
        match mmds::is_possible(address) {
            true => Ok(()),
            false => Err(Error::MmdsAddress { address }),
        }
    }
}

/// Checks that a machine can have `memory` bytes of RAM. The host may still have less.
///
/// # Errors
/// [`MemoryError`] if it can't.
pub fn check_memory(memory: u64) -> Result<(), MemoryError> {
    if memory < layout::MIN_RAM {
        return Err(MemoryError::Little { memory });
    }
    if memory > layout::MAX_RAM {
        return Err(MemoryError::Much { memory });
    }
    if !memory.is_multiple_of(layout::PAGE_SIZE) {
        let nearest = (memory + layout::PAGE_SIZE / 2) / layout::PAGE_SIZE * layout::PAGE_SIZE;
        return Err(MemoryError::PartialPage { memory, nearest });
    }
    Ok(())
}

/// Checks that `cmdline` fits its buffer in guest memory. The kernel may accept only a shorter one.
///
/// # Errors
/// [`CmdlineError`] if it doesn't.
pub fn check_cmdline(cmdline: &str) -> Result<(), CmdlineError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(CmdlineError::Nul { at });
    }
    if cmdline.len() as u64 >= layout::CMDLINE_SIZE {
        return Err(CmdlineError::Long { len: cmdline.len() });
    }
    Ok(())
}

fn validate_debug_exit(port: Option<u16>) -> Result<(), Error> {
    let Some(port) = port else {
        return Ok(());
    };
    if port > u16::MAX - (layout::DEBUG_EXIT_SIZE - 1) {
        return Err(Error::LastPorts { port });
    }
    match layout::port_owner(port) {
        Some(owner) => Err(Error::TakenPort { port, owner }),
        None => Ok(()),
    }
}

fn validate_timeout(timeout: Option<Duration>) -> Result<(), Error> {
    match timeout {
        Some(Duration::ZERO) => Err(Error::ZeroTimeout),
        Some(time) if time > VmSpec::MAX_TIMEOUT => Err(Error::LongTimeout),
        _ => Ok(()),
    }
}

fn validate_path(what: &'static str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::EmptyPath { what });
    }
    if bytes.contains(&0) {
        let path = path.to_owned();
        return Err(Error::PathNul { what, path });
    }
    Ok(())
}

fn validate_disks(disks: &[DiskSpec]) -> Result<(), Error> {
    if disks.len() > VmSpec::MAX_DISKS {
        let disks = disks.len();
        return Err(Error::TooManyDisks { disks });
    }
    disks.iter().try_for_each(|disk| {
        validate_path("disk", &disk.path)?;
        let overlay = disk.overlay.as_deref();
        overlay.map_or(Ok(()), |path| validate_path("overlay", path))
    })
}

fn validate_nets(nets: &[NetSpec]) -> Result<(), Error> {
    if nets.len() > VmSpec::MAX_NETS {
        let nets = nets.len();
        return Err(Error::TooManyNets { nets });
    }
    for (at, net) in nets.iter().enumerate() {
        net.validate()?;
        let earlier = &nets[..at];
        if let Some(mac) = net.mac
            && earlier.iter().any(|other| other.mac == Some(mac))
        {
            return Err(Error::SameMac { mac });
        }
        // Each `user` has a passt of its own.
        let is_shared = !matches!(net.link, LinkSpec::User(_));
        if is_shared && earlier.iter().any(|other| other.link == net.link) {
            let link = net.link.to_string();
            return Err(Error::SameLink { link });
        }
    }
    Ok(())
}

fn validate_serial([file, socket]: [&'static str; 2], serial: &SerialSpec) -> Result<(), Error> {
    match serial {
        SerialSpec::Off | SerialSpec::Stdio | SerialSpec::Pty => Ok(()),
        SerialSpec::File(path) => validate_path(file, path),
        SerialSpec::Socket(path) => validate_socket(socket, path),
    }
}

fn validate_socket(what: &'static str, path: &Path) -> Result<(), Error> {
    validate_path(what, path)?;
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let path = path.to_owned();
        return Err(Error::LongSocketPath { what, path });
    }
    Ok(())
}
