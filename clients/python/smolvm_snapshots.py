# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""smolvm: its manager takes a snapshot with a copy of the disk, and restores the machine in a new process."""

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
    boot_args="console=ttyS0 reboot=k panic=1 pci=off",
)
vm_id = manager.create(config).vm_id
first = manager.start(vm_id)
console = place / "data" / f"{vm_id}.log"
while "Up" not in console.read_text():
    assert manager._process_handles[first.pid].poll() is None
    time.sleep(0.01)
snapshot = manager.create_snapshot(vm_id)
assert manager.get(vm_id).status == VMState.PAUSED
# It kills a machine that is paused.
assert manager.stop(vm_id).status == VMState.STOPPED

second = manager.restore_snapshot(snapshot.snapshot_id, resume_vm=True)
assert second.status == VMState.RUNNING and second.pid != first.pid, second
client = FirecrackerClient(second.control_socket_path)
assert client.get_instance_info()["state"] == "Running"
process = manager._process_handles[second.pid]
# After a limit, it kills. Only a machine that hangs takes that long.
assert manager.stop(vm_id, timeout=300).status == VMState.STOPPED
assert process.wait() == 0, process.returncode
# The log is new, and the guest went on: it did not start again.
assert console.read_text() == "Down\n", console.read_text()
manager.delete(vm_id)
manager.delete_snapshot(snapshot.snapshot_id)
