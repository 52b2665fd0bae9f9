"""The images themselves: sound, alike each time, and as similar as versions are."""

from pathlib import Path

from tests.images.disks import MIB, build_ext4, build_two_versions, check_ext4, upgrade_ext4
from tests.images.fixtures import disk_image, disk_versions, memory_image
from tests.images.memory import PAGE_BYTES, build_memory
from tests.images.trees import copy_system_tree, upgrade_tree

__all__ = ["disk_image", "disk_versions", "memory_image"]


def chunks_of(image: Path, chunk_bytes: int) -> list[bytes]:
    content = image.read_bytes()
    return [content[place : place + chunk_bytes] for place in range(0, len(content), chunk_bytes)]


def test_both_versions_hold_a_sound_file_system(disk_versions: tuple[Path, Path]) -> None:
    for image in disk_versions:
        check_ext4(image)


def test_versions_share_most_chunks_but_not_all(disk_versions: tuple[Path, Path]) -> None:
    first, second = (chunks_of(image, 64 * 1024) for image in disk_versions)
    known = set(first)
    shared = sum(chunk in known for chunk in second) / len(second)
    assert 0.5 < shared < 0.99


def test_a_disk_has_files_and_zeros(disk_image: Path) -> None:
    chunks = chunks_of(disk_image, 64 * 1024)
    zeros = chunks.count(bytes(64 * 1024)) / len(chunks)
    assert 0.1 < zeros < 0.7


def test_the_same_tree_gives_the_same_files(tmp_path: Path) -> None:
    trees = [copy_system_tree(tmp_path / name, 4 * MIB) for name in ("a", "b")]
    files = [
        {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
        for tree in trees
    ]
    assert files[0] == files[1]
    assert 3 * MIB < sum(map(len, files[0].values())) < 5 * MIB


def test_an_upgrade_in_place_holds_what_the_tree_holds(tmp_path: Path) -> None:
    tree = copy_system_tree(tmp_path / "tree", 8 * MIB)
    image = build_ext4(tree, tmp_path / "disk.img", 16 * MIB)
    change = upgrade_tree(tree)
    assert change.changed
    upgrade_ext4(image, tree, change)
    check_ext4(image)
    # Whole first blocks of a changed file are somewhere in the image now.
    blocks = set(chunks_of(image, 4096))
    for path in change.changed:
        content = (tree / path).read_bytes()
        assert all(content[place : place + 4096] in blocks for place in range(0, 8192, 4096))


def test_memory_has_holes_zeros_and_repeated_pages(memory_image: Path) -> None:
    pages = chunks_of(memory_image, PAGE_BYTES)
    assert 0.3 < pages.count(bytes(PAGE_BYTES)) / len(pages) < 0.7
    assert len(set(pages)) < 0.6 * len(pages)
    assert memory_image.stat().st_blocks * 512 < 0.9 * memory_image.stat().st_size


def test_memory_is_alike_each_time_and_differs_by_seed(tmp_path: Path) -> None:
    contents = [
        build_memory(tmp_path / str(number), MIB, seed).read_bytes()
        for number, seed in enumerate((1, 1, 2))
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_two_versions_fit_any_folder(tmp_path: Path) -> None:
    first, second = build_two_versions(tmp_path, 16 * MIB)
    assert first.stat().st_size == second.stat().st_size == 16 * MIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.img", "v2.img"]
