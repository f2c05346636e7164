// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels and command lines that find no clock on a machine without a PIT. Such a guest hangs silently, so the VMM
//! warns.

use std::fmt;

/// Kernel parameters after which Linux has no clock here but the PIT: `early_param`s of Linux 6.12 on x86-64. An entry
/// without a value matches any value.
const CLOCKLESS: [&str; 5] = [
    // Most kernels find the local APIC only in the ACPI tables.
    ACPI_OFF,
    "nolapic",
    "disableapic",
    // kvmclock gives the TSC's frequency.
    "no-kvmclock",
    "nopv",
];

/// Linux built with `CONFIG_X86_MPPARSE` finds the local APIC in the MPtable. Debian's kernels are not.
const ACPI_OFF: &str = "acpi=off";

/// Kernel parameters after which Linux has no clock here, even with the PIT.
const LOST: [&str; 2] = ["nolapic_timer", "noapictimer"];

/// Why a guest would find no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clockless {
    /// Linux on a machine without a PIT, because of this kernel parameter.
    Word(&'static str),
    /// Linux, even with a PIT, because of this kernel parameter.
    Lost(&'static str),
    /// A kernel of this name needs the PIT, whatever its command line.
    Kernel(&'static str),
}

/// Whether a kernel with this command line needs the PIT to tell the time. `version` is the bzImage's version string,
/// such as "6.1.0-56-cloud-amd64 (…)" or "Memtest86+ v6.10".
///
/// # Example
/// ```
/// use mini_vmm::boot::{Clockless, clockless};
///
/// assert_eq!(clockless("quiet nolapic", None), Some(Clockless::Word("nolapic")));
/// assert_eq!(clockless("quiet -- nolapic", None), None);
/// ```
pub fn clockless(cmdline: &str, version: Option<&str>) -> Option<Clockless> {
    const MEMTEST: &str = "Memtest86+";
    if version.is_some_and(|version| version.starts_with(MEMTEST)) {
        return Some(Clockless::Kernel(MEMTEST));
    }
    words(cmdline).find_map(|(name, value)| {
        let is_it = |word: &&str| match word.split_once('=') {
            Some((known, needed)) => is_same_name(name, known) && value == Some(needed),
            None => is_same_name(name, word),
        };
        let word = CLOCKLESS.into_iter().find(is_it).map(Clockless::Word);
        word.or_else(|| LOST.into_iter().find(is_it).map(Clockless::Lost))
    })
}

/// The kernel parameters of a command line with their values, split as Linux does (`next_arg` in its lib/cmdline.c): at
/// white space outside double quotes, up to `--`. What follows `--` is for init.
fn words(cmdline: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut is_quoted = false;
    let is_gap = move |c: char| {
        is_quoted ^= c == '"';
        !is_quoted && matches!(c, ' ' | '\t'..='\r')
    };
    cmdline
        .split(is_gap)
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (unquoted(name), Some(unquoted(value))),
            None => (unquoted(word), None),
        })
        .take_while(|word| *word != ("--", None))
}

/// Strips surrounding quotes. Quotes inside a word stay.
fn unquoted(text: &str) -> &str {
    let text = text.strip_prefix('"').unwrap_or(text);
    text.strip_suffix('"').unwrap_or(text)
}

/// Linux treats `-` and `_` in parameter names as equal (`parameq`).
fn is_same_name(a: &str, b: &str) -> bool {
    let plain = |c: u8| if c == b'-' { b'_' } else { c };
    a.bytes().map(plain).eq(b.bytes().map(plain))
}

impl fmt::Display for Clockless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = match self {
            Clockless::Lost(_) => "leave it out",
            _ => "add --legacy-timer",
        };
        match self {
            Clockless::Word(ACPI_OFF) => write!(
                f,
                "'{ACPI_OFF}' takes away the only clock that Linux has here, unless it is built with CONFIG_X86_MPPARSE"
            ),
            Clockless::Word(word) | Clockless::Lost(word) => {
                write!(f, "'{word}' takes away the only clock that Linux has here")
            }
            Clockless::Kernel(name) => write!(f, "{name} needs a PC's timer"),
        }?;
        write!(f, "; {next}, or the guest may hang silently")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(cmdline: &str) -> Option<&'static str> {
        match clockless(cmdline, Some("6.1.0-56-cloud-amd64 (debian-kernel)")) {
            Some(Clockless::Word(word) | Clockless::Lost(word)) => Some(word),
            Some(Clockless::Kernel(name)) => panic!("{name}"),
            None => None,
        }
    }

    #[test]
    fn words_that_take_the_clock_away_are_named() {
        for (cmdline, found) in [
            ("acpi=off", "acpi=off"),
            ("console=ttyS0 nolapic quiet", "nolapic"),
            ("disableapic=1", "disableapic"),
            ("nolapic_timer", "nolapic_timer"),
            ("nolapic-timer", "nolapic_timer"),
            ("noapictimer", "noapictimer"),
            ("no-kvmclock", "no-kvmclock"),
            ("no_kvmclock", "no-kvmclock"),
            ("a\tnopv\n--", "nopv"),
            ("acpi=\"off\"", "acpi=off"),
            ("\"acpi=off\"", "acpi=off"),
            ("x=\"a b\" nopv", "nopv"),
            ("--- nopv", "nopv"),
            ("--=x nopv", "nopv"),
        ] {
            assert_eq!(word(cmdline), Some(found), "{cmdline:?}");
        }
    }

    #[test]
    fn other_words_are_left_alone() {
        for cmdline in [
            "",
            "console=ttyS0 panic=-1 cryptomgr.notests",
            "noapic nosmp maxcpus=0 nox2apic notsc tsc=unstable clocksource=tsc lapic=notscdeadline hpet=disable",
            "acpi acpi=on acpi=noirq acpi=offx acpi=\"o\"ff",
            "xnolapic nolapicx nolapic.timer no-kvmclock-vsyscall xen_nopv",
            "-- nolapic",
            "\"--\" nolapic",
            "init=\"a nolapic b\"",
            "x=\" nolapic",
        ] {
            assert_eq!(word(cmdline), None, "{cmdline:?}");
        }
    }

    #[test]
    fn memtest_is_known_by_its_version() {
        let kernel = Some(Clockless::Kernel("Memtest86+"));
        assert_eq!(clockless("", Some("Memtest86+ v6.10")), kernel);
        assert_eq!(clockless("", Some("6.1 not Memtest86+")), None);
        assert_eq!(clockless("", Some("")), None);
    }

    #[test]
    fn the_line_says_what_to_add() {
        let line = clockless("acpi=off", None).unwrap().to_string();
        assert!(line.contains("'acpi=off'") && line.contains("--legacy-timer"));
        assert!(line.contains("unless it is built with CONFIG_X86_MPPARSE"));
        let line = clockless("nolapic", None).unwrap().to_string();
        assert!(!line.contains("MPPARSE"), "{line}");
        let line = clockless("noapictimer", None).unwrap().to_string();
        assert!(line.contains("'noapictimer'") && line.contains("leave it out"));
    }
}
