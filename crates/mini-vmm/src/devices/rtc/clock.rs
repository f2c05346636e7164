// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of the clock: pure functions of the host's time.

use serde::{Deserialize, Serialize};
use vcpu_loop::kvm::hex;

use super::calendar::{DAY, DateTime};

// Register numbers (Motorola MC146818, figure 10).
const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY_OF_MONTH: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const A: u8 = 10;
const B: u8 = 11;
const C: u8 = 12;
const D: u8 = 13;
/// The first byte of RAM.
const MEMORY: u8 = 14;
/// The size of RAM in bytes.
pub const MEMORY_SIZE: usize = 128 - MEMORY as usize;

/// Register A: an update is in progress, or less than [`UPDATE_NS`] away.
const A_UPDATE: u8 = 1 << 7;
/// Register A: 32.768 kHz, and a periodic rate of 1024 Hz, as firmware sets it.
const A_USUAL: u8 = 0x26;
/// Register B: no updates, the guest sets the time.
const B_SET: u8 = 1 << 7;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Register C: an enabled interrupt is due.
const C_INTERRUPT: u8 = 1 << 7;
const C_ALARM: u8 = B_ALARM;
const C_UPDATE: u8 = B_UPDATE;
/// Register D: the battery is good.
const D_VALID: u8 = 1 << 7;
/// Hours: afternoon, in 12-hour mode.
const PM: u8 = 1 << 7;
/// An alarm register with at least this value matches everything.
const ANY: u8 = 0xc0;

/// How long before an update the guest is warned, in nanoseconds.
pub const UPDATE_NS: u32 = 244_000;
/// The largest offset from the host's clock, in seconds: more than all years that it can show.
const FARTHEST: i64 = 200 * 366 * DAY;
/// Two-digit years below this are 20xx, others 19xx.
const PIVOT: i64 = 70;

/// The registers: plain data, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// The register that the data port shows.
    pub index: u8,
    /// Register A, without the update bit.
    pub a: u8,
    /// Register B.
    pub b: u8,
    /// Flags of register C that are set: alarm and update.
    pub flags: u8,
    /// The alarm's second, minute and hour, as the guest wrote them.
    pub alarm: [u8; 3],
    /// The guest's RAM, 114 bytes.
    #[serde(with = "hex::list")]
    pub memory: Vec<u8>,
    /// The offset from the host's clock, in seconds.
    pub ahead: i64,
    /// The time that the guest is setting, in seconds since 1970. Set while updates are off.
    pub held: Option<i64>,
    /// The second of the last update that was handled, in this clock's time.
    pub seen: i64,
}

impl Clock {
    /// The clock of a new machine at `now`, in host seconds since 1970.
    pub fn new(now: i64) -> Self {
        Clock {
            index: 0,
            a: A_USUAL,
            b: B_24_HOURS,
            flags: 0,
            alarm: [0; 3],
            memory: vec![0; MEMORY_SIZE],
            ahead: 0,
            held: None,
            seen: now,
        }
    }

    /// The name and the value of an invalid field, if there is one.
    pub fn misfit(&self) -> Option<(&'static str, u64)> {
        let is_far = |seconds: i64| seconds.unsigned_abs() > FARTHEST.unsigned_abs();
        let checks = [
            ("index", self.index > 0x7f, self.index.into()),
            ("a", self.a & A_UPDATE != 0, self.a.into()),
            (
                "flags",
                self.flags & !(C_ALARM | C_UPDATE) != 0,
                self.flags.into(),
            ),
            (
                "memory",
                self.memory.len() != MEMORY_SIZE,
                self.memory.len() as u64,
            ),
            ("ahead", is_far(self.ahead), self.ahead as u64),
            (
                "held",
                self.held.is_some_and(is_far),
                self.held.unwrap_or(0) as u64,
            ),
            ("seen", is_far(self.seen), self.seen as u64),
            ("held", self.held.is_some() != self.sets(), self.b.into()),
        ];
        let found = checks.into_iter().find(|(_, is_wrong, _)| *is_wrong);
        found.map(|(field, _, value)| (field, value))
    }

    fn sets(&self) -> bool {
        self.b & B_SET != 0
    }

    /// The time of the clock at `now`, in host seconds.
    fn time(&self, now: i64) -> i64 {
        self.held.unwrap_or_else(|| now.saturating_add(self.ahead))
    }

    /// Whether an enabled interrupt is due.
    pub fn interrupts(&self) -> bool {
        self.flags & self.b & (B_ALARM | B_UPDATE) != 0
    }

    /// Sets the flags for what happened until `now`.
    pub fn advance(&mut self, now: i64) {
        let time = self.time(now);
        if !self.sets() && time > self.seen {
            self.flags |= C_UPDATE;
            if self.next_alarm(self.seen).is_some_and(|at| at <= time) {
                self.flags |= C_ALARM;
            }
        }
        self.seen = time;
    }

    /// The host's second of the next enabled interrupt, if there is one.
    pub fn next_interrupt(&self) -> Option<i64> {
        if self.sets() || self.interrupts() {
            return None;
        }
        let update = (self.b & B_UPDATE != 0).then_some(self.seen.saturating_add(1));
        let alarm = (self.b & B_ALARM != 0)
            .then(|| self.next_alarm(self.seen))
            .flatten();
        let next = update.into_iter().chain(alarm).min()?;
        Some(next.saturating_sub(self.ahead))
    }

