from typing import TypedDict, final

HOLD_ERROR: int
EVENT_INIT_ANSWERED: int
PASSED_READ_FORMAT: str
EVENT_DAEMON_LOST: int
EVENT_UNMOUNTED: int

class BoardLayout(TypedDict):
    board_bytes: int
    classes: int
    class_slots: int
    ways: int
    chunk_entry_bytes: int
    tables_bytes: int
    ring_records: int
    access_bytes: int
    access_fields: tuple[tuple[str, int, int], ...]
    """Name, offset and bytes of each."""

BOARD_LAYOUT: BoardLayout

class ReadStatistics(TypedDict):
    hits: int
    hit_bytes: int
    hit_chunks: int
    zero_chunks: int
    disk_reads: int
    passed_reads: int
    unknown_image: int
    unknown_chunk: int
    moved: int
    changed: int
    unreadable: int
    disk_busy: int
    accesses_dropped: int
    latencies: list[int]
    """Hits by latency: item b counts those of 2^b to 2^(b+1) ns."""

class LaneStatistics(TypedDict):
    requests: int
    replies: int
    replies_direct: int
    resent: int
    daemons_attached: int
    daemons_lost: int
    notifications: int
    notifications_dropped: int
    notifications_refused: int
    replies_unknown: int
    replies_malformed: int
    replies_oversize: int
    requests_oversize: int
    requests_deferred: int
    requests_malformed: int
    unanswerable_dropped: int
    kernel_gave_up: int
    write_errors: int
    interrupts: int
    given_back: int
    answered_killed: int
    answered_outage: int
    answered_late: int
    disk_direct: int
    disk_late: int
    throttled: int
    held: int
    kept: int
    kept_bytes: int
    attached: int
    notification_bytes: int
    readers: int
    readers_on_disk: int
    beats: int
    requests_by_opcode: dict[str, int]
    reads: ReadStatistics

@final
class Lane:
    def __new__(
        cls,
        fuse_fd: int,
        board_fd: int,
        *,
        threads: int = 2,
        max_read_bytes: int = 131072,
        max_background: int = 0,
        kept_limit_bytes: int = 67108864,
        request_deadline_s: float = 0,
        answer_deadline_s: float = 0,
        disk_patience_s: float = 1,
    ) -> Lane: ...
    @property
    def event_fd(self) -> int: ...
    @property
    def device_fds(self) -> list[int]: ...
    def start(self) -> None: ...
    def attach(self, daemon_fd: int, reads_fd: int = -1, /) -> None: ...
    def set_segment(self, number: int, fd: int, /) -> None: ...
    def detach(self) -> None: ...
    def events(self) -> int: ...
    def statistics(self) -> LaneStatistics: ...
    def close(self) -> None: ...

@final
class Board:
    def __new__(cls, fd: int, *, is_new: bool = False) -> Board: ...
    def publish(self, inode: int, index: int, chunk_id: bytes, slot: int, /) -> bool: ...
    def publish_zero(self, inode: int, index: int, /) -> bool: ...
    def empty(self, slot: int, /) -> None: ...
    def holds(self, slot: int, /) -> bool: ...
    def empty_class(self, number: int, keep: bytes, /) -> None: ...
    def own_segment(self, number: int, device: int, inode: int, /) -> None: ...
    def is_adopted(self, number: int, /) -> bool: ...
    def bucket(self, inode: int, /) -> int: ...
    def set_image(
        self,
        number: int,
        inode: int,
        size_bytes: int,
        chunk_shift: int,
        table_at: int,
        table_bytes: int,
        /,
    ) -> None: ...
    def hold_image(self, number: int, holds: int, /) -> None: ...
    def unset_image(self, number: int, /) -> None: ...
    def images(self) -> list[tuple[int, int, int, int, int, int]]: ...
    def generation(self, number: int, /) -> int: ...
    def drain(self, most: int, /) -> tuple[bytes, bytes]: ...
    def counters(self) -> ReadStatistics: ...
    def beat(self) -> None: ...
    def forget_pages(self) -> None: ...
