// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests and answers.

use std::time::Duration;

use serde_json::json;

use super::super::Version;
use super::super::playground::Playground;
use super::guest::{Client, document, service, store};

const TTL: &str = "X-metadata-token-ttl-seconds";

/// Sends a request on a connection of its own. Returns status and body.
fn ask(service: &mut Playground, line: &str, headers: &str) -> (u16, String) {
    let (head, body) = whole(service, line, headers);
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse();
    (status.unwrap(), body)
}

fn whole(service: &mut Playground, line: &str, headers: &str) -> (String, String) {
    let mut client = Client::open(service, 4000);
    let text = client.ask(service, &format!("{line} HTTP/1.1\r\n{headers}\r\n"));
    client.end(service);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{text}");
    (head.to_owned(), body.to_owned())
}

#[track_caller]
fn gets(service: &mut Playground, line: &str, headers: &str, status: u16, body: &str) {
    let (was, text) = ask(service, line, headers);
    assert!(was == status && text.contains(body), "{line}: {was} {text}");
}

#[test]
fn values_come_as_names_or_text_and_as_json_on_request() {
    let mut service = service(Version::V1);
    let json = "Accept: application/json\r\n";
    for (path, headers, status, body) in [
        ("/", "", 200, "latest/"),
        ("/latest", "", 200, "meta-data/"),
        ("/latest/meta-data/", "", 200, "ami-id\ncount\nlist\nmacs/"),
        ("//latest///meta-data//ami-id", "", 200, "ami-1"),
        ("/latest/meta-data/ami-id?a=b", "", 200, "ami-1"),
        ("/latest/meta-data/macs/02:29:96/a", "", 200, "b"),
        ("http://169.254.169.254/latest", "", 200, "meta-data/"),
        ("/latest/meta-data/ami-id", json, 200, "\"ami-1\""),
        ("/latest/meta-data/count", json, 200, "7"),
        ("/latest/meta-data/list/0", json, 200, "\"x\""),
        (
            "/latest/meta-data/macs",
            "accept: text/html, Application/JSON;q=1\r\n",
            200,
            r#"{"02:29:96":{"a":"b"}}"#,
        ),
        ("/latest/meta-data/ami-id", "Accept: */*\r\n", 200, "ami-1"),
    ] {
        assert_eq!(
            ask(&mut service, &format!("GET {path}"), headers),
            (status, body.to_owned()),
            "{path}"
        );
    }
    gets(
        &mut service,
        "GET /latest/meta-data/count",
        "",
        501,
        "Accept",
    );
    gets(&mut service, "GET /latest/none", "", 404, "/latest/none");
    gets(&mut service, "GET /latest/meta-data/ami-id/x", "", 404, "");
    let (head, _) = whole(&mut service, "GET /latest", json);
    assert!(head.contains("Content-Type: application/json"), "{head}");
    let (head, _) = whole(&mut service, "GET /latest", "");
    assert!(head.contains("Content-Type: text/plain"), "{head}");
    for method in ["POST", "DELETE", "PATCH", "OPTIONS"] {
        let (head, _) = whole(&mut service, &format!("{method} /latest"), "");
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        assert!(head.contains("Allow: GET, PUT"), "{head}");
    }
}

#[test]
fn with_imds_compat_answers_are_never_json() {
    let mut service = Playground::new(Version::V1, true, store(document()));
    let json = "Accept: application/json\r\n";
    gets(
        &mut service,
        "GET /latest/meta-data/ami-id",
        json,
        200,
        "ami-1",
    );
    gets(&mut service, "GET /latest/meta-data/count", json, 501, "");
    let (head, body) = whole(&mut service, "GET /latest", json);
    assert!(head.contains("Content-Type: text/plain") && body == "meta-data/");
}

