// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the console's output.

use super::*;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const PATIENCE: Duration = Drain::PATIENT.idle;

/// A limit that makes a wrong wait hang.
const FOR_EVER: Drain = Drain {
    idle: Duration::from_secs(86_400),
    total: Duration::from_secs(86_400),
};

fn pipe() -> (File, FdSink) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), FdSink(writer))
}

#[test]
fn everything_arrives_in_order() {
    let (mut reader, sink) = pipe();
    let expected: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    let mut output = Output::start(sink).unwrap();
    let received = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut handle = output.handle();
    for part in expected.chunks(7) {
        handle.write_all(part).unwrap();
    }
    output.close(Drain::PATIENT);
    drop(output);
    assert_eq!(received.join().unwrap(), expected);
}

#[test]
fn the_last_line_is_ended_once() {
    for (written, expected) in [("", ""), ("a\nb", "a\nb\n"), ("a\n", "a\n")] {
        let (mut reader, sink) = pipe();
        let mut output = Output::start(WholeLines::new(sink)).unwrap();
        output.handle().write_all(written.as_bytes()).unwrap();
        output.close(Drain::PATIENT);
        drop(output);
        let mut received = String::new();
        reader.read_to_string(&mut received).unwrap();
        assert_eq!(received, expected);
    }
}

#[test]
fn slow_reader_blocks_nobody_and_the_newest_survives() {
    let (mut reader, sink) = pipe();
    let output = Output::start(sink).unwrap();
    let mut handle = output.handle();
    for i in 0..400_000u32 {
        handle.write_all(format!("{i:07}\n").as_bytes()).unwrap();
        // The queue fills up before the flood, so that there is one gap at a known position. A pipe's capacity depends
        // on the sizes of the writes.
        if i == 20_000 {
            thread::sleep(Duration::from_millis(300));
            assert!(output.shared.lock().written > 0);
        }
    }
    // Reaching this shows that nothing waits for the reader, which has read nothing so far.
    assert!(output.shared.lock().bytes.len() <= CAPACITY);
    let received = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    drop(output);
    let text = received.join().unwrap();
    assert!(
        text.starts_with("0000000\n"),
        "what was written before the jam"
    );
    assert!(text.ends_with("0399999\n"), "what was written last");
    assert_eq!(text.matches("bytes of output were dropped").count(), 1);
    let dropped: usize = text
        .split("too slow, ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    let note = text.lines().find(|line| line.contains("dropped")).unwrap();
    assert_eq!(text.len() - (note.len() + 1 + 3) + dropped, 400_000 * 8);
}

#[test]
fn a_write_beyond_the_capacity_keeps_its_end() {
    let (mut reader, sink) = pipe();
    let output = Output::start(sink).unwrap();
    let mut big = vec![b'x'; CAPACITY + 5];
    big[CAPACITY + 4] = b'!';
    output.handle().write_all(&big).unwrap();
    assert!(output.shared.lock().bytes.len() <= CAPACITY);
    let received = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    drop(output);
    let received = received.join().unwrap();
    assert_eq!(received.last(), Some(&b'!'));
    assert!(String::from_utf8_lossy(&received).contains(" 5 bytes of output"));
}

#[test]
fn gone_reader_costs_one_attempt() {
    let (reader, sink) = pipe();
    drop(reader);
    let mut output = Output::start(sink).unwrap();
    let mut handle = output.handle();
    handle.write_all(b"x").unwrap();
    while !output.shared.lock().dead {
        thread::yield_now();
    }
    handle.write_all(&[b'x'; 1000]).unwrap();
    assert!(
        output.shared.lock().bytes.is_empty(),
        "discarded, not queued"
    );
    output.close(FOR_EVER);
}

#[test]
fn closed_descriptor_and_full_disk_are_gone_readers() {
    for path in ["/dev/full", "/dev/null"] {
        let file = File::options().write(true).open(path).unwrap();
        let mut output = Output::start(FdSink(file.into())).unwrap();
        output.handle().write_all(b"x").unwrap();
        output.close(FOR_EVER);
    }
}

#[test]
fn end_waits_for_progress_only() {
    let (reader, sink) = pipe();
    let mut output = Output::start(sink).unwrap();
    output.handle().write_all(&[b'x'; 200_000]).unwrap();
    let (start, idle) = (Instant::now(), Duration::from_millis(300));
    output.close(Drain { idle, ..FOR_EVER });
    let took = start.elapsed();
    assert!(took >= idle, "{took:?}");
    drop(reader);
}

#[test]
fn end_waits_as_long_as_there_is_progress() {
    let (mut reader, sink) = pipe();
    let output = Output::start(sink).unwrap();
    output.handle().write_all(&[b'x'; 300_000]).unwrap();
    let received = thread::spawn(move || {
        let (mut buffer, mut total) = ([0; 10_000], 0);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return total,
                count => total += count,
            }
            thread::sleep(PATIENCE / 10);
        }
    });
    let start = Instant::now();
    drop(output);
    assert!(start.elapsed() > PATIENCE, "longer than without progress");
    assert_eq!(received.join().unwrap(), 300_000);
}

