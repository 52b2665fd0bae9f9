import errno

import lmdb
import pyfuse3
import pytest
import trio

from cachefs.errors import ObjectMissingError, StoreUnavailableError
from cachefs.fuse import boundary
from cachefs.fuse.boundary import handler


@pytest.fixture
def clock_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [1000.0]
    monkeypatch.setattr("cachefs.fuse.boundary.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(boundary, "_last_log_s", 0.0)
    monkeypatch.setattr(boundary, "_silent", 0)
    return now_s


@handler
async def read(error: BaseException | None) -> str:
    if error is not None:
        raise error
    return "bytes"


async def errno_of(error: BaseException) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await read(error)
    return int(caught.value.errno)


async def test_results_and_errors_of_fuse_pass(clock_s: list[float]) -> None:
    assert await read(None) == "bytes"
    assert await errno_of(pyfuse3.FUSEError(errno.EROFS)) == errno.EROFS
    assert read.__name__ == "read"


async def test_a_cancelled_handler_is_cancelled() -> None:
    @handler
    async def wait() -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.01) as scope:
        await wait()
    assert scope.cancelled_caught


async def test_what_the_store_lacks_is_an_error_of_input(clock_s: list[float]) -> None:
    assert await errno_of(ObjectMissingError("no pack")) == errno.EIO


async def test_thousands_of_failures_are_a_line_a_second(
    clock_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        await errno_of(StoreUnavailableError("the store is away"))
    assert caplog.messages == ["read: the store is away"]
    clock_s[0] += 1.5
    await errno_of(trio.TooSlowError())
    assert caplog.messages[1] == "read: the store did not answer in time (and 999 more failures)"


async def test_a_fault_of_ours_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await errno_of(ZeroDivisionError("oh")) == errno.EIO
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.getMessage() == "read failed"


async def test_an_index_that_is_gone_for_good_is_no_answer() -> None:
    """The daemon is about to end; what it has not answered the next one will."""
    with trio.move_on_after(0.05) as scope:
        await read(lmdb.PanicError("environment had fatal error"))
    assert scope.cancelled_caught
