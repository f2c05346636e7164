// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The nested virtualization part of a vCPU's state (KVM API, `KVM_GET_NESTED_STATE`).

use kvm_bindings::{
    KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_GIF_SET, kvm_nested_state,
    kvm_vmx_nested_state_hdr,
};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};

use super::{Result, call};

/// No guest-physical address.
const NOWHERE: u64 = u64::MAX;

/// Reads the state. Its header tells whether the guest is in VMX operation, and whether SVM's global interrupt flag is
/// set, so the header is saved even if nothing follows it.
pub(super) fn save(fd: &VcpuFd) -> Result<Box<KvmNestedStateBuffer>> {
    let mut buffer = Box::new(KvmNestedStateBuffer::empty());
    call("KVM_GET_NESTED_STATE", fd.nested_state(&mut buffer))?;
    Ok(buffer)
}

/// Takes the vCPU out of a nested guest and of VMX operation.
pub(super) fn leave(fd: &VcpuFd) -> Result<()> {
    let format = save(fd)?.format;
    call(
        "KVM_SET_NESTED_STATE",
        fd.set_nested_state(&outside(format)),
    )
}

/// The state of a vCPU that uses no virtualization: only a header. On AMD, GIF is 1 (APM, volume 2,
/// section 15.17), and KVM accepts nothing else while EFER.SVME is 0.
fn outside(format: u16) -> Box<KvmNestedStateBuffer> {
    let mut header = Box::new(KvmNestedStateBuffer::empty());
    header.size = size_of::<kvm_nested_state>() as u32;
    header.format = format;
    if u32::from(format) == KVM_STATE_NESTED_FORMAT_SVM {
        header.flags = KVM_STATE_NESTED_GIF_SET as u16;
    } else {
        header.hdr.vmx = kvm_vmx_nested_state_hdr {
            vmxon_pa: NOWHERE,
            vmcs12_pa: NOWHERE,
            ..Default::default()
        };
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_STATE_NESTED_FORMAT_VMX;

    #[test]
    fn the_empty_header_is_what_kvm_takes() {
        let svm = outside(KVM_STATE_NESTED_FORMAT_SVM as u16);
        assert_eq!((svm.flags, svm.format, svm.size), (0x100, 1, 128));
        let vmx = outside(KVM_STATE_NESTED_FORMAT_VMX as u16);
        assert_eq!((vmx.flags, vmx.format, vmx.size), (0, 0, 128));
        #[cfg(feature = "serde")]
        {
            let bytes = |state: &KvmNestedStateBuffer| -> Vec<u8> {
                serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
            };
            assert!(bytes(&svm)[8..].iter().all(|byte| *byte == 0));
            assert_eq!(bytes(&vmx)[8..24], [0xff; 16]);
            assert!(bytes(&vmx)[24..].iter().all(|byte| *byte == 0));
        }
    }
}
