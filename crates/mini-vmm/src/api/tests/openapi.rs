// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `openapi.json` says what the server does.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::api::playground::Playground;
use crate::config::{HotplugSlots, KEYS};

fn document() -> Value {
    serde_json::from_str(include_str!("../../../openapi.json")).unwrap()
}

/// The two files of a snapshot, and the directory that holds them.
static PAIR: LazyLock<(TempDir, [String; 2])> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let files = ["vm.state", "vm.memory"].map(|name| dir.path().join(name));
    crate::snapshot::format_1::write_pair(&files[0], &files[1]);
    (dir, files.map(|file| file.to_str().unwrap().to_owned()))
});

/// A snapshot that its guest asked for.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    crate::snapshot::format_1::write_asked(dir.path());
    dir
});

/// An image for a new disk.
static IMAGE: LazyLock<NamedTempFile> = LazyLock::new(|| {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    image
});

/// An operation of the file.
struct Operation<'a> {
    path: &'a str,
    method: String,
    json: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods
            .filter(|(method, _)| *method != "parameters")
            .map(move |(method, json)| Operation {
                path,
                method: method.to_uppercase(),
                json,
            })
    });
    operations.collect()
}

impl<'a> Operation<'a> {
    /// The path, with the example's ID.
    fn target(&self) -> String {
        match self.path.split_once('{') {
            // It is a new one.
            Some((start, _)) if start == "/devices/" && self.method == "PUT" => {
                format!("{start}b")
            }
            Some((start, _)) => format!("{start}a"),
            None => self.path.to_owned(),
        }
    }

    fn schema(&self, document: &'a Value) -> Option<&'a Value> {
        let body: &'a Value = &self.json["requestBody"];
        let schema = body.pointer("/content/application~1json/schema")?;
        Some(resolve(document, schema))
    }

    /// The example's body. `file` exists, unlike the files in the example.
    fn example(&self, file: &str) -> Option<Value> {
        let mut body = self.json["requestBody"]
            .pointer("/content/application~1json/example")?
            .clone();
        if self.path == "/snapshot/load" {
            let files = &PAIR.1;
            body["snapshot_path"] = files[0].as_str().into();
            body["mem_backend"]["backend_path"] = files[1].as_str().into();
        }
        if self.path == "/snapshot/restore" {
            body["directory"] = DIRECTORY.path().to_str().unwrap().into();
        }
        for (name, value) in body.as_object_mut()? {
            let exists = [
                "kernel_image_path",
                "initrd_path",
                "path_on_host",
                "metrics_path",
            ];
            if exists.contains(&&**name) {
                *value = file.into();
            }
            if name == "disk" && self.path == "/devices/{id}" {
                *value = format!("path={},readonly", IMAGE.path().display()).into();
            }
        }
        Some(body)
    }

    /// A machine in the state that the operation needs.
    fn machine(&self, file: &str) -> Playground {
        if self.json["x-when"] == "first" {
            return Playground::default();
        }
        let mut machine = described(file);
        let boot = format!(r#"{{"kernel_image_path": "{file}"}}"#);
        done(machine.served(), "PUT", "/boot-source", &boot);
        done(machine.served(), "PUT", "/mmds", r#"{"a": "b"}"#);
        if self.method == "DELETE" || self.path == "/devices/{id}" {
            let model = machine.served().routes.machine.draft().unwrap();
            model.spec.hotplug = HotplugSlots(3);
            model.spec.disk[0].slot = Some(31);
            model.spec.net[0].slot = Some(30);
        }
        if self.json["x-when"] == "after" || self.json["x-when"] == "paused" {
            start(&mut machine);
        }
        if self.json["x-when"] == "paused" {
            done(machine.served(), "PATCH", "/vm", r#"{"state": "Paused"}"#);
        }
        machine
    }

    fn ask(&self, machine: &mut Playground, body: &str) -> Answer {
        ask(machine.served(), &self.method, &self.target(), body)
    }
}

/// A machine with devices that have the examples' ID.
fn described(file: &str) -> Playground {
    let mut machine = Playground::default();
    let drive = format!(r#"{{"path_on_host": "{file}", "is_root_device": false}}"#);
    done(machine.served(), "PUT", "/drives/a", &drive);
    let net = r#"{"host_dev_name": "tap0"}"#;
    done(machine.served(), "PUT", "/network-interfaces/a", net);
    let balloon = r#"{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}"#;
    done(machine.served(), "PUT", "/balloon", balloon);
    machine
}

fn start(machine: &mut Playground) {
    let body = r#"{"action_type": "InstanceStart"}"#;
    done(machine.served(), "PUT", "/actions", body);
}

/// The schema that a reference names.
fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    let named = schema
        .get("$ref")
        .or_else(|| schema.pointer("/allOf/0/$ref"));
    match named {
        Some(name) => document.pointer(&name.as_str().unwrap()[1..]).unwrap(),
        None => schema,
    }
}

fn names(object: &Value) -> BTreeSet<&str> {
    let object = object.as_object().unwrap();
    object.keys().map(String::as_str).collect()
}

/// Checks a value: its type, that it is listed, and that an object has the fields of its schema and no others.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if value.is_null() {
        assert_eq!(schema["nullable"], true, "{at} is null");
        return;
    }
    let schema = resolve(document, schema);
    if let Some(listed) = schema["enum"].as_array() {
        assert!(listed.contains(value), "{at}: {value} is not in {listed:?}");
    }
    let is_it = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("boolean") => value.is_boolean(),
        other => panic!("{at}: type {other:?}"),
    };
    assert!(is_it, "{at}: {value} is no {}", schema["type"]);
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}[{index}]"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        assert!(value.get(name).is_some(), "{at} lacks {name}");
    }
    let Some(properties) = schema.get("properties") else {
        return;
    };
    for (name, value) in value.as_object().unwrap() {
        let schema = properties
            .get(name)
            .unwrap_or_else(|| panic!("{at}.{name} is not in the file"));
        check(document, schema, value, &format!("{at}.{name}"));
    }
}

