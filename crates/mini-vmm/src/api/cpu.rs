// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU templates (`PUT /cpu-config`), as Firecracker describes them: bits of CPUID to clear or set.
//!
//! A bit is a CPU feature with a name. So a cleared bit also hides what needs the feature, as `--cpu-features` does.

use serde_json::{Value, json};

use super::fields::{Fields, wrong};
use super::file::read_limited;
use super::http::Fault;
use super::model::Model;
use crate::config::CpuFeature;
use crate::cpu::{self, Register};

/// The flag of a CPUID entry of KVM that has subleaves (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const HAS_SUBLEAVES: u64 = 1;

impl Model {
    /// `PUT /cpu-config`: replaces the features of an earlier request.
    pub(super) fn put_cpu_config(&mut self, fields: Fields) -> Result<(), Fault> {
        let body = fields.body();
        let template = read(fields)?;
        self.set_features(template, body);
        Ok(())
    }

    /// `cpu-config` of a config file: a template, or the path of a file with one.
    pub(super) fn put_cpu_file(&mut self, body: Value) -> Result<(), Fault> {
        let fields = match &body {
            Value::String(path) => read_limited(path.as_ref())
                .and_then(|text| Fields::parse(&text))
                .map_err(|fault| Fault::new(format!("{path:?}: {}", fault.message)))?,
            _ => Fields::of(body)?,
        };
        self.put_cpu_config(fields)
    }
}

/// Reads the body of `PUT /cpu-config`.
fn read(mut fields: Fields) -> Result<Vec<CpuFeature>, Fault> {
    let none = json!([]);
    for (name, why) in [
        (
            "kvm_capabilities",
            "`mini-vmm check` says what this version needs of KVM, and that is fixed",
        ),
        (
            "msr_modifiers",
            "MSRs start as firmware leaves them; msr-policy by PATCH /options says which ones a guest has",
        ),
        ("reg_modifiers", "these registers are those of ARM"),
        ("vcpu_features", "these features are those of ARM"),
    ] {
        fields.only(name, &none, why)?;
    }
    let leaves = fields.list("cpuid_modifiers")?.unwrap_or_default();
    fields.finish()?;
    let mut features = Vec::new();
    for leaf in leaves {
        let inner = |fault: Fault| wrong("cpuid_modifiers", fault.message);
        read_leaf(leaf, &mut features).map_err(inner)?;
    }
    Ok(features)
}

/// Adds the features of a modifier: of one leaf and subleaf.
fn read_leaf(leaf: Value, features: &mut Vec<CpuFeature>) -> Result<(), Fault> {
    let mut fields = Fields::of(leaf)?;
    let leaf = Fields::required("leaf", fields.number_text("leaf")?)?;
    let subleaf = Fields::required("subleaf", fields.number_text("subleaf")?)?;
    let flags = Fields::required("flags", fields.number("flags")?)?;
    let registers = Fields::required("modifiers", fields.list("modifiers")?)?;
    fields.finish()?;
    let Some(has_subleaves) = cpu::has_features(leaf, subleaf) else {
        let what = format_args!(
            "{leaf:#x} with subleaf {subleaf:#x} has no features that can be changed; leave it out"
        );
        return Err(wrong("leaf", what));
    };
    let expected = if has_subleaves { HAS_SUBLEAVES } else { 0 };
    if flags != expected {
        let what =
            format_args!("KVM's flags of leaf {leaf:#x} are {expected}, not {flags}; correct them");
        return Err(wrong("flags", what));
    }
    for modifier in registers {
        let mut fields = Fields::of(modifier)?;
        let register = fields.choice("register", &["eax", "ebx", "ecx", "edx"])?;
        let register = Fields::required("register", register)?;
        let bitmap = Fields::required("bitmap", fields.text("bitmap")?)?;
        fields.finish()?;
        let (at, register) = (
            format!("leaf {leaf:#x} {register}"),
            Register::of_name(register),
        );
        for (bit, enable) in read_bitmap(&bitmap)? {
            let before = features.len();
            let names = cpu::feature_names(leaf, subleaf, register, bit);
            features.extend(names.map(|name| CpuFeature {
                name: name.to_owned(),
                enable,
            }));
            if features.len() == before {
                let what = format_args!(
                    "bit {bit} of {at} is no feature that can be changed; write x there"
                );
                return Err(wrong("bitmap", what));
            }
        }
    }
    Ok(())
}

