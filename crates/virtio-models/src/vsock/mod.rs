// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device (virtio 1.4, section 5.10): stream sockets between processes of the guest and of the host.
//!
//! ```text
//!   UnixHost -> Arc<dyn Host> --Vsock::new--> Vsock --Device--> virtio_transport::worker::Worker
//! ```
//!
//! A [`Host`] connects the device to the host's processes. [`UnixHost`] does it as Firecracker does. A process of the
//! host connects to its Unix socket, says `CONNECT <port>\n`, and reads `OK <port>\n` once the guest's process has
//! accepted. A process of the guest that connects to the host's port N reaches the Unix socket `<path>_N`.
//!
//! # Example
//! ```
//! use std::os::unix::net::UnixListener;
//! use std::sync::Arc;
//! use virtio_models::vsock::{UnixHost, Vsock};
//! use virtio_transport::{AnyDevice, testing::Memory};
//!
//! let dir = std::env::temp_dir().join(format!("vsock-{}", std::process::id()));
//! let host = UnixHost::new(UnixListener::bind(&dir).unwrap(), &dir).unwrap();
//! # std::fs::remove_file(&dir).unwrap();
//! let vsock = Vsock::new(3, Arc::new(host), Box::new(|notice| eprintln!("{notice}")));
//! let device: Box<dyn AnyDevice<Memory>> = Box::new(vsock);
//! assert_eq!(device.layout().id, 19);
//! ```

mod device;
mod flow;
mod greeting;
mod header;
mod host;
mod link;
mod report;
mod rx;
mod table;

pub use device::{Patience, Vsock, VsockState, is_guest_cid};
pub use flow::{BUFFER, LITTLE};
pub use greeting::MAX_COMMAND;
pub use header::{HEADER, HOST_CID};
pub use host::{Host, UnixHost};
pub use link::MAX_PACKET;
pub use report::{Counters, Notice, Report};
pub use table::MAX_CONNECTIONS;