    /// The first second after `after` that the alarm matches.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let matches = |register: usize, value: u8| {
            let alarm = self.alarm[register];
            alarm >= ANY || self.encode(register as u8 * 2 + 1, value) == alarm
        };
        let first = after.saturating_add(1);
        let day = first.div_euclid(DAY).saturating_mul(DAY);
        for hour in (0..48u8).filter(|hour| matches(2, hour % 24)) {
            let hour = day.saturating_add(i64::from(hour) * 3_600);
            if hour.saturating_add(3_600) <= first {
                continue;
            }
            for minute in (0..60u8).filter(|minute| matches(1, *minute)) {
                let minute = hour.saturating_add(i64::from(minute) * 60);
                if minute.saturating_add(60) <= first {
                    continue;
                }
                let mut seconds = (0..60u8).filter(|second| matches(0, *second));
                let found = seconds.find(|second| minute + i64::from(*second) >= first);
                if let Some(second) = found {
                    return Some(minute + i64::from(second));
                }
            }
        }
        None
    }

    /// Reads the selected register at `now`; `subsecond` is in nanoseconds.
    pub fn read(&mut self, now: i64, subsecond: u32) -> u8 {
        self.advance(now);
        let date = DateTime::from_seconds(self.time(now));
        match self.index {
            SECONDS => self.encode(SECONDS, date.second),
            MINUTES => self.encode(MINUTES, date.minute),
            HOURS => self.encode(HOURS, date.hour),
            WEEKDAY => DateTime::weekday(self.time(now)),
            DAY_OF_MONTH => self.encode(DAY_OF_MONTH, date.day),
            MONTH => self.encode(MONTH, date.month),
            YEAR => self.encode(YEAR, date.year.rem_euclid(100) as u8),
            SECONDS_ALARM => self.alarm[0],
            MINUTES_ALARM => self.alarm[1],
            HOURS_ALARM => self.alarm[2],
            A => {
                let soon = !self.sets() && subsecond >= 1_000_000_000 - UPDATE_NS;
                self.a | if soon { A_UPDATE } else { 0 }
            }
            B => self.b,
            C => {
                let interrupt = if self.interrupts() { C_INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupt
            }
            D => D_VALID,
            index => {
                let at = usize::from(index & 0x7f) - usize::from(MEMORY);
                self.memory.get(at).copied().unwrap_or(0)
            }
        }
    }

    /// Writes the selected register at `now`.
    pub fn write(&mut self, value: u8, now: i64) {
        self.advance(now);
        match self.index {
            SECONDS | MINUTES | HOURS | DAY_OF_MONTH | MONTH | YEAR => self.set(value, now),
            SECONDS_ALARM => self.alarm[0] = value,
            MINUTES_ALARM => self.alarm[1] = value,
            HOURS_ALARM => self.alarm[2] = value,
            A => self.a = value & !A_UPDATE,
            B => self.set_b(value, now),
            // The day of the week follows from the date. C and D are read-only.
            WEEKDAY | C | D => {}
            index => {
                let at = usize::from(index & 0x7f) - usize::from(MEMORY);
                if let Some(byte) = self.memory.get_mut(at) {
                    *byte = value;
                }
            }
        }
    }

    fn set_b(&mut self, value: u8, now: i64) {
        let time = self.time(now);
        self.b = value;
        match (self.held, self.sets()) {
            (None, true) => self.held = Some(time),
            (Some(held), false) => {
                self.held = None;
                self.go_on_from(held, now);
            }
            _ => {}
        }
    }

    /// Sets the clock to `time` at `now`.
    fn go_on_from(&mut self, time: i64, now: i64) {
        self.ahead = time.saturating_sub(now).clamp(-FARTHEST, FARTHEST);
        self.seen = self.time(now);
    }

    /// Sets a part of the time. An invalid value changes nothing. A day that the month lacks becomes its last one,
    /// since guests write one part after the other.
    fn set(&mut self, value: u8, now: i64) {
        let Some(value) = self.decode(self.index, value) else {
            return;
        };
        let mut date = DateTime::from_seconds(self.time(now));
        match self.index {
            SECONDS => date.second = value,
            MINUTES => date.minute = value,
            HOURS => date.hour = value,
            DAY_OF_MONTH => date.day = value,
            MONTH => date.month = value,
            _ => {
                let year = i64::from(value);
                date.year = year + if year < PIVOT { 2000 } else { 1900 };
            }
        }
        let day = date.day;
        let possible = (day.saturating_sub(3)..=day).rev();
        let times = possible.map(|day| DateTime { day, ..date }.to_seconds());
        let Some(time) = times.flatten().next() else {
            return;
        };
        match &mut self.held {
            Some(held) => *held = time,
            None => self.go_on_from(time, now),
        }
    }

    /// Whether register `index` has hours in 12-hour mode.
    fn has_12_hours(&self, index: u8) -> bool {
        matches!(index, HOURS | HOURS_ALARM) && self.b & B_24_HOURS == 0
    }

    /// `value` as register `index` shows it.
    fn encode(&self, index: u8, value: u8) -> u8 {
        let (value, flag) = match self.has_12_hours(index) {
            true => ((value + 11) % 12 + 1, if value >= 12 { PM } else { 0 }),
            false => (value, 0),
        };
        let digits = match self.b & B_BINARY {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        };
        digits | flag
    }

    /// The value in a register, by the format of register `index`; `None` if it is invalid.
    fn decode(&self, index: u8, register: u8) -> Option<u8> {
        let (digits, flag) = match self.has_12_hours(index) {
            true => (register & !PM, register & PM),
            false => (register, 0),
        };
        let value = match self.b & B_BINARY {
            0 if digits & 0xf > 9 || digits >> 4 > 9 => return None,
            0 => (digits >> 4) * 10 + (digits & 0xf),
            _ => digits,
        };
        match self.has_12_hours(index) {
            true if (1..=12).contains(&value) => Some(value % 12 + if flag != 0 { 12 } else { 0 }),
            true => None,
            false => Some(value),
        }
    }
}

#[cfg(test)]
mod tests;
