"""fio as a judge: files whose every block says what it is, and reads that check that."""

import json
import signal
import subprocess
from pathlib import Path

FIO_WAIT_S = 120.0


def write_pattern(path: Path, size_bytes: int) -> Path:
    """Write a file of 4 KiB blocks with a checksum and their own offset in each; returns `path`."""
    options = ["--name=pattern", f"--filename={path}", f"--size={size_bytes}", "--rw=write"]
    options += ["--bs=4k", "--verify=crc32c", "--do_verify=0", "--verify_state_save=0"]
    subprocess.run(["fio", *options], check=True, capture_output=True, timeout=FIO_WAIT_S)
    return path


class Fio:
    """A running fio that reads at random places of a pattern file and checks every block.

    One pass reads every block once: whatever else it is told, fio ends a checked read with that.
    """

    def __init__(
        self, path: Path, engine: str = "libaio", depth: int = 16, *options: str, passes: int = 1
    ) -> None:
        command = ["fio", "--output-format=json", f"--filename={path}"]
        command += ["--readonly", "--rw=randread", "--verify=crc32c", "--verify_fatal=1"]
        command += ["--verify_interval=4k", "--verify_state_load=0", "--verify_state_save=0"]
        command += [f"--ioengine={engine}", f"--iodepth={depth}", "--direct=1", "--bs=16k"]
        self.process = subprocess.Popen(
            [*command, *options, "--stonewall", *(f"--name=pass-{n}" for n in range(passes))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self.longest_s = 0.0
        """The slowest read, once there is a result."""

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """End an endless run; returns how many reads it made, all of them right."""
        assert self.is_running(), self.process.communicate()
        self.process.send_signal(signal.SIGINT)
        return self.result()

    def result(self) -> int:
        """Wait for its end; returns how many reads it made, all of them right."""
        try:
            output, errors = self.process.communicate(timeout=FIO_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert "verify" not in errors, errors
        jobs = json.loads(output[output.index("{\n") :])["jobs"]
        assert [job["error"] for job in jobs] == [0] * len(jobs), output + errors
        self.longest_s = max(job["read"]["clat_ns"]["max"] for job in jobs) / 1e9
        return sum(int(job["read"]["total_ios"]) for job in jobs)

    def end(self) -> None:
        """Leave no process, whatever happened."""
        if self.is_running():
            self.process.kill()
        self.process.communicate(timeout=FIO_WAIT_S)