#[test]
fn the_second_version_needs_a_token() {
    let mut service = service(Version::V2);
    gets(
        &mut service,
        "GET /latest",
        "",
        401,
        "X-metadata-token".to_lowercase().as_str(),
    );
    gets(
        &mut service,
        "GET /latest",
        "X-metadata-token: 0\r\n",
        401,
        "not valid",
    );
    let path = "PUT /latest/api/token";
    for (line, headers, status) in [
        (path, "", 400),
        (path, "X-metadata-token-ttl-seconds: 0\r\n", 400),
        (path, "X-metadata-token-ttl-seconds: 21601\r\n", 400),
        (path, "X-metadata-token-ttl-seconds: -1\r\n", 400),
        (path, "X-metadata-token-ttl-seconds: 4294967297\r\n", 400),
        (path, "X-metadata-token-ttl-seconds: 1s\r\n", 400),
        (
            path,
            "X-metadata-token-ttl-seconds: 5\r\nX-Forwarded-For: 10.0.0.9\r\n",
            400,
        ),
        ("PUT /latest", "X-metadata-token-ttl-seconds: 5\r\n", 404),
    ] {
        gets(&mut service, line, headers, status, "");
    }
    for (ttl, name) in [
        (TTL, "X-metadata-token"),
        (
            "x-aws-ec2-metadata-token-ttl-seconds",
            "X-AWS-EC2-metadata-token",
        ),
    ] {
        let (head, token) = whole(
            &mut service,
            path,
            &format!("{ttl}: 5\r\nContent-Length: 0\r\n"),
        );
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let echo = format!("{ttl}: 5").to_lowercase();
        assert!(head.to_lowercase().contains(&echo), "{head}");
        let with = format!("{name}: {token}\r\n");
        gets(&mut service, "GET /latest", &with, 200, "meta-data/");
        service.wait(Duration::from_millis(4900));
        gets(&mut service, "GET /latest", &with, 200, "meta-data/");
        service.wait(Duration::from_millis(100));
        gets(&mut service, "GET /latest", &with, 401, "no longer");
    }
    // The first version gives tokens, too, and asks for none.
    let mut first = super::guest::service(Version::V1);
    gets(
        &mut first,
        path,
        "X-metadata-token-ttl-seconds: 5\r\n",
        200,
        "",
    );
    gets(
        &mut first,
        "GET /latest",
        "X-metadata-token: 0\r\n",
        200,
        "meta-data/",
    );
}

#[test]
fn a_change_is_seen_by_the_next_request() {
    let store = store(json!({"a": "1"}));
    let mut service = Playground::new(Version::V1, false, store.clone());
    let mut client = Client::open(&mut service, 4000);
    let mut get = || client.ask(&mut service, "GET /a HTTP/1.1\r\n\r\n");
    assert!(get().ends_with("\r\n\r\n1"));
    store.patch(json!({"a": "2"})).unwrap();
    assert!(get().ends_with("\r\n\r\n2"));
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let many = "a: b\r\n".repeat(33);
    for (request, status) in [
        ("\x16\x03\x01\x02".to_owned(), 400),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(4080)), 431),
        (
            "PUT / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n".to_owned(),
            413,
        ),
        (
            "PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(),
            400,
        ),
        (
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            501,
        ),
    ] {
        let mut service = service(Version::V1);
        let mut client = Client::open(&mut service, 4000);
        let text = client.ask(&mut service, &request);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert!(text.contains("Connection: close"), "{text}");
        client.end(&mut service);
    }
}

#[test]
fn connections_stay_as_long_as_http_says() {
    for (line, headers, stays) in [
        ("GET /latest HTTP/1.1", "", true),
        ("GET /latest HTTP/1.1", "Connection: close\r\n", false),
        ("GET /latest HTTP/1.0", "", false),
        ("GET /latest HTTP/1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let mut service = service(Version::V1);
        let mut client = Client::open(&mut service, 4000);
        let before = client.ack;
        let text = client.ask(&mut service, &format!("{line}\r\n{headers}\r\n"));
        let fin = client.ack.wrapping_sub(before) as usize - text.len();
        assert_eq!(fin, usize::from(!stays), "{line} {headers}");
    }
    // The answer to HEAD has no body, so the next one begins after its head.
    let mut other = service(Version::V1);
    let mut client = Client::open(&mut other, 4000);
    let text = client.ask(&mut other, "HEAD /latest HTTP/1.1\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 405 ") && text.ends_with("\r\n\r\n"));
    // Requests may follow each other at once, and have a body that nobody reads.
    let mut service = service(Version::V1);
    let mut client = Client::open(&mut service, 4000);
    let both = "PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /latest HTTP/1.1\r\n\r\n";
    let text = client.ask(&mut service, both);
    assert_eq!(text.matches("HTTP/1.1 ").count(), 2, "{text}");
    assert!(text.starts_with("HTTP/1.1 404 ") && text.ends_with("\r\n\r\nmeta-data/"));
}
