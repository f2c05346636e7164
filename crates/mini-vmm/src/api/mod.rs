// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control of a machine by HTTP on a Unix socket (`--api-sock`), in the words of Firecracker's API.
//!
//! One thread serves all clients. It exists only with the option. It describes the machine, orders its start, and then
//! sends commands to the control loop. Nothing waits for this thread or its clients.

mod balloon;
mod changes;
mod connection;
mod cpu;
mod drives;
mod fields;
mod file;
mod http;
mod logger;
mod mmds;
mod model;
mod nets;
#[cfg(any(test, feature = "test-utils"))]
pub mod playground;
mod plug;
mod restored;
mod routes;
mod server;
mod snapshots;
mod state;
mod vsock;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::routes::Routes;
use self::server::Server;
use self::state::Machine;
use crate::socket_file::{SocketError, SocketFile};
use crate::sync::{Wake, Worker};
use crate::vmm::{Remote, Saved};

pub use self::logger::Logger;
pub use self::model::Model;

/// The version of Firecracker's API that this one follows.
pub const API_VERSION: &str = "1.14.1";

/// The most bytes of a request's body, unless another limit is set. It is Firecracker's.
pub const MAX_BODY: usize = 51_200;

/// How many clients can wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The description is not complete, or not possible.
    #[error("{0}")]
    Model(String),
    /// A config file of Firecracker's can't be used.
    #[error("config file {path:?}: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file for the metadata service can't be used.
    #[error("metadata {path:?}: {why}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The thread can't be started, or no file descriptor is left.
    #[error("the API can't start: {0}; raise the limits on threads and open files")]
    Start(io::Error),
}

/// What `GET /` says about the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name of the machine, chosen by the user.
    pub id: String,
    /// The name of the program.
    pub app: &'static str,
    /// Its version.
    pub version: &'static str,
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The path of the socket. Nothing may be there. Only the owner can connect.
    pub socket: PathBuf,
    /// What `GET /` says.
    pub identity: Identity,
    /// The most bytes of a request's body.
    pub max_body: usize,
}

impl Settings {
    /// The settings of `mini-vmm --api-sock`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Settings {
            socket: socket.into(),
            identity: Identity {
                id: "anonymous-instance".to_owned(),
                app: "mini-vmm",
                version: env!("CARGO_PKG_VERSION"),
            },
            max_body: MAX_BODY,
        }
    }

    /// The settings of a Firecracker named `id`.
    pub fn firecracker(socket: impl Into<PathBuf>, id: String) -> Self {
        Settings {
            identity: Identity {
                id,
                app: "Firecracker",
                version: API_VERSION,
            },
            ..Settings::new(socket)
        }
    }
}

/// The API, served until this is dropped. The socket's file is then removed.
#[derive(Debug)]
pub struct Api {
    // Before the file: no client is served after it is gone.
    _worker: Worker,
    _file: SocketFile,
}

impl Api {
    /// Serves the machine that `remote` starts. Its description begins with `model`. If that has a kernel, it starts now.
    ///
    /// # Errors
    /// [`Error`] says what can't be done.
    pub fn serve(settings: Settings, model: Model, remote: Remote) -> Result<Api, Error> {
        let is_complete = model.has_kernel();
        Api::begin(settings, model, remote, |machine| match is_complete {
            true => machine.start_or_end(),
            false => Ok(()),
        })
    }

    /// Serves a saved machine, which `model` describes, and which goes on now.
    ///
    /// # Errors
    /// [`Error`] says what can't be done.
    pub fn serve_thawed(
        settings: Settings,
        model: Model,
        remote: Remote,
        saved: Saved,
    ) -> Result<Api, Error> {
        Api::begin(settings, model, remote, |machine| {
            machine.thaw_or_end(saved)
        })
    }

    fn begin(
        settings: Settings,
        model: Model,
        remote: Remote,
        begin: impl FnOnce(&mut Machine) -> Result<(), Error>,
    ) -> Result<Api, Error> {
        let wake = Arc::new(Wake::new().map_err(Error::Start)?);
        let mut machine = Machine::new(remote, model, Arc::clone(&wake));
        let (file, listener) = listen(&settings.socket)?;
        begin(&mut machine)?;
        let identity = settings.identity;
        let routes = Routes { identity, machine };
        let server = Server::new(listener, settings.max_body, routes, wake);
        let worker = Worker::spawn("api", move |stop| server.run(stop)).map_err(Error::Start)?;
        Ok(Api {
            _worker: worker,
            _file: file,
        })
    }
}

fn listen(path: &Path) -> Result<(SocketFile, std::os::unix::net::UnixListener), Error> {
    Ok(SocketFile::listen(path, BACKLOG).map_err(|error| error.of("API", path))?)
}

#[cfg(test)]
mod tests;
