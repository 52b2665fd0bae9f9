"""The protocols of the board are right in every interleaving; each mutation of them is not."""

import os

import pytest

from tests.model import disk, images, segments, slots
from tests.model.memory import Explorer

DEPTH = int(os.environ.get("MODEL_DEPTH", "1"))
"""`make model` looks deeper: more chunks one after the other, or more daemons that die."""

RUNS = [(chunks, deaths) for chunks in ("A", "BA") for deaths in range(DEPTH + 1)]
RUNS += [("BABA", deaths) for deaths in range(DEPTH) if DEPTH > 1]
"""Both at once would be 200,000 states a death, and then times twenty."""

CHUNKS = ("A", "B", "mixed")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("chunks", "deaths"), RUNS)
def test_a_slot_gives_the_chunk_or_nothing(chunk: str, chunks: str, deaths: int) -> None:
    explorer = slots.explorer(None, chunk, chunks, deaths)
    assert explorer.violation() is None
    is_possible = (chunk, (chunk, chunk)) in explorer.accepted
    assert is_possible == (chunk in "A" + chunks)  # not right because it always refuses
    assert explorer.states > 50


@pytest.mark.parametrize("chunk", ["A", "B"])
def test_a_chunk_that_is_there_can_be_filled_in_once_more(chunk: str) -> None:
    """Hints are published again and again, whatever the slot says meanwhile."""
    slot = slots.Slot()

    def daemon() -> slots.Steps:
        yield from slot.publish("A")
        yield from slot.replace("B")
        yield from slot.publish("B")
        yield from slot.publish("A")  # something else is there: nothing is said

    programs = {"daemon": daemon, "reader": slot.reader(chunk)}
    explorer = Explorer(slots.Slot.initial, programs, ["daemon", "reader"], slots.is_right)
    assert explorer.violation() is None
    assert (chunk, (chunk, chunk)) in explorer.accepted


@pytest.mark.parametrize("wrong", slots.Wrong)
def test_each_mutation_of_the_slots_protocol_is_found(wrong: slots.Wrong) -> None:
    """Also where a chunk comes back into its own slot at once: then it was emptied only once."""
    runs = [("A", "A"), ("A", "BA"), ("B", "BA")]
    assert any(slots.explorer(wrong, chunk, chunks, 1).violation() for chunk, chunks in runs)


def test_an_empty_slot_is_counted_only_for_the_sake_of_a_death() -> None:
    """As long as no daemon dies in the middle, that one would be right."""
    explorer = slots.explorer(slots.Wrong.NOT_COUNTED_IF_EMPTY, "A", "BA", 0)
    assert explorer.violation() is None


@pytest.mark.parametrize("image", ["old", "new"])
@pytest.mark.parametrize("deaths", range(DEPTH + 1))
def test_a_table_gives_the_images_own_chunks_or_nothing(image: str, deaths: int) -> None:
    explorer = images.explorer(None, image, deaths)
    assert explorer.violation() is None
    assert (image, (image, image)) in explorer.accepted


@pytest.mark.parametrize("wrong", images.Wrong)
def test_each_mutation_of_the_images_protocol_is_found(wrong: images.Wrong) -> None:
    found = [images.explorer(wrong, image, 1).violation() for image in ("old", "new")]
    assert any(found)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_segment_file_that_is_replaced(chunk: str) -> None:
    explorer = segments.explorer(None, chunk)
    assert explorer.violation() is None
    assert ((chunk, (chunk, chunk)) in explorer.accepted) == (chunk != "mixed")


@pytest.mark.parametrize("wrong", segments.Wrong)
def test_each_mutation_of_the_replacement_is_found(wrong: segments.Wrong) -> None:
    found = [segments.explorer(wrong, chunk).violation() for chunk in ("A", "B")]
    assert any(found)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("chunks", ["A", "B"])
def test_a_read_past_the_page_cache_gives_the_chunk_or_nothing(chunk: str, chunks: str) -> None:
    explorer = disk.explorer(None, chunk, chunks, DEPTH - 1)
    assert explorer.violation() is None
    assert ((chunk, (chunk, chunk)) in explorer.accepted) == (chunk in "A" + chunks)


@pytest.mark.parametrize("wrong", disk.Wrong)
def test_each_mutation_of_a_read_past_the_page_cache_is_found(wrong: disk.Wrong) -> None:
    runs = [("A", "A"), ("A", "B"), ("B", "B")]
    assert any(disk.explorer(wrong, chunk, chunks, 0).violation() for chunk, chunks in runs)
