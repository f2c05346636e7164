//! The way to a port of the guest: docs/vsock.md.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Error;

/// How long to wait in silence.
const SILENCE: Duration = Duration::from_secs(1);
/// The longest answer: `OK`, a number and a newline.
const MAX_ANSWER: usize = 14;

/// Asks the socket of a vsock device for a port of the guest. Calls `wait` each time that nothing came for a second.
///
/// # Errors
/// [`Error::NoAgent`] if nobody listens there; other ones if the socket is none of a device.
pub fn connect(
    mut socket: UnixStream,
    port: u32,
    wait: &mut dyn FnMut(),
) -> Result<UnixStream, Error> {
    let host = |error| Error::Host("the vsock socket failed", error);
    socket.set_read_timeout(Some(SILENCE)).map_err(host)?;
    match socket.write_all(format!("CONNECT {port}\n").as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(host(error)),
        _ => {}
    }
    // The agent's own bytes may follow at once, so one is read at a time.
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while answer.last() != Some(&b'\n') {
        match socket.read(&mut byte) {
            Ok(1) if answer.len() < MAX_ANSWER => answer.push(byte[0]),
            Ok(0) if answer.is_empty() => return Err(Error::NoAgent(port)),
            Ok(_) => return Err(Error::NotVsock),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => wait(),
                ErrorKind::Interrupted => {}
                ErrorKind::ConnectionReset => return Err(Error::NoAgent(port)),
                _ => return Err(host(error)),
            },
        }
    }
    let number = answer.strip_prefix(b"OK ");
    let number = number.and_then(|rest| rest.strip_suffix(b"\n"));
    match number {
        Some([first, rest @ ..])
            if first.is_ascii_digit() && rest.iter().all(u8::is_ascii_digit) =>
        {
            Ok(socket)
        }
        _ => Err(Error::NotVsock),
    }
}
