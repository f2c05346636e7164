// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each request gets. The rules are those of Firecracker's docs/mmds/mmds-user-guide.md.

use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

use super::http::{self, Answer, Request, Served};
use super::tokens::{LIFETIMES, Tokens};
use super::{MmdsSpec, Store, Version};
use crate::http_head::values;
use crate::sync::lock;

/// Where tokens come from.
const TOKENS: &str = "/latest/api/token";
/// The headers for a token, and for its lifetime: ours, and EC2's.
const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const LIFETIME: [&str; 2] = [
    "x-metadata-token-ttl-seconds",
    "x-aws-ec2-metadata-token-ttl-seconds",
];

/// Answers the requests of one machine.
#[derive(Debug)]
pub(crate) struct Service {
    version: Version,
    imds_compat: bool,
    store: Store,
    tokens: Mutex<Tokens>,
}

impl Service {
    pub(crate) fn new(spec: &MmdsSpec) -> Self {
        Service {
            version: spec.version,
            imds_compat: spec.imds_compat,
            store: spec.store.clone(),
            tokens: Mutex::default(),
        }
    }

    /// Answers the request at the start of `input`, if it is complete.
    pub(super) fn serve(&self, input: &[u8], now: Instant) -> Option<Served> {
        http::serve(input, |request| self.answer(request, now))
    }

    fn answer(&self, request: Request<'_>, now: Instant) -> Answer {
        match request.method {
            "GET" => self.get(request, now),
            "PUT" => self.put(request, now),
            _ => Answer {
                header: Some(("Allow", "GET, PUT".to_owned())),
                ..Answer::text(405, "Use GET, or PUT for a token.")
            },
        }
    }

    fn get(&self, request: Request<'_>, now: Instant) -> Answer {
        if self.version == Version::V2 {
            let Some((_, token)) = find(request, TOKEN) else {
                let [ours, theirs] = TOKEN;
                let why = format!(
                    "There is no token; get one by PUT {TOKENS}, and give it in {ours} or {theirs}."
                );
                return Answer::text(401, why);
            };
            if !lock(&self.tokens).knows(token, now) {
                return Answer::text(401, "The token is not valid, or no longer.");
            }
        }
        let value = self.store.get();
        let path = normal(request.path);
        let Some(value) = value.pointer(&path) else {
            return Answer::text(404, format!("There is nothing at {path}/."));
        };
        if wants_json(request) && !self.imds_compat {
            return Answer {
                is_json: true,
                ..Answer::text(200, value.to_string())
            };
        }
        match value {
            Value::String(text) => Answer::text(200, text),
            Value::Object(fields) => {
                let name = |(name, value): (&String, &Value)| match value.is_object() {
                    true => format!("{name}/"),
                    false => name.clone(),
                };
                let names: Vec<_> = fields.iter().map(name).collect();
                Answer::text(200, names.join("\n"))
            }
            _ => Answer::text(
                501,
                "This value is no text and has no names; ask with Accept: application/json.",
            ),
        }
    }

    fn put(&self, request: Request<'_>, now: Instant) -> Answer {
        // A proxy would give tokens to others.
        if find(request, ["x-forwarded-for"]).is_some() {
            return Answer::text(400, "X-Forwarded-For is not possible here.");
        }
        if normal(request.path) != TOKENS {
            return Answer::text(404, format!("PUT is for {TOKENS}."));
        }
        let Some((header, text)) = find(request, LIFETIME) else {
            let [ours, theirs] = LIFETIME;
            let why = format!("There is no lifetime; give it in {ours} or {theirs}.");
            return Answer::text(400, why);
        };
        let seconds = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let Some(seconds) = seconds.filter(|seconds| LIFETIMES.contains(seconds)) else {
            let (least, most) = (LIFETIMES.start(), LIFETIMES.end());
            let why = format!("{header} is not a number of seconds from {least} to {most}.");
            return Answer::text(400, why);
        };
        match lock(&self.tokens).issue(seconds, now) {
            Ok(token) => Answer {
                header: Some((header, seconds.to_string())),
                ..Answer::text(200, token)
            },
            Err(_) => Answer::text(500, "There are no random numbers for a token."),
        }
    }
}

/// The first header that has one of these names.
fn find<'a, const N: usize>(
    request: Request<'a>,
    names: [&'static str; N],
) -> Option<(&'static str, &'a [u8])> {
    let mut found = names.iter().filter_map(|name| {
        let value = values(request.headers, name).next()?;
        Some((*name, value.trim_ascii()))
    });
    found.next()
}

/// A path as a JSON pointer (RFC 6901): several slashes count as one, and those at the end don't count.
fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.flat_map(|part| ["/", part]).collect()
}

/// Whether the guest asks for JSON.
fn wants_json(request: Request<'_>) -> bool {
    let accepted = values(request.headers, "accept").flat_map(|value| value.split(|b| *b == b','));
    let mut kinds = accepted.filter_map(|kind| kind.split(|b| *b == b';').next());
    kinds.any(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}
