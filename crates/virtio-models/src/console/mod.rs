// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console device (virtio 1.4, section 5.3): a console, and named ports between processes of the guest and of the
//! host.
//!
//! ```text
//!   Server, Stream -> Arc<Mutex<dyn Peer>> --Console::new--> Console --Device--> virtio_transport::worker::Worker
//! ```
//!
//! A [`Peer`] is the host's end of a port. It outlives the device, so a reset of the machine keeps its connection.
//! [`Stream`] is one or two open descriptors. [`Server`] is a listening Unix socket with one client at a time.
//!
//! Port 0 is the console. The others have names, and need a driver with `VIRTIO_CONSOLE_F_MULTIPORT`.
//!
//! # Example
//! ```
//! use std::sync::{Arc, Mutex};
//! use virtio_models::console::{Console, Port, Stream};
//! use virtio_transport::{AnyDevice, testing::Memory};
//!
//! let (reader, writer) = std::io::pipe().unwrap();
//! let output = Stream::new(None, Some(writer.into()));
//! let port = Port { name: "org.example.log".to_owned(), peer: Arc::new(Mutex::new(output)) };
//! let console = Console::new(None, vec![port], Box::new(|notice| eprintln!("{notice}")));
//! let device: Box<dyn AnyDevice<Memory>> = Box::new(console);
//! assert_eq!(device.layout().id, 3);
//! # drop(reader);
//! ```

mod control;
mod device;
mod peer;
mod port;
mod server;
mod stream;

pub use control::PortState;
pub use device::{Console, ConsoleState, MAX_PORTS, Notice, Port, Report};
pub use peer::{Peer, SharedPeer, Size, Sources};
pub use server::Server;
pub use stream::Stream;
