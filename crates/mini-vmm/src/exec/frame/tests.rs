//! Frames, without a connection.

use proptest::prelude::*;

use super::*;

/// A frame of any bytes, with a header that is often right.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let head = (any::<u8>(), 0..40u8, 0..20u32);
    let rest = prop::collection::vec(any::<u8>(), 0..64);
    (head, rest).prop_map(|((zero, kind, length), rest)| {
        let zero = if zero < 250 { 0 } else { zero };
        let [a, b, c, d] = length.to_le_bytes();
        [&[kind, 0, zero, 0, a, b, c, d][..], &rest].concat()
    })
}

fn word() -> impl Strategy<Value = OsString> {
    prop::collection::vec(1..=255u8, 1..20).prop_map(OsString::from_vec)
}

proptest! {
    #[test]
    fn a_frame_is_the_same_for_every_cut(bytes in bytes()) {
        let whole = parse(&bytes);
        let size = whole.ok().flatten().map_or(bytes.len(), |frame| frame.size());
        prop_assert!(size <= bytes.len());
        for end in 0..size {
            match parse(&bytes[..end]) {
                Ok(frame) => prop_assert_eq!(frame, None),
                // What is wrong is known early.
                Err(bad) => prop_assert_eq!(Err(bad), whole),
            }
        }
        if let Ok(Some(frame)) = whole {
            let mut again = header(frame.kind, frame.payload.len()).to_vec();
            again.extend(frame.payload);
            prop_assert_eq!(&again[..], &bytes[..size]);
        }
    }

    #[test]
    fn a_command_arrives_as_it_was(
        words in prop::collection::vec(word(), 1..5),
        values in prop::collection::vec((word(), prop::collection::vec(1..=255u8, 0..9)), 0..4),
        directory in prop::option::of(word()),
    ) {
        let env = values.into_iter().map(|(name, value)| {
            let name = name.into_vec().into_iter().filter(|byte| *byte != b'=');
            let name = [b'n'].into_iter().chain(name).collect();
            (OsString::from_vec(name), OsString::from_vec(value))
        });
        let start = Start {
            words,
            env: env.collect(),
            directory: directory.unwrap_or_default().into(),
        };
        let payload = start.payload().unwrap();
        prop_assert_eq!(Start::parse(&payload), Ok(start));
        for end in 0..payload.len() {
            prop_assert_eq!(Start::parse(&payload[..end]), Err(Unread::Payload));
        }
    }

    #[test]
    fn any_payload_is_refused_or_says_the_same_again(payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let versioned = [&VERSION.to_le_bytes()[..], &payload].concat();
        if let Ok(start) = Start::parse(&versioned) {
            prop_assert_eq!(start.payload(), Some(versioned));
        }
        if let Ok(end) = End::parse(&payload) {
            prop_assert_eq!(&end.payload()[..], &payload[..]);
        }
        if let Ok((refusal, reason)) = Refusal::parse(&payload) {
            prop_assert_eq!(refusal.payload(reason), payload);
        }
    }
}

#[test]
fn lengths_are_limited_before_the_payload_comes() {
    for kind in Kind::ALL {
        let (least, most) = kind.limits();
        for length in [least, most] {
            let payload = vec![7; length];
            let bytes = [&header(kind, length)[..], &payload].concat();
            let payload = &payload[..];
            assert_eq!(parse(&bytes), Ok(Some(Frame { kind, payload })));
        }
        for length in [most as u32 + 1, u32::MAX] {
            let bytes = [&[kind as u8, 0, 0, 0][..], &length.to_le_bytes()].concat();
            assert_eq!(parse(&bytes), Err(Bad::Length(kind, length)));
        }
    }
    for head in [[0, 0, 0, 0], [4, 0, 0, 0], [1, 1, 0, 0], [16, 0, 0, 1]] {
        let bytes = [&head[..], &[0; 4]].concat();
        assert_eq!(parse(&bytes), Err(Bad::Header(head)));
    }
}

#[test]
fn a_command_of_another_version_is_told_from_nonsense() {
    let payload = [&2u32.to_le_bytes()[..], b"something new"].concat();
    assert_eq!(Start::parse(&payload), Err(Unread::Version(2)));
    // No memory is taken for words that are not there.
    let payload = [VERSION, u32::MAX, u32::MAX].map(u32::to_le_bytes).concat();
    assert_eq!(Start::parse(&payload), Err(Unread::Payload));
}

#[test]
fn what_no_agent_would_run_has_no_payload() {
    let start = |words: &[&str], env: &[(&str, &str)]| Start {
        words: words.iter().map(OsString::from).collect(),
        env: env
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        directory: PathBuf::new(),
    };
    assert!(start(&["ls", ""], &[("A", "")]).payload().is_some());
    for (words, env) in [
        (&[][..], &[][..]),
        (&[""], &[]),
        (&["a\0b"], &[]),
        (&["ls"], &[("", "x")]),
        (&["ls"], &[("A", "b\0")]),
        (&["ls"], &[("A=B", "c")]),
        (&[&*"x".repeat(MAX_START)], &[]),
    ] {
        assert_eq!(start(words, env).payload(), None, "{words:.20?} {env:?}");
    }
}

#[test]
fn ends_are_exit_codes() {
    for (end, code) in [
        (End::Code(0), 0),
        (End::Code(255), 255),
        (End::Signal(2), 130),
        (End::Signal(64), 192),
    ] {
        assert_eq!(End::parse(&end.payload()), Ok(end));
        assert_eq!(end.exit_code(), code);
    }
    for bad in [
        [0, 0, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 65, 0, 0, 0],
        [2, 0, 0, 0, 1, 0, 0, 0],
    ] {
        assert_eq!(End::parse(&bad), Err(Bad::Payload(Kind::End)));
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let payload = Refusal::Busy.payload(&"é".repeat(MAX_REASON));
    let (refusal, reason) = Refusal::parse(&payload).unwrap();
    assert_eq!((refusal, reason.len()), (Refusal::Busy, MAX_REASON));
    let payload = Refusal::Failed.payload(&format!("x{}", "é".repeat(MAX_REASON)));
    assert_eq!(Refusal::parse(&payload).unwrap().1.len(), MAX_REASON - 1);
}
