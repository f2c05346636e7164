// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! COM1: a 16550A behind a lock, with flow control for its input.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

mod aml;
mod state;
mod uart;

pub use state::SerialState;

use super::port::{read_byte, write_byte};
use super::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::config::{SerialSpec, VmSpec};
use crate::console::{ConsoleOutput, InputTarget};
use crate::irq::{IrqLine, NoPin, Pins};
use crate::layout::{SERIAL, SERIAL_GSI, SERIAL_SIZE};
use crate::sync::lock;
use uart::Uart;

const ID: &str = "serial";
const VERSION: u32 = 1;

/// `LEGACY_DEVICES` in the FADT's `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): there are devices on the ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;

/// COM1, unless the description has none.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    if spec.serial == SerialSpec::Off {
        return Ok(None);
    }
    let mut slot = Slot::new(ID, &[Window::ports(SERIAL, SERIAL_SIZE)], |parts| {
        let output = parts.output.cloned().unwrap_or_else(ConsoleOutput::discard);
        let serial = Arc::new(SerialDevice::new(output, parts.edge())?);
        parts.offers.console_input = Some(serial.clone());
        Ok(serial)
    });
    slot.gsi = Some(SERIAL_GSI);
    slot.boot_arch = LEGACY_DEVICES;
    aml::describe(spec.legacy_timer, &mut slot.aml);
    Ok(Some(slot))
}

struct Inner<W: Write> {
    uart: Uart<W>,
    paused: bool,
    /// Whether more input waits for space.
    wants_room: bool,
}

impl<W: Write> Inner<W> {
    /// Signals the input's source, if it has more and the guest has read everything.
    fn announce_room(&mut self, event: &EventFd) {
        if self.wants_room && !self.paused && self.uart.is_drained() {
            self.wants_room = false;
            // Fails only if the counter is full, and then the reader wakes anyway.
            let _ = event.write(1);
        }
    }
}

/// COM1. The guest's output goes to a `W`, which must not block. Input comes from [`enqueue`](Self::enqueue), and
/// [`input_room`](Self::input_room) is readable when there is space for more.
pub struct SerialDevice<W: Write> {
    inner: Mutex<Inner<W>>,
    room: EventFd,
    irq: IrqLine,
}

impl<W: Write> SerialDevice<W> {
    /// An idle UART that writes the guest's output to `output`, and interrupts through `irq`, an edge of
    /// [`crate::layout::SERIAL_GSI`].
    ///
    /// # Errors
    /// When the process has no file descriptor left for its eventfd.
    pub fn new(output: W, irq: IrqLine) -> io::Result<Self> {
        Ok(SerialDevice {
            inner: Mutex::new(Inner {
                uart: Uart::new(irq.clone(), output),
                paused: false,
                wants_room: false,
            }),
            room: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            irq,
        })
    }

    /// Becomes readable when there is space for input that [`enqueue`](Self::enqueue) did not take.
    pub fn input_room(&self) -> &EventFd {
        &self.room
    }

    /// Passes the guest as many of `bytes` as fit into the receive FIFO, and returns how many. It takes fewer also
    /// while the device is paused or in loopback mode (a driver's self-test), and while its driver has just cleared it
    /// or stops the input (RTS). [`input_room`](Self::input_room) tells when to continue.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let taken = if inner.paused {
            0
        } else {
            inner.uart.enqueue(bytes)
        };
        inner.wants_room = taken < bytes.len();
        taken
    }

    /// The register of an access.
    fn register(place: Place) -> Option<u8> {
        let register = u8::try_from(place.offset).ok()?;
        (u16::from(register) < SERIAL_SIZE).then_some(register)
    }

    /// A guest's access to the registers.
    fn access<T>(&self, access: impl FnOnce(&mut Uart<W>) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = access(&mut inner.uart);
        inner.announce_room(&self.room);
        result
    }
}

impl<W: Write + Send> BusDevice for SerialDevice<W> {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || {
            Self::register(place).map(|register| self.access(|uart| uart.read(register)))
        })
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |value| {
            if let Some(register) = Self::register(place) {
                self.access(|uart| uart.write(register, value));
            }
        })
    }
}

impl<W: Write + Send> InputTarget for SerialDevice<W> {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        SerialDevice::enqueue(self, bytes)
    }

    fn input_room(&self) -> &EventFd {
        SerialDevice::input_room(self)
    }
}

impl<W: Write + Clone + Send> Device for SerialDevice<W> {
    fn pause(&self) {
        lock(&self.inner).paused = true;
    }

    fn resume(&self) {
        let mut inner = lock(&self.inner);
        inner.paused = false;
        inner.announce_room(&self.room);
    }

    fn save(&self, _: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &lock(&self.inner).uart.save())
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: SerialState = saved.read(ID, VERSION)?;
        state.check()?;
        let mut inner = lock(&self.inner);
        let output = inner.uart.writer().clone();
        inner.uart = Uart::restore(&state, self.irq.clone(), output).map_err(|source| {
            RestoreError::Interrupt {
                device: "COM1",
                source,
            }
        })?;
        inner.announce_room(&self.room);
        Ok(())
    }
}

