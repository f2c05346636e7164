// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::env;

use super::*;

/// The error of [`open_kvm`] for `path`, which is no usable KVM.
fn refusal(path: &Path) -> Error {
    match open_kvm(path) {
        Ok(_) => panic!("{} is KVM", path.display()),
        Err(error) => error,
    }
}

fn os_error(path: &Path, errno: i32, virtualization: Option<Virtualization>) -> Error {
    open_error(path, io::Error::from_raw_os_error(errno), virtualization)
}

#[test]
fn missing_device_says_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kvm");
    assert!(matches!(refusal(&path), Error::Missing { .. }));

    let text = os_error(&path, libc::ENOENT, Some(Virtualization::Svm)).to_string();
    assert!(
        text.starts_with("there is no ") && text.ends_with("modprobe kvm_amd"),
        "{text}"
    );
    let text = os_error(&path, libc::ENOENT, None).to_string();
    assert!(text.contains("firmware"), "{text}");
}

#[test]
fn other_files_are_not_kvm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a device").unwrap();
    for path in [dir.path(), &file, Path::new("/dev/null")] {
        let error = refusal(path);
        assert!(matches!(error, Error::NotKvm { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/kvm"), "{error}");
    }
}

#[test]
fn path_with_nul_is_refused() {
    let error = refusal(Path::new("/dev/k\0vm"));
    assert!(
        matches!(
            error,
            Error::Open {
                hint: Hint::CheckPath,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn permission_names_the_group_that_has_it() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    let set_mode =
        |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let gid = fs::metadata(file.path()).unwrap().gid();
    let group = host::group_name(&groups, gid);

    set_mode(0o660);
    let expected = group.map_or_else(|| Hint::ChangeMode(file.path().to_owned()), Hint::JoinGroup);
    for errno in [libc::EACCES, libc::EPERM] {
        match os_error(file.path(), errno, None) {
            Error::Permission { hint, .. } => assert_eq!(hint, expected),
            other => panic!("{other:?}"),
        }
    }
    set_mode(0o600);
    let text = os_error(file.path(), libc::EACCES, None).to_string();
    assert!(
        text.starts_with("no permission") && text.contains("setfacl"),
        "{text}"
    );
    let text = Hint::JoinGroup("kvm".to_owned()).to_string();
    assert!(text.contains("usermod -aG kvm"), "{text}");
}

#[test]
fn device_without_a_module_and_busy_device() {
    let path = Path::new("/dev/kvm");
    let text = os_error(path, libc::ENXIO, Some(Virtualization::Vmx)).to_string();
    assert!(text.ends_with("modprobe kvm_intel"), "{text}");
    let text = os_error(path, libc::ENODEV, None).to_string();
    assert!(text.contains("firmware"), "{text}");
    let text = os_error(path, libc::EBUSY, None).to_string();
    assert!(
        text.ends_with("stop the other hypervisor that uses the CPU"),
        "{text}"
    );
    let text = os_error(path, libc::EMFILE, None).to_string();
    assert!(text.contains("check the path"), "{text}");
}

#[test]
fn missing_capability_and_version_name_the_way_out() {
    let capability = Capability {
        name: "KVM_CAP_IRQCHIP",
        purpose: "local APICs",
        required: true,
        value: 0,
    };
    let text = Error::Capability { capability }.to_string();
    assert!(
        text.contains("KVM_CAP_IRQCHIP (local APICs); use a host kernel"),
        "{text}"
    );
    let text = Error::ApiVersion {
        path: "/dev/kvm".into(),
        version: 10,
    }
    .to_string();
    assert!(text.contains("version 10 and 12 is needed"), "{text}");
}

#[test]
fn report_of_no_kvm_has_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let report = probe(&dir.path().join("kvm"));
    assert!(!report.ok());
    assert!(report.capabilities.is_empty() && report.guest_test.is_none());
    assert!(report.to_string().contains("no: there is no "), "{report}");
}

/// The host's KVM. Prints a SKIP line if it can't be used.
pub(crate) fn host_kvm(test: &str) -> Option<Kvm> {
    let no_kvm = env::var_os("MINI_VMM_NO_KVM").is_some_and(|value| value == "1");
    let reason = match open_kvm(Path::new("/dev/kvm")) {
        _ if no_kvm => "MINI_VMM_NO_KVM=1".to_owned(),
        Ok(kvm) => return Some(kvm),
        Err(error) => error.to_string(),
    };
    // One write, since tests run in parallel.
    let line = format!("SKIP: {test}: {reason}\n");
    eprint!("{line}");
    None
}

#[test]
fn kvm_agrees_with_the_guest_test() {
    if host_kvm("check::tests::kvm_agrees_with_the_guest_test").is_none() {
        return;
    }
    let report = probe(Path::new("/dev/kvm"));
    println!("{report}");
    assert_eq!(report.api_version, Some(API_VERSION));
    assert!(
        report
            .capabilities
            .iter()
            .all(|c| !c.required || c.value > 0)
    );
    // With hardware virtualization the guest passes. A software KVM may fail for a known reason.
    match report.guest_test.as_ref().unwrap() {
        GuestTest::Passed => assert!(report.ok()),
        GuestTest::NotRun { error } => panic!("{error}"),
        failed => {
            assert_eq!(report.cpu.virtualization, None, "{failed}");
            assert!(!report.ok());
        }
    }
}

#[test]
fn kvm_supports_a_cpuid_that_becomes_a_guests() {
    use crate::cpu::{cpuid, lapic, msrs};
    let Some(kvm) = host_kvm("check::tests::kvm_supports_a_cpuid_that_becomes_a_guests") else {
        return;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    let plan = cpuid::CpuPlan {
        cpus: 2,
        features: &[],
        nested: false,
        tsc_deadline_timer: kvm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer),
        tsc_khz: None,
    };
    let mut table = cpuid::build(&supported, &plan).unwrap();
    for id in 0..2 {
        cpuid::set_apic_id(&mut table, id);
        let vcpu = vm.create_vcpu(id.into()).unwrap();
        vcpu.set_cpuid2(&table).unwrap();
        let taken = vcpu.set_msrs(&msrs::boot_msrs()).unwrap();
        assert_eq!(taken, msrs::BOOT_MSR_COUNT);
        let mut state = vcpu.get_lapic().unwrap();
        lapic::wire(&mut state, false);
        vcpu.set_lapic(&state).unwrap();
    }
}
