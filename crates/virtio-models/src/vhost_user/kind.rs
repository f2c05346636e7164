// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The types of devices that backends serve.

use virtio_transport::layout::RING_FEATURES;

use super::fault::Fault;

/// The features of device types: all bits but those of queues and transports (virtio 1.4, 2.2).
const OF_TYPES: u64 = !((1 << 50) - (1 << 24)) | 0b11 << 41;

/// The longest tag of a file system, in bytes (5.11.4).
pub const MAX_TAG: usize = 36;
/// The most queues that a device may have here.
pub const MAX_QUEUES: u16 = 64;

/// The type of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file system (virtio 1.4, 5.11) with this tag, of at most [`MAX_TAG`] bytes.
    Fs {
        /// The name by which the guest mounts it.
        tag: String,
    },
    /// A disk (5.2).
    Block,
    /// A network with one pair of queues (5.1).
    Net,
    /// Any other.
    Other {
        /// Its device ID (5): 1 to 63.
        id: u16,
        /// The length of its configuration in bytes, at most 256.
        config_len: u32,
    },
}

/// The device that a backend is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its type.
    pub kind: Kind,
    /// The queues for requests: 1 to [`MAX_QUEUES`] without the one for urgent requests of a file system. `None` for
    /// as many as a disk's backend says, and one of others.
    pub queues: Option<u16>,
    /// The size of each, in entries: a power of two.
    pub queue_size: u16,
}

impl Shape {
    /// A device with this type's usual queues.
    pub const fn new(kind: Kind) -> Self {
        let queue_size = if matches!(kind, Kind::Fs { .. }) {
            1024
        } else {
            256
        };
        Shape {
            kind,
            queues: None,
            queue_size,
        }
    }

    /// How many queues it has, by its configuration.
    pub(super) fn count(&self, features: u64, config: &[u8]) -> u16 {
        let asked = self.queues;
        match self.kind {
            Kind::Fs { .. } => 1 + asked.unwrap_or(1),
            Kind::Net => 2,
            Kind::Block if features & block::F_MQ != 0 => {
                let has = config.get(block::NUM_QUEUES..block::NUM_QUEUES + 2);
                let has = has.map_or(1, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
                asked.unwrap_or(has)
            }
            Kind::Block | Kind::Other { .. } => asked.unwrap_or(1),
        }
    }
}

mod block {
    pub const F_CONFIG_WCE: u64 = 1 << 11;
    pub const F_MQ: u64 = 1 << 12;
    pub const LEN: u32 = 60;
    pub const WRITEBACK: u32 = 32;
    pub const NUM_QUEUES: usize = 34;
}

mod net {
    /// MTU, MAC and status, which are in the configuration; speed has fields that are not asked for.
    pub const IN_CONFIG: u64 = 1 << 3 | 1 << 5 | 1 << 16;
    /// What needs the control queue, or a longer configuration.
    pub const NOT: u64 = 1 << 2 | 0x7f << 17 | 0xf << 50 | 0b11 << 57 | 0xf << 60;
    pub const LEN: u32 = 12;
}

impl Kind {
    pub(super) const fn id(&self) -> u16 {
        match self {
            Kind::Net => 1,
            Kind::Block => 2,
            Kind::Fs { .. } => 26,
            Kind::Other { id, .. } => *id,
        }
    }

    /// The features that a driver may see, of those that the backend has.
    pub(super) fn offered(&self, features: u64, has_config: bool) -> u64 {
        let all = features & (OF_TYPES | RING_FEATURES);
        match self {
            // Notifications would be another queue.
            Kind::Fs { .. } => all & RING_FEATURES,
            Kind::Net if has_config => all & !net::NOT,
            Kind::Net => all & !net::NOT & !net::IN_CONFIG,
            Kind::Block | Kind::Other { .. } => all,
        }
    }

    /// The length of the configuration that the backend is asked for.
    pub(super) fn backend_config(&self, has_config: bool) -> Result<u32, Fault> {
        match self {
            Kind::Fs { .. } => Ok(0),
            Kind::Net => Ok(if has_config { net::LEN } else { 0 }),
            Kind::Other { config_len, .. } if *config_len == 0 => Ok(0),
            _ if !has_config => Err(Fault::Lacks("CONFIG")),
            Kind::Block => Ok(block::LEN),
            Kind::Other { config_len, .. } => Ok(*config_len),
        }
    }

    /// The configuration that a driver sees, of the backend's.
    pub(super) fn config(&self, queues: u16, of_backend: &[u8]) -> Vec<u8> {
        let mut config = of_backend.to_vec();
        match self {
            Kind::Fs { tag } => {
                config = tag.as_bytes().to_vec();
                config.resize(MAX_TAG, 0);
                config.extend(u32::from(queues.saturating_sub(1)).to_le_bytes());
            }
            Kind::Block => {
                if let Some(number) = config.get_mut(block::NUM_QUEUES..block::NUM_QUEUES + 2) {
                    number.copy_from_slice(&queues.to_le_bytes());
                }
            }
            Kind::Net | Kind::Other { .. } => {}
        }
        config
    }

    /// Whether a driver may write `len` bytes at `at` of the configuration.
    pub(super) fn is_writable(&self, features: u64, at: u32, len: usize) -> bool {
        match self {
            Kind::Fs { .. } | Kind::Net => false,
            Kind::Block => {
                features & block::F_CONFIG_WCE != 0 && (at, len) == (block::WRITEBACK, 1)
            }
            Kind::Other { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_its_own_configuration_and_no_features() {
        let kind = Kind::Fs {
            tag: "root".to_owned(),
        };
        assert_eq!(kind.offered(u64::MAX, true), RING_FEATURES);
        assert_eq!(Shape::new(kind.clone()).count(0, &[]), 2);
        let config = kind.config(3, &[]);
        assert_eq!(config.len(), 40);
        assert_eq!(&config[..6], b"root\0\0");
        assert_eq!(config[36..], [2, 0, 0, 0]);
        assert!(!kind.is_writable(u64::MAX, 0, 1));
    }

    #[test]
    fn a_disk_has_the_queues_that_its_backend_says() {
        let shape = Shape::new(Kind::Block);
        let mut config = vec![0; 60];
        config[34] = 5;
        assert_eq!(shape.count(block::F_MQ, &config), 5);
        assert_eq!(shape.count(0, &config), 1);
        let asked = Shape {
            queues: Some(2),
            ..shape
        };
        assert_eq!(asked.count(block::F_MQ, &config), 2);
        assert_eq!(Kind::Block.config(2, &config)[34..36], [2, 0]);
        assert!(Kind::Block.is_writable(block::F_CONFIG_WCE, 32, 1));
        assert!(!Kind::Block.is_writable(block::F_CONFIG_WCE, 32, 2));
        assert!(!Kind::Block.is_writable(0, 32, 1));
        assert!(Kind::Block.backend_config(false).is_err());
    }

    #[test]
    fn a_network_has_nothing_that_needs_a_control_queue() {
        let with = Kind::Net.offered(u64::MAX, true);
        assert_eq!(with & (1 << 17 | 1 << 22), 0);
        assert_ne!(with & 1 << 5, 0);
        assert_eq!(Kind::Net.offered(u64::MAX, false) & 1 << 5, 0);
        assert_eq!(with & (1 << 32 | 1 << 33 | 1 << 34 | 1 << 30), 0);
    }
}
