// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The CMOS real-time clock (Motorola MC146818) with alarm and update interrupts. It shows UTC, the host's until the
//! guest sets it, in the years 1970 to 2069. There is no periodic interrupt: a PIT or a local APIC is a better source.

mod calendar;
mod clock;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, EISAName, IO, Interrupt, Name, ResourceTemplate};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::events::EventSource;
use super::port::{read_byte, write_byte};
use super::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::config::VmSpec;
use crate::irq::{IrqLine, NoPin, Pins};
use crate::layout::{RTC, RTC_GSI, RTC_SIZE};
use crate::sync::lock;
use clock::Clock;

const ID: &str = "rtc";
const VERSION: u32 = 1;
/// `CMOS RTC Not Present` in the FADT's `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11).
const NOT_PRESENT: u16 = 1 << 5;
/// The offset of the index port; the next one is the data port.
const INDEX: u64 = 0;
const DATA: u64 = 1;
/// The index port's bit that masks NMIs.
const NMI_MASK: u8 = 1 << 7;

/// The clock, if the description has it.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    if !spec.rtc {
        return Ok(None);
    }
    let mut slot = Slot::new(ID, &[Window::ports(RTC, RTC_SIZE)], |parts| {
        let rtc = Arc::new(Rtc::new(parts.edge(), host_time)?);
        let ticks = Arc::clone(&rtc);
        parts.events.push(EventSource {
            fd: Arc::clone(&rtc.timer),
            ready: Box::new(move || ticks.tick()),
        });
        Ok(rtc)
    });
    slot.gsi = Some(RTC_GSI);
    slot.boot_arch = NOT_PRESENT;
    let io = IO::new(RTC, RTC, 1, RTC_SIZE as u8);
    let interrupt = Interrupt::new(true, true, false, false, RTC_GSI);
    AmlDevice::new(
        "_SB_.RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &interrupt])),
        ],
    )
    .to_aml_bytes(&mut slot.aml);
    Ok(Some(slot))
}

/// The host's wall clock, since 1970.
fn host_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

struct State {
    clock: Clock,
    paused: bool,
    /// Whether the interrupt was raised for the current flags.
    raised: bool,
}

/// The device.
pub struct Rtc {
    state: Mutex<State>,
    timer: Arc<OwnedFd>,
    irq: IrqLine,
    now: fn() -> Duration,
}

impl Rtc {
    /// A clock that interrupts through `irq` and takes the time from `now`.
    fn new(irq: IrqLine, now: fn() -> Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Rtc {
            state: Mutex::new(State {
                clock: Clock::new(seconds(now())),
                paused: false,
                raised: false,
            }),
            timer: Arc::new(timerfd_create(TimerfdClockId::Realtime, flags)?),
            irq,
            now,
        })
    }

    /// Handles the timer.
    fn tick(&self) {
        // Fails if the guest has set the timer again meanwhile.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let mut state = lock(&self.state);
        if !state.paused {
            state.clock.advance(seconds((self.now)()));
            self.settle(&mut state);
        }
    }

    /// Raises a due interrupt, and sets the timer for the next one. If raising fails, it is retried after a second.
    fn settle(&self, state: &mut State) {
        let is_due = state.clock.interrupts();
        state.raised = is_due && (state.raised || self.raise());
        let next = match is_due && !state.raised {
            true => Some(seconds((self.now)()).saturating_add(1)),
            false => state.clock.next_interrupt(),
        };
        let next = next.unwrap_or(0).max(0);
        let at = Timespec {
            tv_sec: next,
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            // 0 disables the timer.
            it_value: at,
        };
        // Also ends when the host's clock is set. After a step back, the timer would otherwise be late.
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        // Any time is accepted. An error only means that the clock was set just now.
        let _ = timerfd_settime(&self.timer, flags, &spec);
    }

    /// Raises the interrupt. Returns whether that worked.
    fn raise(&self) -> bool {
        let raised = self.irq.raise();
        if let Err(error) = &raised {
            log::debug!("the clock's interrupt can't be raised: {error}");
        }
        raised.is_ok()
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl BusDevice for Rtc {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || {
            if place.offset != DATA {
                return None;
            }
            let now = (self.now)();
            let mut state = lock(&self.state);
            let value = state.clock.read(seconds(now), now.subsec_nanos());
            if state.raised != state.clock.interrupts() {
                self.settle(&mut state);
            }
            Some(value)
        })
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |value| {
            let mut state = lock(&self.state);
            match place.offset {
                INDEX => state.clock.index = value & !NMI_MASK,
                DATA => {
                    state.clock.write(value, seconds((self.now)()));
                    self.settle(&mut state);
                }
                _ => {}
            }
        })
    }
}

impl Device for Rtc {
    fn pause(&self) {
        lock(&self.state).paused = true;
    }

    fn resume(&self) {
        let mut state = lock(&self.state);
        state.paused = false;
        state.clock.advance(seconds((self.now)()));
        self.settle(&mut state);
    }

