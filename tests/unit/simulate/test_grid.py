from pathlib import Path

import numpy as np
import pytest

from cachefs.errors import UsageError
from cachefs.simulate import grid
from cachefs.simulate.accesses import Requests
from cachefs.simulate.picture import draw


def requests() -> Requests:
    rng = np.random.default_rng(7)
    offset = rng.zipf(1.3, 3_000) % 500 * 65_536
    return Requests("zipf", offset, np.full(3_000, 4096), np.zeros(3_000))


def test_lru_is_no_gap_closed_and_min_all_of_it() -> None:
    runs = grid.plan([65_536], [grid.parse_cache_size("10%")], ["s3fifo"])
    results = grid.run_all(requests(), runs, 1)
    assert [r.run.policy for r in results] == ["lru", "s3fifo", "min"]
    lru, s3fifo, best = grid.gaps(results)
    assert (lru, best) == (0, 100)
    assert 0 < s3fifo < 100
    assert results[2].outcome.misses <= min(r.outcome.misses for r in results)


def test_several_processes_find_the_same_in_the_same_order() -> None:
    runs = grid.plan([65_536, 131_072], [grid.parse_cache_size("64KiB")], ["2q"])
    seen: list[int] = []
    one = grid.run_all(requests(), runs, 1, lambda done, _: seen.append(done))
    two = grid.run_all(requests(), runs, 2)
    assert [(r.run, r.slots, r.outcome) for r in one] == [(r.run, r.slots, r.outcome) for r in two]
    assert seen[-1] == len(runs)


@pytest.mark.parametrize("text", ["0%", "101%", "x%", "nan%", "many"])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        grid.parse_cache_size(text)


def test_a_policy_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there are lru"):
        grid.plan([65_536], [], ["best"])


def test_a_picture(tmp_path: Path) -> None:
    sizes = [grid.parse_cache_size(text) for text in ("5%", "20%")]
    results = grid.run_all(requests(), grid.plan([65_536], sizes, ["2q"]), 1)
    draw("zipf", results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"cachefs\[pictures\]"):
        draw("zipf", [], tmp_path / "curves.png")
