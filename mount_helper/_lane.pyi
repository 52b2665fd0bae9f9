from typing import TypedDict, final

EVENT_INIT_ANSWERED: int
EVENT_DAEMON_LOST: int
EVENT_UNMOUNTED: int
ARENA_LAYOUT: tuple[str, int, int, int, int, int, int, int]

class LaneStatistics(TypedDict):
    requests: int
    replies: int
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
    answered_killed: int
    answered_outage: int
    answered_late: int
    throttled: int
    kept: int
    kept_bytes: int
    attached: int
    notification_bytes: int
    requests_by_opcode: dict[str, int]

@final
class Lane:
    def __new__(
        cls,
        fuse_fd: int,
        *,
        max_read_bytes: int = 131072,
        max_background: int = 0,
        kept_limit_bytes: int = 67108864,
        request_deadline_s: float = 0,
        answer_deadline_s: float = 0,
    ) -> Lane: ...
    @property
    def event_fd(self) -> int: ...
    def start(self) -> None: ...
    def attach(self, daemon_fd: int, arena_fd: int = -1, /) -> None: ...
    def detach(self) -> None: ...
    def events(self) -> int: ...
    def statistics(self) -> LaneStatistics: ...
    def close(self) -> None: ...
