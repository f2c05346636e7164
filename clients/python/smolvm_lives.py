# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""smolvm: its manager makes a tap and rules of nftables, and looks for `firecracker` on the PATH."""

import sys
import time
from pathlib import Path

from smolvm.api import FirecrackerClient
from smolvm.types import VMConfig, VMState
from smolvm.vm import SmolVMManager

place = Path(sys.argv[1])
manager = SmolVMManager(data_dir=place / "data", socket_dir=place, backend="firecracker")
config = VMConfig(
    vcpu_count=1,
    memory=128,
    kernel_path=place / "kernel",
    rootfs_path=place / "disk",
    disk_mode="shared",
    boot_args="console=ttyS0 reboot=k panic=1 pci=off",
)
vm_id = manager.create(config).vm_id
info = manager.start(vm_id)
assert info.status == VMState.RUNNING, info
process = manager._process_handles[info.pid]
while "Up" not in (place / "data" / f"{vm_id}.log").read_text():
    assert process.poll() is None
    time.sleep(0.01)


def state():
    return FirecrackerClient(info.control_socket_path).get_instance_info()["state"]


assert state() == "Running"
assert FirecrackerClient(info.control_socket_path)._request("GET", "/vm/config")["vsock"]
manager.pause(vm_id)
assert state() == "Paused"
manager.resume(vm_id)
assert state() == "Running"
# The power button. After a limit, it kills. Only a machine that hangs takes that long.
assert manager.stop(vm_id, timeout=300).status == VMState.STOPPED
assert process.wait() == 0, process.returncode
assert not info.control_socket_path.exists()
manager.delete(vm_id)
