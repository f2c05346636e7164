// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fields of a JSON object, taken by name. Each mistake is a sentence that begins with its field.

use std::fmt::Display;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::http::Fault;
use crate::text::{nearest, shorten, shown};

/// The most characters of a value in a message.
const MAX_VALUE: usize = 60;

/// The fields that were not taken yet.
#[derive(Debug)]
pub(super) struct Fields {
    left: Map<String, Value>,
    asked: Vec<&'static str>,
}

/// A fault of the field `name`.
pub(super) fn wrong(name: &str, why: impl Display) -> Fault {
    Fault::new(format!("{name}: {why}"))
}

/// The body of a request, as JSON.
pub(super) fn json(body: &[u8]) -> Result<Value, Fault> {
    if body.is_empty() {
        return Err(Fault::new("the request has no body; send a JSON object"));
    }
    serde_json::from_slice(body)
        .map_err(|error| Fault::new(format!("the body is not JSON: {error}; send a JSON object")))
}

impl Fields {
    /// Reads the body of a request.
    pub fn parse(body: &[u8]) -> Result<Self, Fault> {
        Fields::of(json(body)?)
    }

    /// The fields of a value, which must be an object.
    pub fn of(value: Value) -> Result<Self, Fault> {
        match value {
            Value::Object(left) => Ok(Fields {
                left,
                asked: Vec::new(),
            }),
            other => Err(Fault::new(format!(
                "{} is not a JSON object; send one",
                shorten(&other.to_string(), MAX_VALUE)
            ))),
        }
    }

    /// Takes a field. `null` is the same as none.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that `read` understands. Otherwise the message says what was `expected`.
    fn read<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let wrong = || {
            let value = shorten(&value.to_string(), MAX_VALUE);
            wrong(name, format_args!("{value} is not {expected}"))
        };
        read(&value).map(Some).ok_or_else(wrong)
    }

    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Fault> {
        self.read(name, "a string", |value| Some(value.as_str()?.to_owned()))
    }

    pub fn path(&mut self, name: &'static str) -> Result<Option<PathBuf>, Fault> {
        let path = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        };
        self.read(name, "the path of a file", path)
    }

    pub fn switch(&mut self, name: &'static str) -> Result<Option<bool>, Fault> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// Takes one of the words `known`.
    pub fn choice(
        &mut self,
        name: &'static str,
        known: &[&'static str],
    ) -> Result<Option<&'static str>, Fault> {
        let find = |value: &Value| known.iter().copied().find(|word| value == *word);
        self.read(name, &format!("one of {}", known.join(", ")), find)
    }

    pub fn number(&mut self, name: &'static str) -> Result<Option<u64>, Fault> {
        self.read(name, "a whole number from 0 on", Value::as_u64)
    }

    /// Takes a number in a string: hexadecimal with 0x, binary with 0b, or decimal.
    pub fn number_text(&mut self, name: &'static str) -> Result<Option<u32>, Fault> {
        let number = |value: &Value| {
            let text = value.as_str()?;
            let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
                (Some(digits), _) => (digits, 16),
                (_, Some(digits)) => (digits, 2),
                _ => (text, 10),
            };
            u32::from_str_radix(digits, radix).ok()
        };
        self.read(name, "a number in a string, such as \"0x1\"", number)
    }

    pub fn list(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, Fault> {
        self.read(name, "a list", |value| value.as_array().cloned())
    }

    pub fn object(&mut self, name: &'static str) -> Result<Option<Map<String, Value>>, Fault> {
        self.read(name, "an object", |value| value.as_object().cloned())
    }

    /// All that was not taken yet.
    pub fn body(&self) -> Value {
        Value::Object(self.left.clone())
    }

    /// Takes a field that has no effect here: only the value that asks for nothing is accepted.
    pub fn only(&mut self, name: &'static str, nothing: &Value, why: &str) -> Result<(), Fault> {
        match self.take(name) {
            Some(value) if value != *nothing => {
                let value = shorten(&value.to_string(), MAX_VALUE);
                let what =
                    format_args!("{value} is not possible, because {why}; leave the field out");
                Err(wrong(name, what))
            }
            _ => Ok(()),
        }
    }

    /// A field that must be there.
    pub fn required<T>(name: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| wrong(name, "this field is missing; add it"))
    }

    /// Checks that every field was taken.
    pub fn finish(self) -> Result<(), Fault> {
        let Some(unknown) = self.left.keys().next() else {
            return Ok(());
        };
        let near = nearest(unknown, self.asked.iter().copied());
        let known = if near.is_empty() { self.asked } else { near };
        let known = known.join(", ");
        let what = format_args!("there is no such field here; the known ones are: {known}");
        Err(wrong(&shown(unknown), what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[track_caller]
    fn begins<T: std::fmt::Debug>(result: Result<T, Fault>, start: &str) {
        let fault = result.unwrap_err();
        assert!(fault.message.starts_with(start), "{fault:?}");
        assert_eq!(fault.status, 400);
    }

    #[test]
    fn each_mistake_names_its_field() {
        begins(fields(r#"{"a": 1}"#).text("a"), "a: 1 is not a string");
        begins(
            fields(r#"{"a": ""}"#).path("a"),
            "a: \"\" is not the path of a file",
        );
        begins(
            fields(r#"{"a": "yes"}"#).switch("a"),
            "a: \"yes\" is not true",
        );
        let choice = fields(r#"{"a": "z"}"#).choice("a", &["x", "y"]);
        begins(choice, "a: \"z\" is not one of x, y");
        for number in ["-1", "1.5", "\"1\"", "[]"] {
            let mut fields = fields(&format!("{{\"a\": {number}}}"));
            begins(
                fields.number("a"),
                &format!("a: {number} is not a whole number"),
            );
        }
        begins(
            Fields::required::<u8>("a", None),
            "a: this field is missing",
        );
        let refused = fields(r#"{"a": true}"#).only("a", &Value::Bool(false), "it is late");
        begins(refused, "a: true is not possible, because it is late");
    }

    #[test]
    fn unknown_fields_are_refused_and_null_is_nothing() {
        let mut with_null = fields(r#"{"path": null, "no": false}"#);
        assert_eq!(with_null.path("path").unwrap(), None);
        with_null.only("no", &Value::Bool(false), "").unwrap();
        with_null.finish().unwrap();
        let mut misspelt = fields(r#"{"vcpu_cuont": 1}"#);
        assert_eq!(misspelt.number("vcpu_count").unwrap(), None);
        misspelt.take("mem_size_mib");
        let message = misspelt.finish().unwrap_err().message;
        assert!(
            message.starts_with("vcpu_cuont: ") && message.ends_with(": vcpu_count"),
            "{message}"
        );
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        begins(Fields::parse(b""), "the request has no body");
        begins(Fields::parse(b"{"), "the body is not JSON: ");
        begins(Fields::parse(b"\xff"), "the body is not JSON: ");
        begins(Fields::parse(b"[1]"), "[1] is not a JSON object");
        let deep = "[".repeat(10_000);
        begins(Fields::parse(deep.as_bytes()), "the body is not JSON: ");
    }
}
