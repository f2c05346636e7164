// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares `include/para_abi.h` and the system's KVM headers with the Rust side, through the system's `cc`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use para_abi::{KvmErrno, ParaErrno, Registration, kvm, vmm};

const HEADER: &str = include_str!("../include/para_abi.h");
const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wundef", "-Werror", "-pedantic"];

macro_rules! field {
    ($name:ident) => {
        std::mem::offset_of!(para_abi::kvm_vcpu_para_state, $name) as u64
    };
}
/// Every number that the header defines, with the Rust side's value.
fn numbers() -> Vec<(&'static str, u64)> {
    let errno = |errno: KvmErrno| u64::from(errno.code());
    vec![
        ("MSR_KVM_API_MAGIC", para_abi::MSR_KVM_API_MAGIC.into()),
        (
            "KVM_PARA_API_VERSION",
            para_abi::KVM_PARA_API_VERSION.into(),
        ),
        ("PARA_STATE_SIZE", para_abi::PARA_STATE_SIZE as u64),
        ("PARA_STATE_PAYLOAD", para_abi::PARA_STATE_PAYLOAD as u64),
        ("PARA_PRESET", para_abi::PARA_PRESET.into()),
        ("PARA_REGISTER_EINVAL", ParaErrno::KVM_EINVAL.code().into()),
        (
            "PARA_OFFSET_GUEST_VERSION",
            para_abi::OFFSET_GUEST_VERSION as u64,
        ),
        (
            "PARA_OFFSET_HOST_VERSION",
            para_abi::OFFSET_HOST_VERSION as u64,
        ),
        ("PARA_OFFSET_SIZE", para_abi::OFFSET_SIZE as u64),
        ("PARA_OFFSET_RET", para_abi::OFFSET_RET as u64),
        (
            "PARA_OFFSET_HYPERCALL_GPA",
            para_abi::OFFSET_HYPERCALL_GPA as u64,
        ),
        ("PARA_STUB_LEN", para_abi::STUB_LEN as u64),
        ("PARA_STUB_PATCH_LEN", para_abi::STUB_PATCH_LEN as u64),
        (
            "PARA_STUB_UNPATCHED_RESULT",
            para_abi::STUB_UNPATCHED_RESULT,
        ),
        ("PARA_CALL_EPERM", errno(KvmErrno::KVM_EPERM)),
        ("PARA_CALL_EIO", errno(KvmErrno::KVM_EIO)),
        ("PARA_CALL_EAGAIN", errno(KvmErrno::KVM_EAGAIN)),
        ("PARA_CALL_E2BIG", errno(KvmErrno::KVM_E2BIG)),
        ("PARA_CALL_EFAULT", errno(KvmErrno::KVM_EFAULT)),
        ("PARA_CALL_EINVAL", errno(KvmErrno::KVM_EINVAL)),
        ("PARA_CALL_EOPNOTSUPP", errno(KvmErrno::KVM_EOPNOTSUPP)),
        ("PARA_CALL_ENOSYS", errno(KvmErrno::KVM_ENOSYS)),
        ("KVM_HC_VAPIC_POLL_IRQ", kvm::KVM_HC_VAPIC_POLL_IRQ),
        ("KVM_HC_KICK_CPU", kvm::KVM_HC_KICK_CPU),
        ("KVM_HC_CLOCK_PAIRING", kvm::KVM_HC_CLOCK_PAIRING),
        ("KVM_HC_SEND_IPI", kvm::KVM_HC_SEND_IPI),
        ("KVM_HC_SCHED_YIELD", kvm::KVM_HC_SCHED_YIELD),
        ("KVM_HC_MAP_GPA_RANGE", kvm::KVM_HC_MAP_GPA_RANGE),
        ("VMM_HC_BASE", vmm::VMM_HC_BASE),
        ("VMM_HC_LAST", vmm::VMM_HC_LAST),
        ("VMM_HC_NOP", vmm::VMM_HC_NOP),
        ("VMM_HC_BOOT_MARK", vmm::VMM_HC_BOOT_MARK),
        ("VMM_HC_EXIT", vmm::VMM_HC_EXIT),
        ("VMM_HC_CONSOLE_WRITE", vmm::VMM_HC_CONSOLE_WRITE),
        ("VMM_HC_SNAPSHOT", vmm::VMM_HC_SNAPSHOT),
    ]
}

