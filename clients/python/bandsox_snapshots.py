# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""bandsox: it takes a snapshot of a paused machine with a tap, and loads it in a new process."""

import sys
import threading
from pathlib import Path

from bandsox.vm import MicroVM

place = Path(sys.argv[1])
state, memory = str(place / "state"), str(place / "memory")


class Machine:
    """A process of bandsox, and the lines of its guest."""

    def __init__(self):
        program = str(place / "bin" / "firecracker")
        self.vm = MicroVM("0badcafe", str(place / "bandsox.sock"), firecracker_bin=program)
        self.vm.start_process()
        self.lines = []
        self.said = threading.Event()
        self.vm.multiplexer.add_callback(self.hear)

    def hear(self, line):
        self.lines.append(line.strip())
        self.said.set()


first = Machine()
first.vm.configure(str(place / "kernel"), str(place / "disk"), 1, 128, enable_vsock=False)
first.vm.start()
while not first.said.wait(0.01):
    assert first.vm.process.poll() is None
assert first.lines == ["Up"], first.lines
first.vm.pause()
first.vm.snapshot(state, memory)
# This kills.
first.vm.stop()

second = Machine()
second.vm.load_snapshot(state, memory)
second.vm.resume()
second.vm.client._request("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
assert second.vm.process.wait() == 0, second.vm.process.returncode
# Another thread reads the rest.
second.said.wait()
assert second.lines == ["Down"], second.lines
second.vm.stop()
