"""Run the extension module that was built with a sanitizer: the board, and the lane on a socket.

`extension_run.py MODULE`; another process sets what the sanitizer needs (test_lane_extension.py).
"""

import importlib.util
import os
import socket
import struct
import sys
import tempfile

READ = 15


def load(path: str) -> None:
    spec = importlib.util.spec_from_file_location("mount_helper._lane", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mount_helper._lane"] = module
    spec.loader.exec_module(module)


def read_request(unique: int, inode: int, offset: int, size: int) -> bytes:
    header = struct.pack("=IIQQIIII", 80, READ, unique, inode, 0, 0, os.getpid(), 0)
    return header + struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def main() -> None:
    load(sys.argv[1])
    from mount_helper import _lane, board  # noqa: PLC0415

    board_fd = board.create()
    daemon = _lane.Board(board_fd)
    first = daemon.bucket(2)
    other = next(inode for inode in range(3, 10**6) if daemon.bucket(inode) == first)
    kernel, fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.settimeout(20)
    lane = _lane.Lane(fuse.detach(), board_fd, threads=2, request_deadline_s=0.2)
    lane.start()
    chunk_id = bytes(range(32))
    with tempfile.TemporaryFile(dir="/var/tmp") as segment:
        segment.write(b"x" * 4096)
        segment.flush()
        status = os.fstat(segment.fileno())
        daemon.own_segment(0, status.st_dev, status.st_ino)
        daemon.set_image(first, 2, 8192, 12, 0, 4096)
        assert not daemon.publish(2, 0, chunk_id, 0)  # the lane does not have the file
        lane.set_segment(0, segment.fileno())
        lane.set_segment(0, segment.fileno())
        assert daemon.publish(2, 0, chunk_id, 0)
        assert daemon.publish(2, 0, chunk_id, 0)
        assert not daemon.publish(2, 0, chunk_id[::-1], 0)
        assert daemon.publish_zero(2, 1)
        kernel.send(read_request(2, 2, 4000, 200))
        assert kernel.recv(1 << 20) == struct.pack("=IiQ", 216, 0, 2) + b"x" * 96 + bytes(104)
        # A daemon died after it had unset an image, and before it cleared the table.
        daemon.set_image(first + 1, other, 8192, 12, 0, 4096)
        kernel.send(read_request(4, other, 0, 100))
        assert kernel.recv(1 << 20) == struct.pack("=IiQ", 16, -5, 4)  # the deadline: no daemon
        daemon.empty_class(0, b"")
        assert not daemon.holds(0)
    records, slots = daemon.drain(100)
    assert len(records) == 2 * _lane.BOARD_LAYOUT["access_bytes"]
    assert len(slots) % 4 == 0
    for image in daemon.images():
        daemon.unset_image(image[0])
    daemon.forget_pages()
    statistics = lane.statistics()
    assert (statistics["kept"], statistics["reads"]["hits"]) == (0, 1)
    lane.close()
    kernel.close()
    print("all is well")


if __name__ == "__main__":
    main()
