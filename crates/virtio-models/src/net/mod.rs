// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device (virtio 1.4, section 5.1).
//!
//! ```text
//!   Tap::open --\
//!   Tap::from_fd -> Box<dyn Link>, one per pair of queues --Net::new--> Net --Device--> virtio_transport::worker::Worker
//!   Stream::new -/
//! ```
//!
//! A [`Link`] connects the device to the host: a [`Tap`], or a [`Stream`] socket to a process such as passt. It stays
//! open over resets of the device. Frames are read and written directly in guest memory.
//!
//! # Example
//! ```
//! use virtio_models::net::{Link, Mac, Net, NetConfig, Stream};
//! use virtio_transport::{AnyDevice, testing::Memory};
//!
//! let (ours, _peers) = std::os::unix::net::UnixStream::pair().unwrap();
//! let link: Box<dyn Link> = Box::new(Stream::new(ours.into()).unwrap());
//! let config = NetConfig::new(Mac([2, 0, 0, 0, 0, 1]));
//! let net = Net::new(config, vec![link], Box::new(|notice| eprintln!("{notice}")));
//! let device: Box<dyn AnyDevice<Memory>> = Box::new(net);
//! assert_eq!(device.layout().id, 1);
//! ```

mod config;
mod control;
mod device;
mod header;
mod limits;
mod link;
mod pair;
mod report;
mod rx;
mod status;
mod stream;
mod tap;
mod turn;
mod tx;

pub use crate::sys::{Frame, HEADER, MAX_FRAME, Room};
pub use config::{MAX_PAIRS, MIN_MTU, Mac, MacError, NetConfig};
pub use device::{Net, NetState};
pub use limits::Control;
pub use link::{Link, LinkError, Offloads};
pub use report::{Counters, Notice, Report};
pub use stream::Stream;
pub use tap::{Tap, TapError};
