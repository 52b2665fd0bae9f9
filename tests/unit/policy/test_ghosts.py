from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.policy.evict import ghosts as module
from cachefs.policy.evict.ghosts import Ghosts

KEYS = st.integers(0, 40) | st.sampled_from([2**64 - 1, 2**63, 2**32])
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "discard", "trim"]), KEYS), max_size=300
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([1, 4, 64]))
def test_it_is_an_ordered_set(steps: list[tuple[str, int]], least: int) -> None:
    ghosts, model = Ghosts(), OrderedDict[int, None]()
    ghosts._reset(least)
    for verb, key in steps:
        if verb == "add":
            ghosts.add(key)
            if key:
                model.pop(key, None)
                model[key] = None
        elif verb == "discard":
            assert ghosts.discard(key) == (key in model)
            model.pop(key, None)
        else:
            ghosts.trim(key % 20)
            while len(model) > key % 20:
                model.popitem(last=False)
        assert len(ghosts) == len(model)
    for key in range(41):
        assert (key in ghosts) == (key in model)


def test_keys_that_meet_at_the_end_of_the_table_are_found() -> None:
    ghosts = Ghosts()
    size = len(ghosts._table)
    meeting = [key for key in range(1, 40_000) if ghosts._start(key) >= size - 2][:60]
    for key in meeting:
        ghosts.add(key)
    ghosts._rebuild()
    assert all(key in ghosts for key in meeting)
    for key in meeting[::2]:
        assert ghosts.discard(key)
    assert [key for key in meeting if key in ghosts] == meeting[1::2]


def test_its_memory_is_bounded_by_what_it_holds() -> None:
    ghosts = Ghosts()
    for key in range(1, 200_000):
        ghosts.add(key)
        ghosts.trim(1_000)
    assert len(ghosts._ring) <= 4 * 1_000
    assert len(ghosts._table) == 4 * len(ghosts._ring)
    assert module._LEAST == 64
