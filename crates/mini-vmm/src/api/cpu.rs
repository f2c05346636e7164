// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU templates (`PUT /cpu-config`), as Firecracker describes them: bits of CPUID and of MSRs to clear or set, and
//! capabilities that KVM must have.
//!
//! A bit of CPUID is a CPU feature with a name. So a cleared bit also hides what needs the feature, as `--cpu-features` does.

use serde_json::{Value, json};

use super::fields::{Fields, wrong};
use super::file::read_limited;
use super::http::Fault;
use super::model::Model;
use crate::check;
use crate::config::{self, CpuFeature, MsrChange};
use crate::cpu::{self, Register};
use crate::text::shorten;

/// The flag of a CPUID entry of KVM that has subleaves (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const HAS_SUBLEAVES: u64 = 1;

impl Model {
    /// `PUT /cpu-config`: replaces an earlier one.
    pub(super) fn put_cpu_config(&mut self, fields: Fields) -> Result<(), Fault> {
        let body = fields.body();
        self.set_template(read(fields)?, body)
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

/// A template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub features: Vec<CpuFeature>,
    pub msrs: Vec<MsrChange>,
    pub capabilities: Vec<u32>,
}

/// Reads the body of `PUT /cpu-config`.
fn read(mut fields: Fields) -> Result<Template, Fault> {
    for name in ["reg_modifiers", "vcpu_features"] {
        fields.only(name, &json!([]), "there are none but on ARM")?;
    }
    let mut list = |name| Ok(fields.list(name)?.unwrap_or_default());
    let (leaves, msrs, capabilities) = (
        list("cpuid_modifiers")?,
        list("msr_modifiers")?,
        list("kvm_capabilities")?,
    );
    fields.finish()?;
    let mut template = Template::default();
    for leaf in leaves {
        read_leaf(leaf, &mut template.features).map_err(of("cpuid_modifiers"))?;
    }
    let msrs = msrs.into_iter().map(read_msr);
    template.msrs = msrs
        .collect::<Result<_, _>>()
        .map_err(of("msr_modifiers"))?;
    let numbers = capabilities.iter().map(read_capability);
    let numbers = numbers.collect::<Result<Vec<_>, _>>();
    template.capabilities = numbers
        .map_err(of("kvm_capabilities"))?
        .into_iter()
        .flatten()
        .collect();
    Ok(template)
}

/// A fault inside the field `name`.
fn of(name: &'static str) -> impl Fn(Fault) -> Fault {
    move |fault| wrong(name, fault.message)
}

/// Reads a modifier of an MSR.
fn read_msr(modifier: Value) -> Result<MsrChange, Fault> {
    let mut fields = Fields::of(modifier)?;
    let index = Fields::required("addr", fields.number_text("addr")?)?;
    let bitmap = Fields::required("bitmap", fields.text("bitmap")?)?;
    fields.finish()?;
    let (mask, value) = bits(&bitmap, 64)?;
    Ok(MsrChange { index, mask, value })
}

/// Reads a capability that KVM must have. `None` for one that need not be looked for.
fn read_capability(value: &Value) -> Result<Option<u32>, Fault> {
    let text = value.as_str().unwrap_or_default();
    let (is_removed, digits) = match text.strip_prefix('!') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| is_number);
    let number: u32 = number.ok_or_else(|| {
        let value = shorten(&value.to_string(), 60);
        Fault::new(format!(
            "{value} is not the number of a capability such as \"121\" or \"!121\""
        ))
    })?;
    if is_removed && check::is_required(number) {
        return Err(Fault::new(format!(
            "no machine can do without capability {number}; leave it out"
        )));
    }
    Ok((!is_removed).then_some(number))
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
        let (mask, value) = bits(&bitmap, 32)?;
        for bit in (0..32).filter(|bit| mask >> bit & 1 != 0) {
            let enable = value >> bit & 1 != 0;
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

/// The bits of a bitmap that are to be cleared or set, and their values.
fn bits(bitmap: &str, most: usize) -> Result<(u64, u64), Fault> {
    config::read_bitmap(bitmap, most).ok_or_else(|| {
        let bitmap = shorten(bitmap, 80);
        let what = format_args!("{bitmap:?} is not 0b and up to {most} of 0, 1 and x");
        wrong("bitmap", what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(body: &str) -> Result<String, String> {
        let template =
            read(Fields::parse(body.as_bytes()).unwrap()).map_err(|fault| fault.message)?;
        let words: Vec<_> = template
            .features
            .iter()
            .map(CpuFeature::to_string)
            .collect();
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
    fn msrs_and_capabilities_are_read() {
        let body = r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x0"}, {"addr": "0x277", "bitmap": "0bx"}],
            "kvm_capabilities": ["121", "!56", "4294967295"]}"#;
        let template = read(Fields::parse(body.as_bytes()).unwrap()).unwrap();
        let words: Vec<_> = template.msrs.iter().map(MsrChange::to_string).collect();
        assert_eq!(words, ["0x10a=0b1x0", "0x277=0bx"]);
        assert_eq!(template.capabilities, [121, u32::MAX]);
    }

    #[test]
    fn what_can_not_be_changed_is_refused_by_name() {
        for (body, why) in [
            (
                r#"{"kvm_capabilities": ["!3"]}"#,
                "kvm_capabilities: no machine can do without capability 3",
            ),
            (
                r#"{"kvm_capabilities": ["+3"]}"#,
                "kvm_capabilities: \"+3\" is not",
            ),
            (
                r#"{"kvm_capabilities": ["!"]}"#,
                "kvm_capabilities: \"!\" is not",
            ),
            (r#"{"kvm_capabilities": [3]}"#, "kvm_capabilities: 3 is not"),
            (
                r#"{"msr_modifiers": [{"addr": "0x10a"}]}"#,
                "msr_modifiers: bitmap: this field is missing",
            ),
            (
                r#"{"msr_modifiers": [{"addr": "MTRR", "bitmap": "0b1"}]}"#,
                "msr_modifiers: addr: \"MTRR\" is not a number",
            ),
            (
                r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "1"}]}"#,
                "msr_modifiers: bitmap: \"1\" is not 0b and up to 64",
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
