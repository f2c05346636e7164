// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The timeline of a boot: the kernel's own clock, aligned with the stopwatch's at a line that both have recorded.

use super::boots::INIT;

/// Messages of the kernel that end a stage, and the stages' names.
const STAGES: [(&str, &str); 8] = [
    ("Linux version", "kernel: first message"),
    ("Memory: ", "kernel: memory is free"),
    ("smpboot: CPU0", "kernel: first processor is known"),
    ("ACPI: Interpreter enabled", "kernel: ACPI is interpreted"),
    ("clocksource: Switched", "kernel: clock is chosen"),
    ("Freeing initrd memory", "kernel: initrd is unpacked"),
    ("Serial: 8250", "kernel: serial driver"),
    ("Run /init", "kernel: starts init"),
];

/// The time of the guest's line that contains `text`, in nanoseconds.
pub fn stamp_of(lines: &str, text: &str) -> Option<f64> {
    let line = lines.lines().find(|line| line.contains(text))?;
    line.split(' ').next()?.parse().ok()
}

/// The stages of a boot and their ends, in nanoseconds since exec; `wall` is the end of the process.
pub fn stages(lines: &str, wall: f64) -> Vec<(String, f64)> {
    let Some(init) = stamp_of(lines, INIT) else {
        return Vec::new();
    };
    // The messages are from dmesg, which runs after init's line: `STAMP [ SECONDS] TEXT`.
    let messages: Vec<(f64, &str)> = lines.lines().filter_map(message).collect();
    let mut found = Vec::new();
    if let Some((seconds, _)) = messages.iter().find(|(_, text)| text.contains(INIT)) {
        let offset = init - seconds * 1e9;
        found.push(("exec to the kernel's clock".to_owned(), offset));
        for (text, name) in STAGES {
            if let Some((seconds, _)) = messages.iter().find(|(_, line)| line.contains(text)) {
                found.push((name.to_owned(), offset + seconds * 1e9));
            }
        }
    }
    found.push(("init's first line".to_owned(), init));
    found.push(("exit, after dmesg".to_owned(), wall));
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found
}

/// Parses a line of dmesg: seconds and text.
fn message(line: &str) -> Option<(f64, &str)> {
    let (_, message) = line.split_once(" [")?;
    let (seconds, text) = message.split_once("] ")?;
    Some((seconds.trim().parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_meet_at_init() {
        let lines = "1200000000 BENCH-INIT\n\
            1300000000 [    0.000000] Linux version 6.1\n\
            1300000001 [    0.250000] Run /init as init process\n\
            1300000002 [    0.800000] BENCH-INIT\n\
            1900000000 1200000000 1 2 0\n";
        let stages = stages(lines, 1.9e9);
        let at = |name: &str| stages.iter().find(|(stage, _)| stage == name).unwrap().1;
        assert!((at("exec to the kernel's clock") - 0.4e9).abs() < 1.0);
        assert!((at("kernel: starts init") - 0.65e9).abs() < 1.0);
        assert!((at("init's first line") - 1.2e9).abs() < 1.0);
        assert!(stages.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }

    #[test]
    fn a_boot_without_init_has_no_stages() {
        assert!(stages("5 hello\n", 9.0).is_empty());
        assert_eq!(stamp_of("5 hello\n", "hello"), Some(5.0));
        assert_eq!(stamp_of("5 hello\n", "bye"), None);
    }
}