/// The bits of a bitmap that are to be cleared or set. Bits on the left may be missing: they stay as they are.
fn read_bitmap(bitmap: &str) -> Result<Vec<(u32, bool)>, Fault> {
    let digits: Vec<char> = bitmap
        .strip_prefix("0b")
        .unwrap_or_default()
        .chars()
        .filter(|c| *c != '_')
        .collect();
    let is_bitmap = (1..=32).contains(&digits.len()) && digits.iter().all(|c| "01x".contains(*c));
    if !is_bitmap {
        let what = format_args!("{bitmap:?} is not 0b and up to 32 of 0, 1 and x");
        return Err(wrong("bitmap", what));
    }
    let bits = (0..).zip(digits.into_iter().rev());
    Ok(bits
        .filter(|(_, digit)| *digit != 'x')
        .map(|(bit, digit)| (bit, digit == '1'))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(body: &str) -> Result<String, String> {
        let features =
            read(Fields::parse(body.as_bytes()).unwrap()).map_err(|fault| fault.message)?;
        let words: Vec<_> = features.iter().map(CpuFeature::to_string).collect();
        Ok(words.join(","))
    }

    /// A modifier of one register.
    fn leaf(
        leaf: &str,
        subleaf: &str,
        flags: u32,
        register: &str,
        bitmap: &str,
    ) -> Result<String, String> {
        features(&format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "{leaf}", "subleaf": "{subleaf}", "flags": {flags},
                "modifiers": [{{"register": "{register}", "bitmap": "{bitmap}"}}]}}]}}"#
        ))
    }

    #[test]
    fn bits_are_features() {
        assert_eq!(features("{}").unwrap(), "");
        let bits = leaf(
            "0x1",
            "0",
            0,
            "ecx",
            "0b0x1x_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxx0",
        );
        assert_eq!(bits.unwrap(), "-pni,+f16c,-hypervisor");
        // Bits on the left stay, and one bit can have two names.
        assert_eq!(leaf("0b111", "0x0", 1, "ebx", "0b0xxxxx").unwrap(), "-avx2");
        let two = leaf("7", "0x0", 1, "edx", "0b1xxxxxxxxxxxxxxxxxxxxxxxxxx").unwrap();
        assert_eq!(two, "+ibrs,+ibpb");
        assert_eq!(
            leaf(
                "0x80000001",
                "0x0",
                0,
                "edx",
                "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            )
            .unwrap(),
            "-lm"
        );
    }

    #[test]
    fn what_can_not_be_changed_is_refused_by_name() {
        for (body, why) in [
            (r#"{"kvm_capabilities": ["!56"]}"#, "kvm_capabilities: "),
            (
                r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]}"#,
                "msr_modifiers: ",
            ),
            (r#"{"reg_modifiers": [1]}"#, "reg_modifiers: "),
            (r#"{"vcpu_features": [1]}"#, "vcpu_features: "),
            (
                r#"{"cpuid_modifiers": {}}"#,
                "cpuid_modifiers: {} is not a list",
            ),
            (
                r#"{"cpuid_modifiers": [1]}"#,
                "cpuid_modifiers: 1 is not a JSON object",
            ),
            (
                r#"{"cpuid_modifiers": [{}]}"#,
                "cpuid_modifiers: leaf: this field is missing",
            ),
            (
                r#"{"cpuid_modifiers": [{"leaf": 1}]}"#,
                "cpuid_modifiers: leaf: 1 is not a number in",
            ),
        ] {
            let fault = features(body).unwrap_err();
            assert!(fault.starts_with(why), "{body}: {fault}");
        }
        for (fault, why) in [
            (
                leaf("0x1", "0x0", 0, "eax", "0b0"),
                "bitmap: bit 0 of leaf 0x1 eax is no feature",
            ),
            (
                leaf("0x7", "0x0", 1, "ecx", "0b1xxxx0"),
                "bitmap: bit 0 of leaf 0x7 ecx is no feature",
            ),
            (
                leaf("0x1", "0x1", 0, "ecx", "0b0"),
                "leaf: 0x1 with subleaf 0x1",
            ),
            (
                leaf("0xb", "0x0", 0, "ecx", "0b0"),
                "leaf: 0xb with subleaf 0x0",
            ),
            (
                leaf("0x7", "0x0", 0, "ebx", "0b0"),
                "flags: KVM's flags of leaf 0x7 are 1",
            ),
            (
                leaf("one", "0x0", 0, "ecx", "0b0"),
                "leaf: \"one\" is not a number in",
            ),
            (
                leaf("0x100000000", "0x0", 0, "ecx", "0b0"),
                "leaf: \"0x100000000\" is not",
            ),
            (
                leaf("0x1", "0x0", 0, "rax", "0b0"),
                "register: \"rax\" is not one of",
            ),
            (leaf("0x1", "0x0", 0, "ecx", "0b"), "bitmap: \"0b\" is not"),
            (leaf("0x1", "0x0", 0, "ecx", "10"), "bitmap: \"10\" is not"),
            (
                leaf("0x1", "0x0", 0, "ecx", "0b2"),
                "bitmap: \"0b2\" is not",
            ),
            (
                leaf("0x1", "0x0", 0, "ecx", &format!("0b{}", "x".repeat(33))),
                "bitmap: ",
            ),
        ] {
            let fault = fault.unwrap_err();
            assert!(
                fault
                    .strip_prefix("cpuid_modifiers: ")
                    .unwrap()
                    .starts_with(why),
                "{fault}"
            );
        }
    }
}
