# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""firecracker-python: its managers of processes and machines, without the docker that its `MicroVM` asks first."""

import os
import sys
import time
from pathlib import Path

from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

VM = "0badcafe"

place = Path(sys.argv[1])
machines = VMMManager()
processes = machines._process
processes._config.binary_path = str(place / "bin" / "firecracker")
own = Path(processes._config.data_path, VM)
own.mkdir(parents=True)
socket = own / "firecracker.socket"
log = own / "log"
processes.start(VM, ["--api-sock", str(socket), "--id", VM, "--log-path", str(log)])

api = machines.get_api(VM)
assert api.describe.get().json()["id"] == VM
assert machines.get_vmm_state(VM) == "Not started"
api.boot.put(kernel_image_path=str(place / "kernel"), boot_args="console=ttyS0 reboot=k panic=1")
api.drive.put(
    drive_id="rootfs",
    path_on_host=str(place / "disk"),
    is_root_device=True,
    is_read_only=False,
)
api.machine_config.put(vcpu_count=1, mem_size_mib=128)
machines._network.create_tap(f"tap_{VM}", gateway_ip="172.16.0.1")
api.network.put(iface_id="eth0", host_dev_name=f"tap_{VM}")
api.mmds_config.put(
    version="V2", ipv4_address="169.254.169.254", network_interfaces=["eth0"]
)
metadata = {"latest": {"meta-data": {"instance-id": VM}}}
api.mmds.put(**metadata)
api.actions.put(action_type="InstanceStart")

# It finds the process by its name, and the machine by the process.
pid, started = processes.get_pid(VM)
assert processes.get_pids() == [pid]
machines.create_vmm_json_file(id=VM, Pid=pid, CreatedAt=started)
assert [machine["id"] for machine in machines.list_vmm()] == [VM]
assert machines.get_vmm_config(VM)["machine-config"]["mem_size_mib"] == 128
while "Up" not in (own / "firecracker.log").read_text():
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    time.sleep(0.01)
assert api.mmds.get().json() == metadata

machines.update_vmm_state(VM, "Paused")
assert machines.get_vmm_state(VM) == "Paused"
machines.update_vmm_state(VM, "Resumed")
assert machines.get_vmm_state(VM) == "Running"
api.actions.put(action_type="SendCtrlAltDel")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not socket.exists()
assert processes.stop(VM)
assert ProcessManager().get_pids() == []
