// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device: a disk (virtio 1.4, section 5.2).
//!
//! ```text
//!   BlockSpec --open--> Image --Block::new--> Block --Device--> virtio_transport::worker::Worker
//! ```
//!
//! [`open`] checks an image before the guest starts. The device creates its back end ([`Backend`]) when its first
//! driver starts it: io_uring, or a few threads if the host refuses io_uring. A device without a driver costs only an
//! open file.
//!
//! # Example
//! ```
//! use virtio_models::block::{Block, BlockSpec, open};
//! use virtio_transport::{AnyDevice, testing::Memory};
//!
//! # let file = tempfile::NamedTempFile::new().unwrap();
//! # file.as_file().set_len(1 << 20).unwrap();
//! # let path = file.path();
//! let spec = BlockSpec::new(path);
//! let image = open(&spec).expect("an image");
//! let block = Block::new(image, Box::new(|notice| eprintln!("{notice}")));
//! let device: Box<dyn AnyDevice<Memory>> = Box::new(block);
//! assert_eq!(device.layout().id, 2);
//! ```

mod backend;
mod barrier;
mod config;
mod control;
mod counters;
mod device;
mod disk;
mod image;
mod open;
mod pool;
#[cfg(feature = "qcow2")]
mod qcow2;
mod report;
mod request;
mod retry;
mod running;
mod spec;
mod transfer;
mod uring;

pub use crate::sys::{Buffers, GatherError};
pub use backend::{Backend, Done, Operation};
pub use control::{Control, ReplaceError};
pub use counters::{Counters, Counts, Transfer};
pub use device::{Block, BlockState};
pub use disk::{Disk, SECTOR};
pub use image::Image;
pub use open::{OpenError, open, open_saved};
pub use pool::Blocking;
pub use report::{Notice, Report};
pub use spec::{BlockSpec, Cache, Engine, Format, MAX_QUEUES};