/// The same for the layout, as C expressions.
fn layout() -> Vec<(&'static str, u64)> {
    use para_abi::kvm_vcpu_para_state as State;
    vec![
        (
            "sizeof(struct kvm_vcpu_para_state)",
            size_of::<State>() as u64,
        ),
        (
            "__alignof__(struct kvm_vcpu_para_state)",
            align_of::<State>() as u64,
        ),
        (
            "offsetof(struct kvm_vcpu_para_state, guest_version)",
            field!(guest_version),
        ),
        (
            "offsetof(struct kvm_vcpu_para_state, host_version)",
            field!(host_version),
        ),
        ("offsetof(struct kvm_vcpu_para_state, size)", field!(size)),
        ("offsetof(struct kvm_vcpu_para_state, ret)", field!(ret)),
        (
            "offsetof(struct kvm_vcpu_para_state, hypercall_gpa)",
            field!(hypercall_gpa),
        ),
        (
            "sizeof(((struct kvm_vcpu_para_state *)0)->guest_version)",
            4,
        ),
        ("sizeof(((struct kvm_vcpu_para_state *)0)->host_version)", 4),
        ("sizeof(((struct kvm_vcpu_para_state *)0)->size)", 4),
        ("sizeof(((struct kvm_vcpu_para_state *)0)->ret)", 4),
        (
            "sizeof(((struct kvm_vcpu_para_state *)0)->hypercall_gpa)",
            8,
        ),
    ]
}

/// Names and values of `asm/kvm_para.h`.
fn kvms_own() -> Vec<(&'static str, u64)> {
    macro_rules! of_kvm {
        ($($name:ident)*) => { vec![$((stringify!($name), u64::from(kvm::$name))),*] };
    }
    of_kvm! {
        KVM_CPUID_SIGNATURE KVM_CPUID_FEATURES
        KVM_FEATURE_CLOCKSOURCE KVM_FEATURE_NOP_IO_DELAY KVM_FEATURE_MMU_OP KVM_FEATURE_CLOCKSOURCE2
        KVM_FEATURE_ASYNC_PF KVM_FEATURE_STEAL_TIME KVM_FEATURE_PV_EOI KVM_FEATURE_PV_UNHALT
        KVM_FEATURE_PV_TLB_FLUSH KVM_FEATURE_ASYNC_PF_VMEXIT KVM_FEATURE_PV_SEND_IPI
        KVM_FEATURE_POLL_CONTROL KVM_FEATURE_PV_SCHED_YIELD KVM_FEATURE_ASYNC_PF_INT
        KVM_FEATURE_MSI_EXT_DEST_ID KVM_FEATURE_HC_MAP_GPA_RANGE KVM_FEATURE_MIGRATION_CONTROL
        KVM_FEATURE_CLOCKSOURCE_STABLE_BIT KVM_HINTS_REALTIME
        MSR_KVM_WALL_CLOCK MSR_KVM_SYSTEM_TIME MSR_KVM_WALL_CLOCK_NEW MSR_KVM_SYSTEM_TIME_NEW
        MSR_KVM_ASYNC_PF_EN MSR_KVM_STEAL_TIME MSR_KVM_PV_EOI_EN MSR_KVM_POLL_CONTROL
        MSR_KVM_ASYNC_PF_INT MSR_KVM_ASYNC_PF_ACK MSR_KVM_MIGRATION_CONTROL
        KVM_MSR_ENABLED KVM_MIGRATION_READY
        KVM_HC_VAPIC_POLL_IRQ KVM_HC_MMU_OP KVM_HC_KICK_CPU KVM_HC_CLOCK_PAIRING KVM_HC_SEND_IPI
        KVM_HC_SCHED_YIELD KVM_HC_MAP_GPA_RANGE KVM_CLOCK_PAIRING_WALLCLOCK
        KVM_MAP_GPA_RANGE_PAGE_SZ_4K KVM_MAP_GPA_RANGE_PAGE_SZ_2M KVM_MAP_GPA_RANGE_PAGE_SZ_1G
        KVM_MAP_GPA_RANGE_ENCRYPTED
    }
}

/// A directory with the header, for one test. Without a compiler it prints a skip and is `None`.
struct Cc {
    test: &'static str,
    directory: PathBuf,
}

