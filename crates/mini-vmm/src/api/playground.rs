// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The API of a machine without a guest, for tests and fuzzing. It needs no KVM and no socket.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};

use super::connection::Connection;
use super::http::{Answer, Fault, Request};
use super::routes::{Awaited, Routes};
use super::server::Handler;
use super::state::Machine;
use super::{MAX_BODY, Model, Settings};
use crate::config::VmSpec;
use crate::sync::Wake;
use crate::vmm::fake::Load;
use crate::vmm::{self, Orders, Remote};

/// The request that starts a machine.
const START: Request<'_> = Request {
    method: "PUT",
    path: "/actions",
    body: br#"{"action_type": "InstanceStart"}"#,
    stays: true,
};

/// The API of a machine that has the states of one, and nothing else.
#[derive(Debug)]
pub struct Playground {
    served: Served,
    load: Option<Loading>,
    run: Option<JoinHandle<()>>,
}

impl Default for Playground {
    /// A machine that has not started, and has no kernel.
    ///
    /// # Panics
    /// The process has no file descriptor or thread left.
    fn default() -> Self {
        let (remote, orders) = vmm::deaf();
        Playground {
            served: Served::new(remote),
            load: None,
            run: Some(thread::spawn(|| orders.pretend())),
        }
    }
}

/// A machine that loads until a client waits for it.
#[derive(Debug)]
struct Loading {
    load: Load,
    orders: Orders,
    succeeds: bool,
}

impl Loading {
    /// Ends the loading, and then does what clients say.
    fn end(self) {
        if self.succeeds {
            self.load.succeed();
        } else {
            self.load.fail(|| {});
            self.orders.pretend();
        }
    }
}

/// The API of a machine without a kernel, and the event for its later answers.
#[derive(Debug)]
pub(super) struct Served {
    pub routes: Routes,
    wake: Arc<Wake>,
}

impl Served {
    /// The API of the machine that the other end of `remote` runs.
    pub fn new(remote: Remote) -> Self {
        let wake = Arc::new(Wake::new().expect("a file descriptor"));
        let model = Model::new(VmSpec::new(""), "");
        Served {
            routes: Routes {
                identity: Settings::new("").identity,
                machine: Machine::new(remote, model, Arc::clone(&wake)),
            },
            wake,
        }
    }

    /// Waits until a promised answer may be there.
    pub fn wait(&self) {
        let mut fds = [PollFd::new(&*self.wake, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        self.wake.clear();
    }

    /// Handles a request to its end.
    pub fn ask(&mut self, request: Request<'_>) -> Answer {
        let mut awaited = match self.routes.handle(request) {
            Ok(answer) => return answer,
            Err(awaited) => awaited,
        };
        loop {
            if let Some(answer) = self.routes.take(&mut awaited) {
                return answer;
            }
            self.wait();
        }
    }
}

/// Whether a PUT to a path adds a device.
fn adds(path: &str) -> bool {
    let kinds = ["/devices/", "/drives/", "/network-interfaces/"];
    kinds.iter().any(|kind| path.starts_with(kind))
}

/// Answers requests unless they would open a file of the host.
impl Handler for Served {
    type Awaited = Awaited;

    fn handle(&mut self, request: Request<'_>) -> Result<Answer, Awaited> {
        let path = request.path.trim_end_matches('/');
        match path {
            "/logger" | "/metrics" | "/snapshot/load" | "/snapshot/restore"
                if request.method == "PUT" =>
            {
                Ok(Err(Fault::new("this opens files; leave it out")))
            }
            _ if request.method == "PATCH" && path.starts_with("/drives/") => {
                Ok(Err(Fault::new("this may open files; leave it out")))
            }
            // A new device is opened at once. Before the start they are only described.
            _ if request.method == "PUT" && self.routes.machine.has_started() && adds(path) => {
                Ok(Err(Fault::new("this opens a device; leave it out")))
            }
            _ => self.routes.handle(request),
        }
    }

    fn take(&mut self, awaited: &mut Awaited) -> Option<Answer> {
        self.routes.take(awaited)
    }
}

impl Playground {
    #[cfg(test)]
    pub(super) fn served(&mut self) -> &mut Served {
        &mut self.served
    }

    /// A machine that a client, which is gone, has ordered. It loads until another one waits for it, and then starts or
    /// fails.
    ///
    /// # Panics
    /// The process has no file descriptor left.
    pub fn loading(succeeds: bool) -> Self {
        let (remote, orders) = vmm::deaf();
        let mut served = Served::new(remote);
        let draft = served.routes.machine.draft();
        draft
            .expect("a machine to describe")
            .set_kernel("/dev/null");
        drop(served.routes.handle(START));
        let load = Load::of(&orders);
        Playground {
            served,
            load: Some(Loading {
                load,
                orders,
                succeeds,
            }),
            run: None,
        }
    }

    /// Starts a machine, as clients do.
    ///
    /// # Panics
    /// It has started already.
    pub fn start(&mut self) {
        let machine = &mut self.served.routes.machine;
        machine
            .draft()
            .expect("a machine to describe")
            .set_kernel("/dev/null");
        assert_eq!(self.served.ask(START), Ok(None), "a start");
    }

    /// The answers to all that one client sends, in pieces of `piece` bytes, before it ends its side. Requests that
    /// would open files are refused.
    ///
    /// # Panics
    /// The connection stays open, or `piece` is 0.
    pub fn talk(&mut self, input: &[u8], piece: usize) -> Vec<u8> {
        let mut connection = Connection::default();
        let mut answers = Vec::new();
        let served = &mut self.served;
        let mut pieces = input.chunks(piece);
        while !connection.is_over() {
            match pieces.next() {
                Some(bytes) => connection.receive(bytes, MAX_BODY, served),
                None => connection.end_input(MAX_BODY, served),
            }
            loop {
                while !connection.output().is_empty() {
                    let output = connection.output().to_vec();
                    answers.extend_from_slice(&output);
                    connection.sent(output.len(), MAX_BODY, served);
                }
                if !connection.is_waiting() {
                    break;
                }
                connection.settle(MAX_BODY, served);
                if !connection.is_waiting() {
                    continue;
                }
                if let Some(load) = self.load.take() {
                    self.run = Some(thread::spawn(|| load.end()));
                }
                served.wait();
            }
        }
        answers
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        self.load = None;
        // Fails if it has ended already.
        let _ = self.served.routes.machine.stop();
        if let Some(run) = self.run.take() {
            let _ = run.join();
        }
    }
}
