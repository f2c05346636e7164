# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""firecracker-python: its requests for a snapshot, and for a machine from it that has another tap."""

import os
import sys
import time
from pathlib import Path

from firecracker.vmm import VMMManager

place = Path(sys.argv[1])
machines = VMMManager()
processes = machines._process
processes._config.binary_path = str(place / "bin" / "firecracker")
STATE, MEMORY = str(place / "state"), str(place / "memory")


def process(vm_id):
    """A new process without a machine: its number, its requests and its console."""
    own = Path(processes._config.data_path, vm_id)
    own.mkdir(parents=True)
    socket = str(own / "firecracker.socket")
    processes.start(vm_id, ["--api-sock", socket, "--id", vm_id, "--log-path", str(own / "log")])
    machines._network.create_tap(f"tap_{vm_id}", gateway_ip="172.16.0.1")
    return processes.get_pid(vm_id)[0], machines.get_api(vm_id), own / "firecracker.log"


def is_running(pid):
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


pid, api, console = process("first")
api.boot.put(kernel_image_path=str(place / "kernel"), boot_args="console=ttyS0 reboot=k panic=1")
api.machine_config.put(vcpu_count=1, mem_size_mib=128)
api.network.put(iface_id="eth0", host_dev_name="tap_first")
api.actions.put(action_type="InstanceStart")
while "Up" not in console.read_text():
    assert is_running(pid)
    time.sleep(0.01)
machines.update_vmm_state("first", "Paused")
api.create_snapshot.put(mem_file_path=MEMORY, snapshot_path=STATE)
machines.update_vmm_state("first", "Resumed")

# The first machine still has its tap.
pid_of_second, api_of_second, console_of_second = process("second")
api_of_second.load_snapshot.put(
    enable_diff_snapshots=True,
    mem_backend={"backend_type": "File", "backend_path": MEMORY},
    snapshot_path=STATE,
    resume_vm=True,
    network_overrides=[{"iface_id": "eth0", "host_dev_name": "tap_second"}],
)
assert machines.get_vmm_state("second") == "Running"
networks = api_of_second.vm_config.get().json()["network-interfaces"]
assert [network["host_dev_name"] for network in networks] == ["tap_second"], networks
for pid, api in [(pid_of_second, api_of_second), (pid, api)]:
    assert is_running(pid)
    api.actions.put(action_type="SendCtrlAltDel")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert console.read_text() == "Up\nDown\n", console.read_text()
assert console_of_second.read_text() == "Down\n", console_of_second.read_text()
