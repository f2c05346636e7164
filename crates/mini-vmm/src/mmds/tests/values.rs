// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The stored document, and tokens.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::tokens::{MAX_TOKENS, Tokens};
use super::super::{MmdsSpec, Store, StoreError, Version, is_possible};
use crate::config::{LinkSpec, NetSpec, VmSpec};

/// The examples of RFC 7396, appendix A: a document, a patch, the result.
#[test]
fn patches_are_merged_as_the_rfc_says() {
    let examples = [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
        (
            r#"{"a":{"b":"c"}}"#,
            r#"{"a":{"b":"d","c":null}}"#,
            r#"{"a":{"b":"d"}}"#,
        ),
        (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
        (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
        (r#"{"a":"foo"}"#, r#"null"#, r#"null"#),
        (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
        (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        (
            r#"{}"#,
            r#"{"a":{"bb":{"ccc":null}}}"#,
            r#"{"a":{"bb":{}}}"#,
        ),
    ];
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for (before, patch, after) in examples {
        let store = Store::new(100);
        store.put(json(before)).unwrap();
        store.patch(json(patch)).unwrap();
        assert_eq!(*store.get(), json(after), "{before} {patch}");
    }
}

#[test]
fn a_document_that_is_too_large_changes_nothing() {
    let store = Store::new(9);
    assert_eq!(*store.get(), Value::Null);
    assert_eq!(store.patch(json!({})), Err(StoreError::Empty));
    // Nine bytes, and ten.
    store.put(json!({"a": "b"})).unwrap();
    let large = Err(StoreError::TooLarge { limit: 9 });
    assert_eq!(store.put(json!({"a": "bc"})), large);
    assert_eq!(store.patch(json!({"b": 1})), large);
    assert_eq!(*store.get(), json!({"a": "b"}));
    store.patch(json!({"a": null, "b": "c"})).unwrap();
    assert_eq!(*store.clone().get(), json!({"b": "c"}));
    assert_eq!(format!("{store:?}"), "Store { limit: 9, .. }");
}

#[test]
fn a_token_is_valid_for_its_time() {
    let mut tokens = Tokens::default();
    let now = Instant::now();
    let short = tokens.issue(1, now).unwrap();
    let long = tokens.issue(21_600, now).unwrap();
    assert_ne!(short, long);
    let at = |tokens: &Tokens, token: &str, millis| {
        tokens.knows(token.as_bytes(), now + Duration::from_millis(millis))
    };
    assert!(at(&tokens, &short, 0) && at(&tokens, &short, 999));
    assert!(!at(&tokens, &short, 1000));
    assert!(at(&tokens, &long, 21_599_999) && !at(&tokens, &long, 21_600_000));
    for other in [
        "",
        "0",
        &long[1..],
        &format!("{long}0"),
        &format!("+{}", &long[1..]),
        &"0".repeat(32),
        &"\u{e9}".repeat(16),
    ] {
        assert!(!at(&tokens, other, 0), "{other}");
    }
    assert!(!format!("{tokens:?}").contains(&long));
}

#[test]
fn new_tokens_replace_those_that_expire_first() {
    let mut tokens = Tokens::default();
    let now = Instant::now();
    let knows = |tokens: &Tokens, token: &str| tokens.knows(token.as_bytes(), now);
    let long = tokens.issue(100, now).unwrap();
    let short = tokens.issue(10, now).unwrap();
    for _ in 2..MAX_TOKENS {
        tokens.issue(50, now).unwrap();
    }
    assert!(knows(&tokens, &short) && tokens.len() == MAX_TOKENS);
    tokens.issue(50, now).unwrap();
    assert!(!knows(&tokens, &short) && knows(&tokens, &long));
    for _ in 0..2 * MAX_TOKENS {
        tokens.issue(60, now).unwrap();
    }
    assert!(knows(&tokens, &long) && tokens.len() == MAX_TOKENS);
    // Those that have expired make room first.
    tokens.issue(1, now + Duration::from_secs(99)).unwrap();
    assert_eq!(tokens.len(), 2);
}

#[test]
fn addresses_are_link_local() {
    for (address, can_be) in [
        ("169.254.169.254", true),
        ("169.254.1.0", true),
        ("169.254.254.255", true),
        ("169.254.0.255", false),
        ("169.254.255.0", false),
        ("169.253.1.1", false),
        ("10.0.0.1", false),
    ] {
        assert_eq!(is_possible(address.parse().unwrap()), can_be, "{address}");
    }
}

#[test]
fn a_machine_reaches_the_service_by_a_network_that_it_has() {
    let validate = |nets: &[usize], address: &str| {
        let mmds = MmdsSpec {
            version: Version::V1,
            nets: nets.to_vec(),
            address: address.parse().unwrap(),
            imds_compat: false,
            store: Store::new(1),
        };
        let spec = VmSpec {
            net: vec![NetSpec::new(LinkSpec::Fd(3))],
            mmds: Some(mmds),
            ..VmSpec::new("vmlinux")
        };
        spec.validate().map_err(|error| error.to_string())
    };
    validate(&[0], "169.254.169.254").unwrap();
    let error = validate(&[0, 1], "169.254.169.254").unwrap_err();
    assert!(error.contains("network 1"), "{error}");
    let error = validate(&[0], "10.0.0.1").unwrap_err();
    assert!(error.contains("10.0.0.1 is no address"), "{error}");
}