#[test]
fn the_file_has_the_paths_and_methods_of_the_server() {
    let document = document();
    let operations = operations(&document);
    let said: BTreeSet<_> = operations
        .iter()
        .map(|operation| {
            let path = operation
                .path
                .split_once('{')
                .map_or(operation.path, |(start, _)| start);
            (path.to_owned(), operation.method.clone())
        })
        .collect();
    let served: BTreeSet<_> = routes::PATHS
        .iter()
        .flat_map(|(path, methods)| {
            let path = path.split_once('{').map_or(*path, |(start, _)| start);
            methods
                .split(", ")
                .map(move |method| (path.to_owned(), method.to_owned()))
        })
        .collect();
    assert_eq!(said, served, "add what is missing to openapi.json");
    assert_eq!(document["info"]["version"], API_VERSION);
}

#[test]
fn answers_are_as_the_file_says() {
    let document = document();
    let (_file, path) = kernel();
    for operation in operations(&document) {
        let name = format!("{} {}", operation.method, operation.path);
        let mut machine = operation.machine(&path);
        if operation.path == "/vm/config" {
            done(machine.served(), "PUT", "/entropy", "{}");
            let mmds = r#"{"network_interfaces": ["a"]}"#;
            done(machine.served(), "PUT", "/mmds/config", mmds);
        }
        let body = operation.example(&path);
        if let (Some(schema), Some(body)) = (operation.schema(&document), &body) {
            check(&document, schema, body, &name);
        }
        let body = body.map_or_else(String::new, |body| body.to_string());
        let responses = &operation.json["responses"];
        match operation.ask(&mut machine, &body) {
            Ok(None) => assert_eq!(names(responses), BTreeSet::from(["204", "400"]), "{name}"),
            Ok(Some(Data::Json(value))) => {
                assert_eq!(names(responses), BTreeSet::from(["200", "400"]), "{name}");
                let schema = responses.pointer("/200/content/application~1json/schema");
                check(&document, schema.unwrap(), &value, &name);
            }
            Ok(Some(Data::Metrics(_))) => {
                assert!(
                    responses.pointer("/200/content/text~1plain").is_some(),
                    "{name}"
                );
            }
            Err(fault) => panic!("{name}: {fault:?}"),
        }
    }
}

