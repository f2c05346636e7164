# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""bunkervm: its manager gives a config file with a vsock and a tap. It takes a snapshot of a machine that goes on, and
starts another one from it."""

import sys
from pathlib import Path

from bunkervm.config import BunkerVMConfig
from bunkervm.snapshot import FirecrackerAPIClient
from bunkervm.vm_manager import VMManager

place = Path(sys.argv[1])
config = BunkerVMConfig(
    vcpu_count=1,
    mem_size_mib=128,
    vsock_uds_path=str(place / "vsock"),
    firecracker_bin=str(place / "bin" / "firecracker"),
    kernel_path=str(place / "kernel"),
    rootfs_path=str(place / "disk"),
    rootfs_work_path=str(place / "work"),
    socket_path=str(place / "bunkervm.sock"),
)


def end(vm):
    """Presses the power button, as it does itself, but waits. Returns the rest of the console."""
    vm._process.terminate()
    assert vm._process.wait() == 0, vm._process.returncode
    text = vm._process.stdout.read().decode()
    vm.stop()
    return text


vm = VMManager(config)
vm.start()
assert vm._process.stdout.readline() == b"Up\n"
assert Path(config.vsock_uds_path).is_socket()
client = FirecrackerAPIClient(vm.api_socket_path)


def state():
    return client._request("GET", "/")["state"]


assert state() == "Running"
client.pause_vm()
assert state() == "Paused"
client.resume_vm()
assert state() == "Running"
assert vm.create_snapshot("snap").exists
assert state() == "Running"
assert end(vm) == "Down\n"

vm = VMManager(config)
vm.start_from_snapshot("snap")
assert end(vm) == "Down\n"
