// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console as the host's end of a virtio console.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::stdio;
use rustix::termios::tcgetwinsize;
use virtio_models::console::{Peer, Size, Sources};
use virtio_transport::device::Interest;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ConsoleOutput, InputTarget};
use crate::sync::{Wake, lock};

/// The most input bytes that wait for the guest here. More wait with the console.
const CAPACITY: usize = 4096;

/// Whose size the guest sees.
#[derive(Clone, Debug)]
pub(super) enum Screen {
    /// The terminal on standard input. The event tells of a new size.
    Stdin(&'static Wake),
    /// A pseudo-terminal: our side. Nothing tells of a new size, so it is looked at whenever something is typed.
    Pty(Arc<OwnedFd>),
}

impl Screen {
    fn size(&self) -> Option<Size> {
        let size = match self {
            Screen::Stdin(_) => tcgetwinsize(stdio::stdin()),
            Screen::Pty(ours) => tcgetwinsize(ours),
        };
        let size = size.ok()?;
        // A terminal of no size has none.
        (size.ws_col != 0).then_some(Size {
            cols: size.ws_col,
            rows: size.ws_row,
        })
    }
}

/// What a virtio console is connected to.
#[derive(Clone, Debug)]
pub(crate) struct Hvc {
    pub(super) output: ConsoleOutput,
    pub(super) screen: Option<Screen>,
}

impl Hvc {
    /// The two ends for one machine: the device's, and the one that takes the console's input.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub(crate) fn ends(self) -> io::Result<(HvcPeer, Arc<HvcInput>)> {
        let input = Arc::new(HvcInput {
            state: Mutex::default(),
            ready: Wake::new()?,
            room: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let peer = HvcPeer {
            size: self.screen.as_ref().and_then(Screen::size),
            hvc: self,
            input: Arc::clone(&input),
        };
        Ok((peer, input))
    }
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Whether more input waits for space.
    wants_room: bool,
}

/// Takes the console's input for a virtio console.
#[derive(Debug)]
pub(crate) struct HvcInput {
    state: Mutex<State>,
    /// Readable while there is input.
    ready: Wake,
    room: EventFd,
}

impl HvcInput {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl InputTarget for HvcInput {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let count = bytes.len().min(CAPACITY - state.bytes.len());
        state.bytes.extend(&bytes[..count]);
        state.wants_room = count < bytes.len();
        if count != 0 {
            self.ready.signal();
        }
        count
    }

    fn input_room(&self) -> &EventFd {
        &self.room
    }
}

/// The host's end of a virtio console. It takes all output: Linux spins until a console's output is taken, so what is too
/// much is dropped, as for COM1.
#[derive(Debug)]
pub(crate) struct HvcPeer {
    hvc: Hvc,
    input: Arc<HvcInput>,
    size: Option<Size>,
}

impl HvcPeer {
    fn look_at_screen(&mut self) {
        self.size = self.hvc.screen.as_ref().and_then(Screen::size);
    }
}

impl Peer for HvcPeer {
    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if matches!(self.hvc.screen, Some(Screen::Pty(_))) {
            self.look_at_screen();
        }
        let mut state = self.input.lock();
        let count = bytes.len().min(state.bytes.len());
        for (to, from) in bytes.iter_mut().zip(state.bytes.drain(..count)) {
            *to = from;
        }
        if state.bytes.is_empty() {
            self.input.ready.clear();
        }
        if count != 0 && std::mem::take(&mut state.wants_room) {
            // Fails only if the counter is full, and then it is readable anyway.
            let _ = self.input.room.write(1);
        }
        match count {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hvc.output.put(bytes);
        Ok(bytes.len())
    }

    fn sources(&self) -> Sources<'_> {
        let resized = match &self.hvc.screen {
            Some(Screen::Stdin(resized)) => Some(resized.as_fd()),
            _ => None,
        };
        let readable = Interest {
            readable: true,
            writable: false,
        };
        Sources {
            input: Some(self.input.ready.as_fd()),
            output: None,
            other: resized.map(|resized| (resized, readable)),
        }
    }

    fn settle(&mut self) {
        if let Some(Screen::Stdin(resized)) = &self.hvc.screen {
            resized.clear();
        }
        self.look_at_screen();
    }

    fn size(&self) -> Option<Size> {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_and_room_is_told() {
        let hvc = Hvc {
            output: ConsoleOutput::discard(),
            screen: None,
        };
        let (mut peer, input) = hvc.ends().unwrap();
        let mut bytes = [0; 100];
        assert_eq!(
            peer.read(&mut bytes).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(input.enqueue(&[b'x'; 5000]), CAPACITY);
        assert_eq!(input.enqueue(b"y"), 0);
        assert_eq!(peer.read(&mut bytes).unwrap(), 100);
        assert_eq!(input.room.read().unwrap(), 1);
        assert!(input.ready.clear());
        let mut rest = [0; CAPACITY];
        assert_eq!(peer.read(&mut rest).unwrap(), CAPACITY - 100);
        input.room.read().unwrap_err();
        assert_eq!(peer.write(b"dropped").unwrap(), 7);
    }
}
