"""A cache folder on a disk that fails when a test says so: real processes, a preloaded library."""

import mmap
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("faulty_disk.c")
_CONTROL = struct.Struct("=iii")


class FaultyDisk:
    """Faults of one folder; `environment` is for the processes that are to have them."""

    def __init__(self, folder: Path, work: Path) -> None:
        library, control = work / "faulty_disk.so", work / "faulty_disk.control"
        control.write_bytes(bytes(mmap.PAGESIZE))
        flags = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", library, _SOURCE, "-ldl"], check=True)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULTY_DISK_FOLDER": str(folder),
            "FAULTY_DISK_CONTROL": str(control),
        }
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _CONTROL.size)

    def fail(self, *, reads: int = 0, writes: int = 0, delay_s: float = 0) -> None:
        """From now on reads and writes fail with these errnos, after a delay; 0: they don't."""
        _CONTROL.pack_into(self._memory, 0, reads, writes, int(delay_s * 1000))

    def heal(self) -> None:
        """From now on all is well."""
        self.fail()

    def close(self) -> None:
        self.heal()
        self._memory.close()
