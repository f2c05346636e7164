# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""microheart: a config file beside the API, and devices on PCI. It takes the program and the kernel from its cache, and
waits for SSH, which the test answers for the guest."""

import os
import shutil
import sys
import time
from pathlib import Path

place = Path(sys.argv[1])
os.environ["MICROHEART_HOME"] = str(place / "cache")

from microheart import api, assets
from microheart.vm import MicroVM

shutil.copy(place / "bin" / "firecracker", assets.cache_dir())
shutil.copy(place / "kernel", assets.cache_dir() / "vmlinux-0")
vm = MicroVM("lives", rootfs=place / "disk", key=place / "disk", mem_mib=128)
vm.start()
pid = vm.pid()
while "Up" not in vm.tail():
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    time.sleep(0.01)


def state():
    return api.request(vm.sock, "GET", "/")["state"]


assert vm.machine_config()["mem_size_mib"] == 128
assert state() == "Running"
api.request(vm.sock, "PATCH", "/vm", {"state": "Paused"})
assert state() == "Paused"
api.request(vm.sock, "PATCH", "/vm", {"state": "Resumed"})
assert state() == "Running"
# Its own stop restarts the guest by SSH.
api.request(vm.sock, "PUT", "/actions", {"action_type": "SendCtrlAltDel"})
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not Path(vm.sock).exists()
vm.clean()
