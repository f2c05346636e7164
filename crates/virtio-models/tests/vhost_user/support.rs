// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A backend in this process, by another implementation of the protocol than that under test.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_models::vhost_user::{Backend, Connect, Kind, Shape};
use virtio_queue::QueueT;
use virtio_transport::layout::{RING_FEATURES, VERSION_1};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// Bytes are returned inverted.
pub const INVERT: u64 = 1;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL: u64 = 1 << 30;
/// The echo's queues.
pub const QUEUES: u16 = 2;
/// Its configuration.
pub const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// Returns what it reads, inverted if feature 0 was accepted.
pub struct Echo {
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    features: u64,
    config: [u8; 6],
    has_events: bool,
    protocol: VhostUserProtocolFeatures,
}

impl Echo {
    fn new(protocol: VhostUserProtocolFeatures) -> Self {
        Echo {
            memory: None,
            features: 0,
            config: CONFIG,
            has_events: false,
            protocol,
        }
    }

    fn answer(&self, vring: &VringRwLock) {
        let Some(memory) = &self.memory else {
            return;
        };
        let memory = memory.memory();
        loop {
            let mut vring = vring.get_mut();
            let queue = vring.get_queue_mut();
            let Some(chain) = queue.pop_descriptor_chain(memory.clone()) else {
                return;
            };
            let head = chain.head_index();
            let mut data = Vec::new();
            for part in chain.clone().readable() {
                let mut bytes = vec![0; part.len().min(1 << 16) as usize];
                if memory.read_slice(&mut bytes, part.addr()).is_ok() {
                    data.extend(bytes);
                }
            }
            if self.features & INVERT != 0 {
                data.iter_mut().for_each(|byte| *byte ^= 0xff);
            }
            let mut rest = &data[..];
            for part in chain.writable() {
                let (now, later) = rest.split_at(rest.len().min(part.len() as usize));
                if memory.write_slice(now, part.addr()).is_err() {
                    break;
                }
                rest = later;
            }
            let written = (data.len() - rest.len()) as u32;
            let _ = queue.add_used(&*memory, head, written);
            if queue.needs_notification(&*memory).unwrap_or(true) {
                let _ = vring.signal_used_queue();
            }
        }
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        RING_FEATURES | VERSION_1 | PROTOCOL | INVERT
    }

    fn acked_features(&mut self, features: u64) {
        self.features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.has_events = enabled;
    }

    fn get_config(&self, at: u32, len: u32) -> Vec<u8> {
        self.config[at as usize..(at + len) as usize].to_vec()
    }

    fn set_config(&mut self, at: u32, data: &[u8]) -> io::Result<()> {
        let at = at as usize;
        self.config[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        queue: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> io::Result<()> {
        let vring = &vrings[usize::from(queue)];
        loop {
            if self.has_events {
                let _ = vring.disable_notification();
            }
            self.answer(vring);
            if !self.has_events || !vring.enable_notification().unwrap_or(false) {
                return Ok(());
            }
        }
    }
}

/// The host with an echo. A new one starts with each connection.
#[derive(Clone)]
pub struct Host {
    protocol: VhostUserProtocolFeatures,
    /// The backend's end of the last connection, so that tests can end it.
    last: Arc<Mutex<Option<UnixStream>>>,
    is_down: Arc<AtomicBool>,
}

impl Host {
    pub fn new() -> Self {
        Host {
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG,
            last: Arc::default(),
            is_down: Arc::default(),
        }
    }

    /// With these protocol features.
    pub fn with(protocol: VhostUserProtocolFeatures) -> Self {
        Host {
            protocol,
            ..Host::new()
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.last.lock().expect("a lock")
    }

    /// Ends the connection, as the end of the backend would.
    pub fn kill(&self) {
        let last = self.last().take().expect("a connection");
        last.shutdown(std::net::Shutdown::Both).expect("a socket");
    }

    /// Refuses connections, or takes them again.
    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let mut listener =
            vhost::vhost_user::Listener::new(&path, true).map_err(io::Error::other)?;
        let near = UnixStream::connect(&path)?;
        *self.last() = Some(near.try_clone()?);
        let echo = Arc::new(Mutex::new(Echo::new(self.protocol)));
        thread::spawn(move || {
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let daemon = VhostUserDaemon::new("echo".to_owned(), echo, memory);
            let mut daemon = daemon.expect("a daemon");
            daemon.start(&mut listener).expect("a connection");
            let _ = daemon.wait();
            drop(dir);
        });
        Ok(near.into())
    }

    /// A device's backend.
    pub fn backend(&self) -> Arc<Backend> {
        let backend = Backend::open(shape(), self.connector()).expect("a backend");
        Arc::new(backend)
    }

    pub fn connector(&self) -> Connect {
        let host = self.clone();
        Box::new(move || host.connect())
    }
}

/// The echo's device.
pub fn shape() -> Shape {
    let kind = Kind::Other {
        id: 42,
        config_len: CONFIG.len() as u32,
    };
    Shape {
        queues: Some(QUEUES),
        queue_size: 64,
        ..Shape::new(kind)
    }
}
