"""A small daemon for the tests: a few files of known bytes, and ways to misbehave.

Run by the supervisor; `--mode` says how it misbehaves, `--notes` names a file for what it sees.
"""

import argparse
import errno
import json
import os
import random
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio

from cachefs.fuse.reads import Reads
from cachefs.fuse.replies import Replies
from cachefs.tiers.board import Board
from mount_helper._lane import HOLD_ERROR

FILES = {2: (b"data", 8 << 20), 3: (b"small", 100)}
PATTERN_BYTES = 1 << 20
PATTERN = random.Random(7).randbytes(PATTERN_BYTES + 251)


def expected(inode: int, offset: int, size: int) -> bytes:
    """The bytes of a file: a pattern that differs at every MiB."""
    end = min(offset + size, FILES[inode][1])
    pieces = []
    while offset < end:
        number, within = divmod(offset, PATTERN_BYTES)
        length = min(end - offset, PATTERN_BYTES - within)
        start = within + number % 251
        pieces.append(PATTERN[start : start + length])
        offset += length
    return b"".join(pieces)


class Tiny(pyfuse3.Operations):
    def __init__(self, mode: str, value: float, *, is_fresh: bool) -> None:
        super().__init__()
        self.is_fresh = is_fresh
        self.mode = mode
        self.value = value
        self.channel: socket.socket | None = None
        """Of reads."""
        self.started_s = time.monotonic()

    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        if inode != pyfuse3.ROOT_INODE and inode not in FILES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        is_root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o444)
        entry.st_size = 0 if is_root else FILES[inode][1]
        entry.st_nlink = 1
        entry.attr_timeout = 3600
        entry.entry_timeout = 0 if self.mode == "notify" else 3600
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if self.mode == "slow-lookup":
            await trio.sleep(self.value)
        if self.mode == "notify":
            # The kernel holds the folder's lock for this lookup, and wants it for the notification.
            pyfuse3.invalidate_entry_async(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(name))
            pyfuse3.invalidate_entry(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(name))
            await trio.sleep(0.001)
        for inode, (known, _) in FILES.items():
            if name == known:
                return await self.getattr(inode)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for inode, (name, _) in FILES.items():
            entry = await self.getattr(inode)
            if inode > start_id and not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), entry, inode
            ):
                break

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if self.mode == "slow":
            await trio.sleep(self.value)
        if self.mode == "dies-at-reads":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode.endswith("holds") and time.monotonic() < self.started_s + self.value:
            raise pyfuse3.FUSEError(HOLD_ERROR)
        if self.mode in {"hang", "hang-held"}:
            await trio.sleep_forever()
        if self.mode == "dies-after":
            self.value -= 1
            if self.value <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "reads-late":
            await trio.sleep(self.value)
        if self.mode == "reads-babbles" and self.channel:
            self.channel.send(b"no unique")
        if self.mode == "reads-fail":
            raise pyfuse3.FUSEError(errno.EBADMSG)
        return expected(fh, off, size)


class DiesBetween(Replies):
    """Dies after its answer to the kernel, before its word to the lane."""

    def __init__(self, answers: float) -> None:
        super().__init__()
        self.left = answers

    def answer(self, data: bytes | memoryview, unique: int, device: int) -> None:
        super().answer(data, unique, device)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def reads_of(operations: Tiny) -> tuple[Replies, Reads]:
    mode, value = operations.mode, operations.value
    replies = DiesBetween(value) if mode == "reads-dies-between" else Replies()

    def read_hit(inode: int, offset: int, size: int) -> memoryview | None:
        return memoryview(expected(inode, offset, size)) if mode == "reads-hits" else None

    return replies, Reads(replies, read_hit, operations.read)


async def serve(control: socket.socket, operations: Tiny) -> None:
    """Serve until the supervisor says stop, or is gone."""
    replies, reads = reads_of(operations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main, 4)
        while True:
            await trio.lowlevel.wait_readable(control)
            data, fds, _, _ = socket.recv_fds(control, 65536, 16)
            if not data or json.loads(data).get("command") == "stop":
                break
            replies.devices = fds[1:]
            channel = socket.socket(fileno=fds[0])
            operations.channel = channel if operations.is_fresh else None
            if operations.mode == "reads-strange":
                # Not those of the first requests: one of these would count as answered.
                uniques = range(1 << 40, (1 << 40) + 1000)
                channel.send(b"".join(unique.to_bytes(8, "little") for unique in uniques))
            nursery.start_soon(reads.run, channel)
        pyfuse3.terminate()
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="serve")
    parser.add_argument("--value", type=float, default=0)
    parser.add_argument("--notes", default=os.devnull)
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--supervisor-fd", type=int, required=True)
    parser.add_argument("--board-fd", type=int, required=True)
    parser.add_argument("--start", choices=["fresh", "restart"], required=True)
    parser.add_argument("--wary", action="store_true")
    parser.add_argument("--run-dir", required=True)
    options = parser.parse_args(arguments)
    with open(options.notes, "a", encoding="utf-8") as notes:
        notes.write(f"{os.getpid()} {options.start}\n")
    control = socket.socket(fileno=options.supervisor_fd)
    if options.mode == "refuses":
        text = {"event": "failed", "message": "the store is not there; look", "exit_code": 42}
        control.send(json.dumps(text).encode())
        return 42
    if options.mode == "exits":
        return 7
    if options.mode == "never-ready":
        time.sleep(3600)
    if options.mode in {"dies-at-restart", "hang-held"} and options.start == "restart":
        return 9
    if options.mode == "hang-held":
        Board(options.board_fd, lambda *_: None, serves_hits=False).place(
            2, 8 << 20, 4096, holds=True
        )
    operations = Tiny(options.mode, options.value, is_fresh=options.start == "fresh")
    pyfuse3.init(operations, f"/dev/fd/{options.fuse_fd}", set())
    if options.mode == "dies-before-init" and options.start == "fresh":
        control.send(b'{"event": "ready"}')
        os.kill(os.getpid(), signal.SIGKILL)
    control.send(json.dumps({"event": "ready", "reads": options.mode.startswith("reads")}).encode())
    try:
        trio.run(serve, control, operations)
    finally:
        pyfuse3.close(unmount=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
