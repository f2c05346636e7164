// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The agent, which runs commands in the guest for processes of the host.

mod running;
mod session;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::frame::{Kind, Refusal};
use super::wire::Wire;
use crate::sys::vsock::{HOST, Listener};

/// The most commands at a time.
pub const MAX_COMMANDS: usize = 64;

/// How long to wait before a connection is accepted after a failure.
const RETRY: Duration = Duration::from_millis(100);

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on vsock port {port}: {source}; {}", next_step(source))]
pub struct ListenError {
    port: u32,
    source: io::Error,
}

/// What to do about an error of socket(2) or bind(2).
fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process has it; choose another --port",
        io::ErrorKind::PermissionDenied => "only root has ports below 1024; choose another --port",
        _ => "run the agent in a guest that has --vsock and its driver",
    }
}

/// Serves processes of the host at a vsock port. Returns only if it can't listen there.
pub fn run(port: u32) -> ListenError {
    let listener = match Listener::bind(port) {
        Ok(listener) => listener,
        Err(source) => return ListenError { port, source },
    };
    log::info!("the agent listens on vsock port {port}");
    let slots = Slots::default();
    loop {
        match listener.accept() {
            Ok((socket, HOST)) => slots.serve(socket),
            // A process of the guest must not become the agent's user. Neither must a guest of the guest.
            Ok((_, cid)) => log::warn!("CID {cid} is not the host; its connection is closed"),
            Err(error) => {
                log::warn!("can't accept a connection: {error}; trying again");
                thread::sleep(RETRY);
            }
        }
    }
}

/// The commands that run.
#[derive(Debug, Default)]
pub struct Slots {
    used: Arc<AtomicUsize>,
}

impl Slots {
    /// Serves a process of the host in a thread, or tells it that there are too many.
    pub fn serve(&self, socket: OwnedFd) {
        if self.used.load(Ordering::Relaxed) >= MAX_COMMANDS {
            return refuse(socket);
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(Arc::clone(&self.used));
        let work = move || {
            let _slot = slot;
            if let Err(error) = session::serve(socket) {
                log::info!("a connection of the host failed: {error}");
            }
        };
        // Without a thread, the connection is closed and the slot is free.
        if let Err(error) = thread::Builder::new().spawn(work) {
            log::warn!("no thread for a command: {error}");
        }
    }
}

/// A command's place.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses a process without waiting. A new connection has room for the reason.
fn refuse(socket: OwnedFd) {
    let reason = format!("the agent runs {MAX_COMMANDS} commands already; wait until one ends");
    if let Ok(mut wire) = Wire::new(socket) {
        wire.push(Kind::Refused, &Refusal::Busy.payload(&reason));
        let _ = wire.flush();
    }
}
