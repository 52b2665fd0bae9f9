"""The process of a fetcher, and the end of its daemon."""

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from cachefs.tiers.jobs import ProfileJob, encode
from tests.stores import new_store

WAIT_S = 30.0


def test_it_ends_quietly_with_a_daemon_that_has_not_read_its_answer(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    mine, its = socket.socketpair()
    arguments = [str(its.fileno()), str(os.getpid()), store.url, store.identity, "", "", "1"]
    with (
        its,
        subprocess.Popen(
            [sys.executable, "-m", "cachefs.tiers.fetcher_process", *arguments],
            pass_fds=[its.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        its.close()
        mine.sendall(encode(ProfileJob(1, "image")))
        assert select.select([mine], [], [], WAIT_S)[0]
        mine.close()
        _, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, said) == (0, "")