impl<W: Write> fmt::Debug for SerialDevice<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialDevice")
            .field("state", &lock(&self.inner).uart.save())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::{check_suspend, refusal};
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::*;

    /// An output whose contents tests can read.
    #[derive(Clone, Default)]
    struct Sink(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (SerialDevice<Sink>, Sink) {
        let sink = Sink::default();
        let device = SerialDevice::new(sink.clone(), IrqLine::unconnected());
        (device.unwrap(), sink)
    }

    fn read_all(device: &SerialDevice<Sink>, count: usize) -> Vec<u8> {
        (0..count).map(|_| read::<1>(device, 0)[0]).collect()
    }

    #[test]
    fn output_reaches_the_sink_byte_by_byte() {
        let (device, sink) = serial();
        for byte in b"hello" {
            write(&device, 0, &[*byte]);
        }
        assert_eq!(*lock(&sink.0), b"hello");
    }

    #[test]
    fn received_data_raises_the_interrupt() {
        let (device, _) = serial();
        write(&device, 1, &[0x01]);
        assert!(device.irq.event().unwrap().read().is_err());
        assert_eq!(device.enqueue(b"x"), 1);
        assert_eq!(device.irq.event().unwrap().read().unwrap(), 1);
        assert_eq!(read(&device, 5), [0x61]);
        assert_eq!(read_all(&device, 1), b"x");
    }

    #[test]
    fn input_stops_when_full_and_resumes_when_read() {
        let (device, _) = serial();
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(device.enqueue(&input), 64);
        assert_eq!(device.enqueue(&input[64..]), 0);
        assert!(device.input_room().read().is_err(), "no room yet");
        assert_eq!(read_all(&device, 63), &input[..63]);
        assert!(
            device.input_room().read().is_err(),
            "the guest still has a byte to read"
        );
        assert_eq!(read_all(&device, 1), &input[63..64]);
        assert_eq!(device.input_room().read().unwrap(), 1);
        assert_eq!(device.enqueue(&input[64..]), 36);
        assert_eq!(read_all(&device, 36), &input[64..]);
        assert!(
            device.input_room().read().is_err(),
            "nothing waits: no event"
        );
    }

    #[test]
    fn guest_reading_an_empty_fifo_makes_no_events() {
        let (device, _) = serial();
        assert_eq!(read_all(&device, 1000), [0; 1000]);
        assert!(device.input_room().read().is_err());
    }

    #[test]
    fn loopback_takes_no_input_and_its_end_asks_for_it() {
        let (device, _) = serial();
        write(&device, 4, &[0x10]);
        assert_eq!(device.enqueue(b"abc"), 0);
        write(&device, 4, &[0x08]);
        assert_eq!(device.input_room().read().unwrap(), 1);
        assert_eq!(device.enqueue(b"abc"), 3);
    }

    #[test]
    fn pause_holds_input_back() {
        let (device, _) = serial();
        device.pause();
        assert_eq!(device.enqueue(b"abc"), 0);
        assert!(device.input_room().read().is_err());
        device.resume();
        assert_eq!(device.input_room().read().unwrap(), 1);
        assert_eq!(device.enqueue(b"abc"), 3);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let (device, sink) = serial();
        device.enqueue(b"x");
        check_odd_accesses(&device, &[SERIAL_SIZE.into()]);
        assert!(lock(&sink.0).is_empty(), "wide writes write nothing");
        assert_eq!(read_all(&device, 1), b"x", "wide reads read nothing");
        assert_eq!(read(&device, SERIAL_SIZE.into()), [0xff]);
    }

    #[test]
    fn suspends() {
        let ((device, sink), (fresh, _)) = (serial(), serial());
        write(&device, 1, &[0x03]);
        write(&device, 7, &[0x5a]);
        device.enqueue(b"pending");
        check_suspend(&device, &fresh, || {
            read_all(&device, 7);
            write(&device, 3, &[0x80]);
            write(&device, 0, &[1]);
        });
        assert!(
            fresh.irq.event().unwrap().read().is_ok(),
            "a pending interrupt is raised again"
        );
        write(&device, 0, b"o");
        assert_eq!(*lock(&sink.0), b"o", "the output is still connected");
        assert_eq!(read_all(&fresh, 7), b"pending");
    }

    #[test]
    fn impossible_states_are_refused() {
        let (device, _) = serial();
        let good = lock(&device.inner).uart.save();
        let bad = [
            SerialState {
                interrupt_enable: 0x10,
                ..good.clone()
            },
            SerialState {
                fifo_control: 0x40,
                ..good.clone()
            },
            SerialState {
                fifo_control: 0x09,
                ..good.clone()
            },
            SerialState {
                line_status: 0x61,
                ..good.clone()
            },
            SerialState {
                modem_status: 0,
                ..good.clone()
            },
            SerialState {
                in_buffer: vec![0; 65],
                line_status: 0x61,
                ..good.clone()
            },
            SerialState {
                looped: 1,
                ..good.clone()
            },
            SerialState {
                unsent: vec![0; 65],
                ..good.clone()
            },
            SerialState {
                hold: 17,
                ..good.clone()
            },
        ];
        for state in bad {
            let error = refusal(&device, &state);
            assert!(matches!(error, RestoreError::Field { .. }), "{state:?}");
        }
    }
}