#[test]
fn steady_slow_reader_does_not_hold_up_the_end_for_good() {
    let (mut reader, sink) = pipe();
    let mut output = Output::start(sink).unwrap();
    output.handle().write_all(&[b'x'; CAPACITY]).unwrap();
    let slow = thread::spawn(move || {
        let (mut buffer, mut total) = ([0; CHUNK], 0);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return total,
                count => total += count,
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    let total = Duration::from_millis(300);
    let start = Instant::now();
    output.close(Drain { total, ..FOR_EVER });
    let took = start.elapsed();
    assert!(took >= total, "{took:?}");
    drop(output);
    assert!(slow.join().unwrap() < CAPACITY, "all of it would take 25 s");
}

#[test]
fn shared_nonblocking_output_is_waited_for() {
    let (mut reader, sink) = pipe();
    rustix::io::ioctl_fionbio(&sink.0, true).unwrap();
    let output = Output::start(sink).unwrap();
    output.handle().write_all(&[b'x'; 200_000]).unwrap();
    thread::sleep(Duration::from_millis(50));
    let received = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    drop(output);
    assert_eq!(received.join().unwrap(), 200_000);
}

/// Counts writes.
struct CountingSink(Arc<AtomicUsize>);

impl Sink for CountingSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(bytes.len())
    }
}

#[test]
fn bytes_in_a_row_are_written_together() {
    let writes = Arc::new(AtomicUsize::new(0));
    let output = Output::start(CountingSink(Arc::clone(&writes))).unwrap();
    let mut handle = output.handle();
    for _ in 0..10_000 {
        handle.write_all(b"x").unwrap();
    }
    drop(output);
    assert!(writes.load(Ordering::Relaxed) < 1000);
}

#[test]
fn discard_takes_everything() {
    let mut output = ConsoleOutput::discard();
    output.write_all(&[0; 100]).unwrap();
    output.flush().unwrap();
    assert!(output.0.lock().bytes.is_empty());
}

/// Output after that is discarded, and nobody waits for it at the end.
#[test]
fn a_panic_of_the_writer_ends_the_output() {
    struct Panics;
    impl Sink for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("as the test wants it");
        }
    }
    let mut output = Output::start(Panics).unwrap();
    output.handle().put(b"a");
    output.close(FOR_EVER);
    assert!(output.shared.lock().dead);
}

#[test]
fn what_is_more_than_the_limit_is_dropped_and_counted() {
    let limit = Limit {
        size: 4.try_into().unwrap(),
        refill: 1000.try_into().unwrap(),
        once: Some(2),
    };
    let mut limited = Limited {
        bucket: Bucket::new(limit, Duration::ZERO),
        start: Instant::now(),
        dropped: 0,
    };
    assert_eq!(limited.allow_at(10, Duration::ZERO), 6);
    assert_eq!(limited.allow_at(1, Duration::ZERO), 0);
    assert_eq!(limited.allow_at(10, Duration::from_millis(500)), 2);
    assert_eq!(limited.dropped, 4 + 1 + 8);

    // Half a year for the next byte.
    let slow = Limit {
        refill: 16_000_000_000.try_into().unwrap(),
        size: 1.try_into().unwrap(),
        once: Some(4),
    };
    let (mut reader, sink) = pipe();
    let output = Output::start(sink).unwrap();
    let mut handle = output.handle();
    handle.limit(Some(slow));
    for text in ["abc", "defg", "h"] {
        handle.write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(handle.limited(), 3);
    drop(output);
    let mut received = String::new();
    reader.read_to_string(&mut received).unwrap();
    assert_eq!(received, "abcde");
}
