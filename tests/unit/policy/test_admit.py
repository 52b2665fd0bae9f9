import random

from cachefs.policy.admit import ScanFilter
from cachefs.units import KIB, MIB

FRAME = 32 * KIB
PACK_BYTES = 16 * MIB


def packs(count: int) -> list[bytes]:
    return [bytes([n]) * 32 for n in range(count)]


def scanned(scans: ScanFilter, pack: bytes, order: list[int] | None = None) -> list[bool]:
    numbers = order or list(range(PACK_BYTES // FRAME))
    return [scans.is_scan(pack, number * FRAME, FRAME) for number in numbers]


def test_a_long_run_is_a_scan_from_its_limit_on() -> None:
    found = scanned(ScanFilter(4 * MIB), packs(1)[0])
    kept = 4 * MIB // FRAME
    assert found == [False] * kept + [True] * (len(found) - kept)


def test_a_scan_goes_on_from_pack_to_pack() -> None:
    scans = ScanFilter(4 * MIB)
    scanned(scans, packs(2)[0])
    assert all(scanned(scans, packs(2)[1]))


def test_neighbours_out_of_order_and_holes_are_still_a_scan() -> None:
    """Two fetchers, readahead, and a third that is in L1 already."""
    order = [n for n in range(PACK_BYTES // FRAME) if n % 3]
    for at in range(0, len(order) - 8, 8):
        part = order[at : at + 8]
        random.Random(at).shuffle(part)
        order[at : at + 8] = part
    found = scanned(ScanFilter(4 * MIB), packs(1)[0], order)
    assert found.count(False) == 4 * MIB // FRAME


def test_random_reads_are_never_a_scan() -> None:
    scans, choice = ScanFilter(4 * MIB), random.Random(1)
    names = packs(200)
    for _ in range(20_000):
        offset = choice.randrange(PACK_BYTES // FRAME) * FRAME
        assert not scans.is_scan(choice.choice(names), offset, FRAME)


def test_a_start_of_a_guest_is_not_a_scan() -> None:
    """Short runs of 2 MiB here and there, some of them beside each other."""
    scans, choice = ScanFilter(32 * MIB), random.Random(2)
    for _ in range(2000):
        pack = choice.choice(packs(50))
        first = choice.randrange(PACK_BYTES // FRAME - 64)
        assert not any(scanned(scans, pack, list(range(first, first + 64))))


def test_no_limit_finds_none() -> None:
    assert not any(scanned(ScanFilter(0), packs(1)[0]))


def test_it_remembers_only_so_much() -> None:
    scans = ScanFilter(4 * MIB)
    for number in range(10_000):
        scans.is_scan(number.to_bytes(32, "little"), 5 * MIB, FRAME)
    assert len(scans._runs) <= 256