impl Cc {
    fn new(test: &'static str) -> Option<Self> {
        if Command::new("cc").arg("--version").output().is_err() {
            skip(test, "there is no cc");
            return None;
        }
        let directory =
            std::env::temp_dir().join(format!("para-abi-{}-{test}", std::process::id()));
        fs::create_dir_all(directory.join("linux")).unwrap();
        fs::write(directory.join("para_abi.h"), HEADER).unwrap();
        // Stands in for a kernel's <linux/types.h>.
        let types = "typedef unsigned int u32;\ntypedef unsigned long long u64;\n";
        fs::create_dir_all(directory.join("kernel/linux")).unwrap();
        fs::write(directory.join("kernel/linux/types.h"), types).unwrap();
        Some(Self { test, directory })
    }

    /// Compiles `source`. The error is the compiler's output.
    fn compile(&self, source: &str, arguments: &[&str]) -> Result<PathBuf, String> {
        let (input, program) = (self.directory.join("test.c"), self.directory.join("test"));
        fs::write(&input, source).unwrap();
        let mut cc = Command::new("cc");
        cc.arg("-I")
            .arg(&self.directory)
            .args(arguments)
            .arg("-o")
            .arg(&program)
            .arg(&input);
        let output = cc.output().unwrap();
        match output.status.success() {
            true => Ok(program),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Compiles and runs a program, and returns its output.
    fn run(&self, source: &str, arguments: &[&str]) -> String {
        let program = self
            .compile(source, arguments)
            .unwrap_or_else(|error| panic!("{error}"));
        let output = Command::new(program).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", self.test);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Compares C expressions with their values on the Rust side.
    fn compare(&self, prologue: &str, table: &[(&str, u64)]) {
        let mut source = format!("{prologue}\nint main(void)\n{{\n");
        for (expression, _) in table {
            writeln!(
                source,
                "\tprintf(\"%llx\\n\", (unsigned long long)({expression}));"
            )
            .unwrap();
        }
        source.push_str("\treturn 0;\n}\n");
        let output = self.run(&source, &["-std=gnu11", "-Wall", "-Wextra", "-Werror"]);
        let values: Vec<u64> = output
            .lines()
            .map(|line| u64::from_str_radix(line, 16).unwrap())
            .collect();
        assert_eq!(values.len(), table.len());
        for ((expression, rust), c) in table.iter().zip(values) {
            assert_eq!(c, *rust, "{expression}: {c:#x} in C, {rust:#x} in Rust");
        }
    }
}

impl Drop for Cc {
    fn drop(&mut self) {
        // A directory that stays behind does no harm.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn skip(test: &str, reason: &str) {
    eprintln!("SKIP: {test}: {reason}");
}

/// The header's macros that are numbers.
fn defined_numbers() -> BTreeMap<&'static str, &'static str> {
    let definitions = HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define "));
    let pairs = definitions.filter_map(|line| line.split_once(char::is_whitespace));
    let numbers = pairs.filter(|(name, value)| {
        !name.contains('(') && value.starts_with(|first: char| first.is_ascii_digit())
    });
    numbers
        .filter(|(name, _)| *name != "PARA_STUB_BYTES")
        .collect()
}

#[test]
fn every_number_of_the_header_is_compared() {
    let compared: Vec<&str> = numbers().into_iter().map(|(name, _)| name).collect();
    let defined = defined_numbers();
    for name in defined.keys() {
        assert!(
            compared.contains(name),
            "{name} isn't compared with the Rust side"
        );
    }
    assert_eq!(compared.len(), defined.len());
}

#[test]
fn h2_h12_layout_and_values_are_those_of_the_rust_side() {
    let Some(cc) = Cc::new("h2_h12_layout_and_values_are_those_of_the_rust_side") else {
        return;
    };
    let prologue = "#include <stddef.h>\n#include <stdio.h>\n#include \"para_abi.h\"";
    let table: Vec<_> = numbers().into_iter().chain(layout()).collect();
    cc.compare(prologue, &table);
}

#[test]
fn the_header_compiles_wherever_guests_are_built() {
    let Some(cc) = Cc::new("the_header_compiles_wherever_guests_are_built") else {
        return;
    };
    let kernel = cc.directory.join("kernel");
    let kernel = [
        "-ffreestanding",
        "-mno-red-zone",
        "-D__KERNEL__",
        "-I",
        kernel.to_str().unwrap(),
    ];
    let variants: [(&str, &[&str]); 9] = [
        ("C89", &["-std=c89", "-Wno-long-long"]),
        ("GNU C89", &["-std=gnu89"]),
        ("C99", &["-std=c99"]),
        ("C11", &["-std=c11", "-O2"]),
        (
            "GNU C17, no PIC",
            &["-std=gnu17", "-fno-pic", "-mcmodel=kernel"],
        ),
        ("a kernel", &kernel),
        ("32-bit", &["-m32", "-ffreestanding"]),
        ("C++17", &["-x", "c++", "-std=c++17"]),
        (
            "own types",
            &["-DPARA_ABI_NO_TYPES", "-include", "linux/own.h"],
        ),
    ];
    let own = "typedef unsigned int para_abi_u32;\ntypedef unsigned long para_abi_u64;\n";
    fs::write(cc.directory.join("linux/own.h"), own).unwrap();
    let source = "#include \"para_abi.h\"\n#include \"para_abi.h\"\n\
                  PARA_ABI_DEFINE_STUB(stub);\n\
                  struct kvm_vcpu_para_state page;\n";
    for (name, arguments) in variants {
        // C++ and 32-bit code generation may be missing.
        if let Err(error) = cc.compile("int nothing;\n", &[arguments, &["-c"]].concat()) {
            skip(
                cc.test,
                &format!(
                    "cc has no {name}: {}",
                    error.lines().next().unwrap_or_default()
                ),
            );
            continue;
        }
        let arguments = [arguments, &STRICT, &["-c"]].concat();
        if let Err(error) = cc.compile(source, &arguments) {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn h12_the_header_lives_with_linuxs() {
    let Some(cc) = Cc::new("h12_the_header_lives_with_linuxs") else {
        return;
    };
    if !Path::new("/usr/include/linux/kvm_para.h").exists() {
        return skip(cc.test, "there is no <linux/kvm_para.h>");
    }
    let (ours, theirs) = ("#include \"para_abi.h\"\n", "#include <linux/kvm_para.h>\n");
    for source in [[ours, theirs].concat(), [theirs, ours].concat()] {
        let result = cc.compile(&source, &["-c", "-Wall", "-Werror"]);
        result.unwrap_or_else(|error| panic!("{source}{error}"));
    }
}

#[test]
fn todays_numbers_are_those_of_linuxs_headers() {
    let Some(cc) = Cc::new("todays_numbers_are_those_of_linuxs_headers") else {
        return;
    };
    let prologue = "#include <errno.h>\n#include <stdio.h>\n#include <string.h>\n\
                    #include <asm/kvm_para.h>\n#include <linux/kvm_para.h>";
    let newest = format!("{prologue}\nint newest = KVM_FEATURE_MIGRATION_CONTROL;\n");
    if cc.compile(&newest, &["-c"]).is_err() {
        return skip(
            cc.test,
            "there is no <asm/kvm_para.h> of Linux 5.16 or newer",
        );
    }
    let mut table = kvms_own();
    for errno in KvmErrno::ALL {
        let name = match errno {
            // KVM has no names for these.
            KvmErrno::KVM_EIO => "EIO",
            KvmErrno::KVM_EAGAIN => "EAGAIN",
            errno => errno.name(),
        };
        table.push((name, errno.code().into()));
    }
    table.push((
        "sizeof(struct kvm_clock_pairing)",
        kvm::KVM_CLOCK_PAIRING_SIZE as u64,
    ));
    table.push(("memcmp(KVM_SIGNATURE, \"KVMKVMKVM\\0\\0\", 12)", 0));
    cc.compare(prologue, &table);
    assert_eq!(kvm::KVM_SIGNATURE, b"KVMKVMKVM\0\0\0");
}

/// Runs the functions: the page's contents, the classification, and the registers of calls.
const BEHAVIOUR: &str = r#"
#include <stdio.h>
#include <string.h>
#include "para_abi.h"
PARA_ABI_DEFINE_STUB(stub);
extern void recorder(void);
para_abi_u64 seen[8];
__asm__(".text\nrecorder:\n"
    "movq %rax, seen(%rip)\nmovq %rbx, 8+seen(%rip)\nmovq %rcx, 16+seen(%rip)\n"
    "movq %rdx, 24+seen(%rip)\nmovq %rsi, 32+seen(%rip)\nmovq %rdi, 40+seen(%rip)\n"
    "movq %r8, 48+seen(%rip)\nmovq %r9, 56+seen(%rip)\nmovq $-1000, %rax\nret\n");
static struct kvm_vcpu_para_state page;
static void show(const char *what, const void *bytes, unsigned long length)
{
	const unsigned char *byte = (const unsigned char *)bytes;
	printf("%s", what);
	while (length--)
		printf(" %02x", *byte++);
	printf("\n");
}
int main(void)
{
	static const unsigned char bytes[] = { PARA_STUB_BYTES };
	const unsigned char *code = (const unsigned char *)(unsigned long)stub;
	show("macro", bytes, sizeof(bytes));
	show("stub", code, PARA_STUB_LEN);
	printf("aligned %lu\n", (unsigned long)stub % 4);
	para_abi_preset(&page, 0x1122334455667788);
	show("page", &page, PARA_STATE_PAYLOAD);
	printf("classes %d", para_abi_classify(&page, 0));
	page.host_version = 1;
	printf(" %d %d", para_abi_classify(&page, 0), para_abi_classify(&page, 1));
	page.ret = 0;
	printf(" %d\n", para_abi_classify(&page, 0));
	printf("halves %x %x\n", para_abi_low(0x9876543212345000), para_abi_high(0x9876543212345000));
	printf("unpatched %llx", (unsigned long long)para_abi_call(stub, 1, 2, 3, 4, 5, 6, 7));
	printf(" %llx\n", (unsigned long long)para_abi_call_kvm(stub, 1, 2, 3, 4, 5));
	printf("para %lld", (long long)para_abi_call(recorder, 1, 2, 3, 4, 5, 6, 7));
	printf(" %d %d %d %d %d %d %d\n", (int)seen[0], (int)seen[5], (int)seen[4], (int)seen[3],
	       (int)seen[2], (int)seen[6], (int)seen[7]);
	printf("kvm %lld", (long long)para_abi_call_kvm(recorder, 1, 2, 3, 4, 5));
	printf(" %d %d %d %d %d\n", (int)seen[0], (int)seen[1], (int)seen[2], (int)seen[3], (int)seen[4]);
	return 0;
}
"#;

/// A C++ kernel calls the stub by the unmangled name that the macro defines in assembly.
#[test]
fn r9_the_stub_links_in_cpp() {
    let Some(cc) = Cc::new("r9_the_stub_links_in_cpp") else {
        return;
    };
    let arguments = ["-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror"];
    if let Err(error) = cc.compile("int main() { return 0; }\n", &arguments) {
        return skip(cc.test, error.lines().next().unwrap_or_default());
    }
    let source = "#include <stdio.h>\n#include \"para_abi.h\"\n\
                  PARA_ABI_DEFINE_STUB(stub);\n\
                  int main()\n{\n\tprintf(\"%llx\\n\", \
                  (unsigned long long)para_abi_call(stub, 1, 2, 3, 4, 5, 6, 7));\n}\n";
    assert_eq!(cc.run(source, &arguments), "ffffffda\n");
}

#[test]
fn h14_the_headers_functions_do_what_the_rust_side_does() {
    let Some(cc) = Cc::new("h14_the_headers_functions_do_what_the_rust_side_does") else {
        return;
    };
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!(" {byte:02x}"))
            .collect::<String>()
    };
    let payload = para_abi::ParaStatePayload::new(0x1122_3344_5566_7788);
    let host = para_abi::ParaStatePayload {
        host_version: 1,
        ..payload
    };
    let registered = para_abi::ParaStatePayload { ret: 0, ..host };
    let class = |wrmsr, page| match Registration::classify(wrmsr, page) {
        Registration::Registered { .. } => 0,
        Registration::Refused { .. } => 1,
        Registration::Fault => 2,
        Registration::Swallowed => 3,
    };
    let expected = [
        format!("macro{}", hex(&para_abi::STUB_UNPATCHED)),
        format!("stub{}", hex(&para_abi::STUB_UNPATCHED)),
        "aligned 0".to_owned(),
        format!("page{}", hex(&payload.to_bytes())),
        format!(
            "classes {} {} {} {}",
            class(Ok(()), payload),
            class(Ok(()), host),
            class(Err(para_abi::GpFault), host),
            class(Ok(()), registered)
        ),
        "halves 12345000 98765432".to_owned(),
        "unpatched ffffffda ffffffda".to_owned(),
        "para -1000 1 2 3 4 5 6 7".to_owned(),
        "kvm -1000 1 2 3 4 5".to_owned(),
    ];
    for optimization in ["-O0", "-O2"] {
        let output = cc.run(
            BEHAVIOUR,
            &[optimization, "-std=gnu11", "-Wall", "-Wextra", "-Werror"],
        );
        assert_eq!(
            output.lines().collect::<Vec<_>>(),
            expected,
            "{optimization}"
        );
    }
}
