// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The API of a machine without a guest, for tests and fuzzing. It needs no KVM and no socket.

use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::connection::Connection;
use super::http::{Answer, Fault, Request};
use super::routes::Routes;
use super::server::Handler;
use super::state::Machine;
use super::{MAX_BODY, Model, Settings};
use crate::config::VmSpec;
use crate::vmm;

/// The API of a machine that has the states of one, and nothing else.
#[derive(Debug)]
pub struct Playground {
    routes: Routes,
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
            routes: Routes {
                identity: Settings::new("").identity,
                machine: Machine::new(remote, Model::new(VmSpec::new(""), "")),
            },
            run: Some(thread::spawn(|| orders.pretend())),
        }
    }
}

impl Playground {
    #[cfg(test)]
    pub(super) fn routes(&mut self) -> &mut Routes {
        &mut self.routes
    }

    /// Starts a machine, as clients do.
    ///
    /// # Panics
    /// It has started already.
    pub fn start(&mut self) {
        let model = self.routes.machine.draft().expect("a machine to describe");
        model.set_kernel("/dev/null");
        self.routes.machine.start().expect("a start");
    }

    /// The answers to all that one client sends, in pieces of `piece` bytes, before it ends its side. Requests that
    /// would open files are refused.
    ///
    /// # Panics
    /// The connection stays open, or `piece` is 0.
    pub fn talk(&mut self, input: &[u8], piece: usize) -> Vec<u8> {
        let mut connection = Connection::default();
        let mut answers = Vec::new();
        let now = Instant::now();
        let routes = &mut self.routes;
        let handle = &mut |request: Request<'_>| harmless(routes, request);
        let mut pieces = input.chunks(piece);
        while !connection.is_over() {
            match pieces.next() {
                Some(bytes) => connection.receive(bytes, MAX_BODY, now, handle),
                None => connection.end_input(MAX_BODY, now, handle),
            }
            while !connection.output().is_empty() {
                let output = connection.output().to_vec();
                answers.extend_from_slice(&output);
                connection.sent(output.len(), MAX_BODY, now, handle);
            }
        }
        answers
    }
}

/// Handles a request unless it would open a file of the host.
fn harmless(routes: &mut Routes, request: Request<'_>) -> Answer {
    let path = request.path.trim_end_matches('/');
    match path {
        "/logger" | "/metrics" if request.method == "PUT" => {
            Err(Fault::new("this opens files; leave it out"))
        }
        _ => routes.handle(request),
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.routes.machine.stop();
        if let Some(run) = self.run.take() {
            let _ = run.join();
        }
    }
}