#[test]
fn requests_are_possible_when_the_file_says_so() {
    let document = document();
    let (_file, path) = kernel();
    for operation in operations(&document) {
        let name = format!("{} {}", operation.method, operation.path);
        let body = operation
            .example(&path)
            .map_or_else(String::new, |body| body.to_string());
        let mut machine = operation.machine(&path);
        match operation.json["x-when"].as_str() {
            Some("first") => {
                let mut other = Playground::default();
                let drive = format!(r#"{{"path_on_host": "{path}", "is_root_device": false}}"#);
                done(other.served(), "PUT", "/drives/a", &drive);
                let fault = operation.ask(&mut other, &body).unwrap_err();
                assert!(
                    fault.message.contains("not allowed after"),
                    "{name}: {fault:?}"
                );
                assert_eq!(operation.ask(&mut machine, &body), Ok(None), "{name}");
                let fault = operation.ask(&mut machine, &body).unwrap_err();
                assert!(
                    fault.message.contains("after starting"),
                    "{name}: {fault:?}"
                );
            }
            Some("before") => {
                start(&mut machine);
                let fault = operation.ask(&mut machine, &body).unwrap_err();
                assert!(
                    fault.message.contains("after starting"),
                    "{name}: {fault:?}"
                );
            }
            Some(when @ ("after" | "paused")) => {
                if when == "paused" {
                    done(machine.served(), "PATCH", "/vm", r#"{"state": "Resumed"}"#);
                    let fault = operation.ask(&mut machine, &body).unwrap_err();
                    assert!(
                        fault.message.contains("pause it first"),
                        "{name}: {fault:?}"
                    );
                }
                let mut other = described(&path);
                let fault = operation.ask(&mut other, &body).unwrap_err();
                assert!(
                    fault.message.contains("before starting"),
                    "{name}: {fault:?}"
                );
            }
            Some("always") => {
                operation.ask(&mut machine, &body).unwrap();
                if operation.path != "/actions" {
                    start(&mut machine);
                    operation.ask(&mut machine, &body).unwrap();
                }
            }
            other => panic!("{name}: x-when is {other:?}"),
        }
    }
}

#[test]
fn bodies_have_the_fields_that_the_file_says() {
    let document = document();
    let (_file, path) = kernel();
    for operation in operations(&document) {
        let name = format!("{} {}", operation.method, operation.path);
        let (Some(schema), Some(example)) = (operation.schema(&document), operation.example(&path))
        else {
            continue;
        };
        // Any document is possible.
        if operation.path == "/mmds" {
            continue;
        }
        if schema.get("properties").is_none() {
            let mut machine = operation.machine(&path);
            let keys = get(machine.served(), "/options");
            assert_eq!(names(&keys), KEYS.iter().copied().collect(), "{name}");
            assert!(names(&example).is_subset(&names(&keys)), "{name}");
            continue;
        }
        let try_with = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            let mut body = example.clone();
            change(body.as_object_mut().unwrap());
            operation.ask(&mut operation.machine(&path), &body.to_string())
        };
        // The server lists what it knows.
        let fault =
            try_with(&|body| drop(body.insert("this_is_unknown".into(), 1.into()))).unwrap_err();
        let (_, known) = fault.message.split_once("the known ones are: ").unwrap();
        assert_eq!(
            known.split(", ").collect::<BTreeSet<_>>(),
            names(&schema["properties"]),
            "{name}"
        );
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (field, of) in schema["properties"].as_object().unwrap() {
            let at = format!("{name}: {field}");
            let without = try_with(&|body| drop(body.remove(field)));
            match required.contains(&field.as_str().into()) {
                true => assert!(without.unwrap_err().message.starts_with(field), "{at}"),
                false if schema["minProperties"].is_null() => assert_eq!(without, Ok(None), "{at}"),
                false => {}
            }
            // No field takes a value of another type.
            let wrong = try_with(&|body| drop(body.insert(field.clone(), serde_json::json!([[]]))));
            assert!(wrong.unwrap_err().message.starts_with(field), "{at}");
            for value in of["enum"].as_array().into_iter().flatten() {
                let with = try_with(&|body| drop(body.insert(field.clone(), value.clone())));
                // What is not possible now is known, too.
                let is_known = with
                    .as_ref()
                    .map_or_else(|fault| !fault.message.starts_with(field), |_| true);
                assert!(is_known, "{at}: {value}: {with:?}");
            }
        }
    }
}
