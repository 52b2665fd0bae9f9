"""How long to wait before the next daemon is started. Pure: no clock."""

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
# One that got ready can serve: its readers should not wait for seconds.
LONGEST_WAIT_ONCE_READY_S = 0.1
LONG_LIFE_S = 10.0  # a daemon that lived as long died of something else than its start


class Backoff:
    """Waits that double while daemons die young: 0, 0.1, 0.2 ... 10 s."""

    def __init__(self) -> None:
        self._wait_s = 0.0

    def next_wait_s(self, lived_s: float) -> float:
        """Return the wait before the next start.

        Args:
            lived_s: How long the daemon that has just died had been ready; 0 if it never was.
        """
        limit_s = LONGEST_WAIT_ONCE_READY_S if lived_s > 0 else LONGEST_WAIT_S
        wait_s = 0.0 if lived_s >= LONG_LIFE_S else min(self._wait_s, limit_s)
        self._wait_s = max(FIRST_WAIT_S, wait_s * 2)
        return wait_s
