# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""bandsox: it reads the console from the process's standard output, and makes a tap with sudo."""

import sys
import threading
from pathlib import Path

from bandsox.vm import MicroVM

place = Path(sys.argv[1])
socket = place / "bandsox.sock"
vm = MicroVM("0badcafe", str(socket), firecracker_bin=str(place / "bin" / "firecracker"))
vm.start_process()
process = vm.process
up = threading.Event()
vm.multiplexer.add_callback(lambda line: up.set() if "Up" in line else None)


def state():
    return vm.client._request("GET", "/").json()["state"]


assert state() == "Not started"
vm.configure(str(place / "kernel"), str(place / "disk"), 1, 128, enable_vsock=False)
# It would go on without this.
entropy = vm.client._request("GET", "/vm/config").json()["entropy"]
assert entropy["rate_limiter"]["bandwidth"]["size"] == 1048576, entropy
vm.start()
while not up.wait(0.01):
    assert process.poll() is None
assert state() == "Running"
vm.pause()
assert state() == "Paused"
vm.resume()
assert state() == "Running"
# It has no word for this: its own stop kills.
vm.client._request("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
assert process.wait() == 0, process.returncode
vm.stop()
assert not socket.exists()