    fn save(&self, _: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &lock(&self.state).clock)
    }

    /// The clock continues with the same offset from this host's clock as from the other's.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let clock: Clock = saved.read(ID, VERSION)?;
        if let Some((field, value)) = clock.misfit() {
            return Err(RestoreError::Field {
                device: "the real-time clock",
                field,
                value,
            });
        }
        let mut state = lock(&self.state);
        state.clock = clock;
        // A due interrupt may have been lost.
        state.raised = false;
        self.settle(&mut state);
        Ok(())
    }
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc")
            .field("clock", &lock(&self.state).clock)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::super::device::tests::{check_suspend, refusal};
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::*;

    thread_local! {
        /// The host's time in a test, in milliseconds since 1970.
        static NOW: Cell<u64> = const { Cell::new(1_000_000_000_000) };
    }

    fn now() -> Duration {
        Duration::from_millis(NOW.get())
    }

    fn pass(ms: u64) {
        NOW.set(NOW.get() + ms);
    }

    fn rtc() -> Rtc {
        Rtc::new(IrqLine::unconnected(), now).unwrap()
    }

    fn get(rtc: &Rtc, index: u8) -> u8 {
        write(rtc, INDEX, &[index]);
        read::<1>(rtc, DATA)[0]
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        write(rtc, INDEX, &[index]);
        write(rtc, DATA, &[value]);
    }

    fn interrupts(rtc: &Rtc) -> u64 {
        rtc.irq.event().unwrap().read().unwrap_or(0)
    }

    /// Whether the timer is set. The test's time is in the past, so it expires at once and is readable.
    fn is_set(rtc: &Rtc) -> bool {
        let left = rustix::time::timerfd_gettime(&rtc.timer).unwrap();
        left.it_value != Timespec::default() || rustix::io::read(&rtc.timer, &mut [0; 8]).is_ok()
    }

    #[test]
    fn an_update_interrupts_once_until_it_is_read() {
        let rtc = rtc();
        set(&rtc, 11, 0x12);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 0);
        pass(1000);
        rtc.tick();
        pass(1000);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 1);
        assert_eq!(get(&rtc, 12), 0x90);
        assert_eq!(get(&rtc, 12), 0);
        pass(1000);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 1);
    }

    #[test]
    fn an_alarm_interrupts_when_its_time_comes() {
        let rtc = rtc();
        // 2001-09-09 01:46:40; the alarm is 3 seconds later.
        for (index, value) in [(1, 0x43), (3, 0x46), (5, 0x01), (11, 0x22)] {
            set(&rtc, index, value);
        }
        pass(2000);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 0);
        pass(1000);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 1);
        assert_eq!(get(&rtc, 12), 0xb0, "the updates until then show, too");
    }

    #[test]
    fn the_timer_is_set_only_while_something_is_to_come() {
        let rtc = rtc();
        assert!(!is_set(&rtc));
        set(&rtc, 11, 0x12);
        assert!(is_set(&rtc));
        set(&rtc, 11, 0x02);
        assert!(!is_set(&rtc));
    }

    #[test]
    fn a_host_clock_that_is_set_wakes_the_timer() {
        let rtc = rtc();
        set(&rtc, 11, 0x12);
        let info = format!("/proc/self/fdinfo/{}", rtc.timer.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        // TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET; a test can't set the clock.
        assert!(info.contains("settime flags: 03\n"), "{info}");
    }

    #[test]
    fn an_interrupt_that_could_not_be_raised_is_tried_again() {
        let attempts = AtomicU32::new(0);
        let irq = IrqLine::new(move |_| match attempts.fetch_add(1, Relaxed) {
            0 => Err(io::Error::other("no descriptor is left")),
            _ => Ok(()),
        });
        let rtc = Rtc::new(irq, now).unwrap();
        set(&rtc, 11, 0x12);
        pass(1000);
        rtc.tick();
        assert!(is_set(&rtc));
        rtc.tick();
        assert_eq!(interrupts(&rtc), 1);
        assert!(!is_set(&rtc));
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let rtc = rtc();
        check_odd_accesses(&rtc, &[2]);
        assert_eq!(read(&rtc, INDEX), [0xff], "the index can't be read");
        for index in 0..=u8::MAX {
            for value in [0, 0x7f, 0x80, 0xff] {
                set(&rtc, index, value);
                get(&rtc, index);
            }
        }
    }

    #[test]
    fn suspends() {
        let (device, fresh) = (rtc(), rtc());
        set(&device, 0x20, 0x5a);
        set(&device, 11, 0x12);
        pass(1000);
        device.tick();
        check_suspend(&device, &fresh, || {
            get(&device, 12);
            set(&device, 9, 0x30);
        });
        assert_eq!(interrupts(&fresh), 1, "a pending interrupt is raised again");
        assert_eq!((get(&fresh, 0x20), get(&fresh, 9)), (0x5a, 0x01));
        let good = Clock::new(0);
        for bad in [
            Clock {
                a: 0x80,
                ..good.clone()
            },
            Clock {
                b: 0x80,
                ..good.clone()
            },
            Clock {
                flags: 0x40,
                ..good.clone()
            },
            Clock {
                index: 0x80,
                ..good.clone()
            },
            Clock {
                memory: vec![],
                ..good.clone()
            },
            Clock {
                ahead: i64::MIN,
                ..good.clone()
            },
            Clock {
                seen: i64::MAX,
                ..good.clone()
            },
            Clock {
                held: Some(1),
                ..good.clone()
            },
        ] {
            let error = refusal(&device, &bad);
            assert!(matches!(error, RestoreError::Field { .. }), "{bad:?}");
        }
    }

    #[test]
    fn it_pauses() {
        let rtc = rtc();
        set(&rtc, 11, 0x12);
        rtc.pause();
        pass(1000);
        rtc.tick();
        assert_eq!(interrupts(&rtc), 0);
        rtc.resume();
        assert_eq!(interrupts(&rtc), 1);
    }
}
