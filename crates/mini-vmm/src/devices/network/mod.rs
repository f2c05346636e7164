// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of network devices: taps, passt, and the metadata service on them.

mod lent;
mod mac;
mod mmds;
mod passt;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use virtio_models::net::{Control, Link, NetConfig, Stream, Tap, TapError};

use self::lent::Home;
use self::mmds::{Shared, WithMmds};
use crate::config::{LinkSpec, Mac, NetSpec};
use crate::mmds::{MmdsSpec, Service, Stack};
use crate::sys::child;

pub use passt::PasstError;

/// What a network device uses on the host. Clones are the same connection.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// The device's settings.
    pub config: NetConfig,
    /// Its limits, which may change.
    pub control: Arc<Control>,
    /// One for each pair of its queues.
    links: Vec<Home>,
}

/// Why a network device can't be connected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tap can't be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// An inherited descriptor can't be used.
    #[error("`--net fd={fd}`: {source}")]
    Fd {
        /// Its number.
        fd: u32,
        /// What it lacks.
        source: TapError,
    },
    /// There is no descriptor of that number.
    #[error(
        "`--net fd={fd}`: no such descriptor is open ({source}); let the process inherit a tap under that number"
    )]
    Closed {
        /// The number.
        fd: u32,
        /// The host's error.
        source: io::Error,
    },
    /// Two devices have one tap.
    #[error("two networks use the tap {0}; give each one of its own")]
    SameTap(String),
    /// Two devices have one address.
    #[error("two networks have the address {0}; give one of them another `mac=`")]
    SameMac(Mac),
    /// passt can't be used.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The connection to passt can't be set up.
    #[error("the connection to passt can't be used ({0}); raise the limit on open files")]
    Stream(#[source] io::Error),
    /// The metadata service can't be connected.
    #[error(
        "the metadata service can't be connected to a network ({0}); raise the limit on open files"
    )]
    Mmds(#[source] io::Error),
}

/// Connects `nets`, and some of them to the metadata service. `go_on` may stop that.
///
/// # Errors
/// [`NetworkError`] names what can't be used, and why.
pub(super) fn open(
    nets: &[NetSpec],
    mmds: Option<&MmdsSpec>,
    go_on: &dyn Fn() -> bool,
) -> Result<Vec<Network>, NetworkError> {
    // Taps first: passt is a process, which is started only if everything else is well.
    let taps = nets.iter().map(open_tap).collect::<Result<Vec<_>, _>>()?;
    check_distinct(taps.iter().flatten().filter_map(|tap| tap.first()))?;
    let macs = addresses(nets, &taps)?;
    let service = mmds.map(|mmds| (mmds, Arc::new(Service::new(mmds))));
    let nets = nets.iter().zip(taps).zip(macs).enumerate();
    nets.map(|(number, ((net, tap), mac))| {
        let mmds = service.as_ref();
        let mmds = mmds.filter(|(mmds, _)| mmds.nets.contains(&number));
        let stack = mmds.map(|(mmds, service)| Stack::new(Arc::clone(service), mmds.address));
        connect(net, tap, mac, stack, go_on)
    })
    .collect()
}

/// Connects one network more, while a guest runs.
///
/// # Errors
/// [`NetworkError`] names what can't be used, and why.
pub(super) fn open_new(net: &NetSpec, go_on: &dyn Fn() -> bool) -> Result<Network, NetworkError> {
    let tap = open_tap(net)?;
    let name = tap.as_ref().and_then(|tap| tap.first()).map(Tap::name);
    let derived = || {
        let link = name.map_or_else(|| format!("slot {:?}", net.slot), str::to_owned);
        mac::derive(&mac::host_id(), &link)
    };
    let mac = net.mac.unwrap_or_else(derived);
    connect(net, tap, mac, None, go_on)
}

/// The tap of `net`, if it has one.
fn open_tap(net: &NetSpec) -> Result<Option<Vec<Tap>>, NetworkError> {
    match &net.link {
        LinkSpec::Tap(name) => Ok(Some(Tap::open(name, net.queues)?)),
        LinkSpec::Fd(fd) => {
            let fd = *fd;
            let file =
                child::inherited(fd).map_err(|source| NetworkError::Closed { fd, source })?;
            let tap = Tap::from_fd(file).map_err(|source| NetworkError::Fd { fd, source })?;
            Ok(Some(vec![tap]))
        }
        LinkSpec::User(_) => Ok(None),
    }
}

/// Checks that no interface is used twice. The kernel allows that for descriptors, and for taps with several queues.
fn check_distinct<'a>(taps: impl Iterator<Item = &'a Tap>) -> Result<(), NetworkError> {
    let mut names = HashSet::new();
    for tap in taps {
        if !names.insert(tap.name()) {
            return Err(NetworkError::SameTap(tap.name().to_owned()));
        }
    }
    Ok(())
}

/// The devices' addresses: given, or made from what they are connected to.
fn addresses(nets: &[NetSpec], taps: &[Option<Vec<Tap>>]) -> Result<Vec<Mac>, NetworkError> {
    let mut host = None;
    let mut addresses = Vec::with_capacity(nets.len());
    for (number, (net, tap)) in nets.iter().zip(taps).enumerate() {
        let derived = || {
            let tap = tap.as_ref().and_then(|tap| tap.first());
            let link = tap.map_or_else(|| format!("user {number}"), |tap| tap.name().to_owned());
            mac::derive(host.get_or_insert_with(mac::host_id), &link)
        };
        let mac = net.mac.unwrap_or_else(derived);
        if addresses.contains(&mac) {
            return Err(NetworkError::SameMac(mac));
        }
        addresses.push(mac);
    }
    Ok(addresses)
}

/// Connects a device to its tap or to passt, and to the metadata service.
fn connect(
    net: &NetSpec,
    tap: Option<Vec<Tap>>,
    mac: Mac,
    stack: Option<Stack>,
    go_on: &dyn Fn() -> bool,
) -> Result<Network, NetworkError> {
    let links = match (tap, &net.link) {
        (None, LinkSpec::User(forwards)) => {
            let program = OsStr::new(passt::PROGRAM);
            let socket = passt::start(program, forwards, net.mtu, go_on)?;
            let stream = Stream::new(socket).map_err(NetworkError::Stream)?;
            homes([stream], stack)?
        }
        (tap, _) => homes(tap.into_iter().flatten(), stack)?,
    };
    let config = NetConfig {
        mtu: net.mtu,
        ..NetConfig::new(mac)
    };
    Ok(Network {
        config,
        control: Arc::new(Control::new(net.rx, net.tx)),
        links,
    })
}

/// Homes for the links of a device.
fn homes<L: Link + 'static>(
    links: impl IntoIterator<Item = L>,
    stack: Option<Stack>,
) -> Result<Vec<Home>, NetworkError> {
    let Some(stack) = stack else {
        return Ok(links.into_iter().map(Home::new).collect());
    };
    let shared = Shared::new(stack);
    let links = links.into_iter().enumerate();
    links
        .map(|(pair, link)| {
            let link = WithMmds::new(link, pair, Arc::clone(&shared));
            link.map(Home::new).map_err(NetworkError::Mmds)
        })
        .collect()
}

impl Network {
    /// The links, for one device. `None` while another one has them.
    pub(super) fn lend(&self) -> Option<Vec<Box<dyn Link>>> {
        let lend = |home: &Home| Some(Box::new(home.lend()?) as Box<dyn Link>);
        self.links.iter().map(lend).collect()
    }
}
