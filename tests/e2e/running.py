"""A guest that runs beside us: its console, and qemu's own control (QMP)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.kernel import Kernel

MIB = 1024 * 1024
_LOOK_S = 0.01
_QMP_WAIT_S = 120.0


class Guest:
    """A running qemu; `memory`: the file of its memory, shared with it or a private copy."""

    def __init__(
        self,
        kernel: Kernel,
        overlay: Path,
        folder: Path,
        append: str = "",
        memory_mib: int = 512,
        memory: Path | None = None,
        more: Sequence[str] = (),
        *,
        is_memory_shared: bool = True,
    ) -> None:
        words = f"console=ttyS0 quiet panic=-1 systemd.show_status=false {append}"
        self._qmp_path = folder / "qmp"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", str(memory_mib)]
        command += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
        command += ["-nic", "none", "-kernel", str(kernel.vmlinuz)]
        command += ["-initrd", str(kernel.initramfs), "-append", words.strip()]
        command += ["-drive", f"file={overlay},format=qcow2,if=virtio,cache=none"]
        command += ["-qmp", f"unix:{self._qmp_path},server=on,wait=off"]
        if memory is not None:
            share = "on" if is_memory_shared else "off"
            size = f"size={memory_mib}M,mem-path={memory},share={share}"
            command += ["-object", f"memory-backend-file,id=ram,{size}"]
            command += ["-machine", "memory-backend=ram"]
        self._process = subprocess.Popen(
            [*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._console = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        while data := os.read(self._process.stdout.fileno(), 4096):
            self._console += data

    @property
    def console(self) -> str:
        """What the guest has said so far."""
        return self._console.decode(errors="replace")

    def wait_for(self, text: str, wait_s: float) -> None:
        """Wait until the guest has said something.

        Raises:
            RuntimeError: it did not in time, or qemu has ended.
        """
        end_s = time.monotonic() + wait_s
        while text not in self.console:
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the guest did not say {text!r}: {self.console[-2000:]}")
            time.sleep(_LOOK_S)

    def say(self, text: str) -> None:
        """Type on the guest's console, and forget what it has said so far."""
        assert self._process.stdin
        self._console = b""
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    @contextlib.contextmanager
    def control(self) -> Iterator[Qmp]:
        """Talk to qemu, once it listens."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_QMP_WAIT_S)
            self._connect(connection)
            yield Qmp(connection)

    def _connect(self, connection: socket.socket) -> None:
        end_s = time.monotonic() + _QMP_WAIT_S
        while True:
            try:
                connection.connect(str(self._qmp_path))
            except (FileNotFoundError, ConnectionRefusedError):  # it has just begun
                if self._process.poll() is not None or time.monotonic() > end_s:
                    raise
                time.sleep(_LOOK_S)
            else:
                return

    def close(self) -> None:
        """End it, as a power cut does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()


class Qmp:
    """One conversation with qemu."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._stream.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer to a command.

        Raises:
            RuntimeError: qemu refuses.
        """
        request = {"execute": command, "arguments": arguments}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._stream.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def save_state(self, state: Path) -> None:
        """Stop the guest and write its state, but for its memory, which is in a file already."""
        self._without_memory()
        self.ask("stop")
        self.ask("migrate", uri=f"exec:cat > {state}")
        self._wait_for_migration()

    def resume_state(self, state: Path) -> None:
        """Let a guest that was started with `-incoming defer` go on from a state."""
        self._without_memory()
        self.ask("migrate-incoming", uri=f"exec:cat {state}")
        self._wait_for_migration()
        self.ask("cont")

    def _without_memory(self) -> None:
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        self.ask("migrate-set-capabilities", capabilities=capabilities)

    def _wait_for_migration(self) -> None:
        end_s = time.monotonic() + _QMP_WAIT_S
        while (status := self.ask("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > end_s:
                raise RuntimeError(f"the state of the guest is {status}")
            time.sleep(_LOOK_S)
