import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import NotFoundError
from cachefs.model.image import Image, ImageVersion
from cachefs.vfs import ROOT_INODE, FileNode, FolderNode, Tree, Vfs, file_node


def version(
    number: int = 1, size_bytes: int = 8192, created: str = "2024-01-01T00:00:00+00:00"
) -> ImageVersion:
    return ImageVersion(number, f"{number:064x}", size_bytes, 4096, 8192, 100, created)


def image(name: str, *numbers: int) -> Image:
    return Image(name, tuple(version(number) for number in numbers or (1,)))


def shown(*names: str) -> Vfs:
    vfs = Vfs()
    vfs.show(Tree(image(name) for name in names))
    return vfs


def look_up(vfs: Vfs, path: str) -> FileNode | FolderNode:
    inode = ROOT_INODE
    node = vfs.node(inode)
    for name in path.split("/"):
        node = vfs.lookup(inode, name)
        inode = node.inode
    return node


def file_at(vfs: Vfs, path: str) -> FileNode:
    node = look_up(vfs, path)
    assert isinstance(node, FileNode)
    return node


def folder_names(vfs: Vfs, inode: int = ROOT_INODE) -> list[str]:
    return sorted(name for name, _ in vfs.entries(inode, 0))


def test_an_empty_store_is_an_empty_folder() -> None:
    vfs = Vfs()
    assert isinstance(vfs.node(ROOT_INODE), FolderNode)
    assert vfs.entries(ROOT_INODE, 0) == []
    assert (vfs.tree.image_bytes, vfs.tree.modified_ns) == (0, 0)


def test_parts_of_names_are_folders() -> None:
    vfs = shown("debian/12/root", "debian/12/boot", "debian/11", "plain")
    assert folder_names(vfs) == ["debian", "plain"]
    debian = look_up(vfs, "debian")
    assert isinstance(debian, FolderNode)
    assert folder_names(vfs, debian.inode) == ["11", "12"]
    assert file_at(vfs, "debian/12/root").name == "debian/12/root"
    assert vfs.tree.image_bytes == 4 * 8192
    assert len(vfs.tree.files()) == 4


def test_dots_lead_where_they_should() -> None:
    vfs = shown("a/b/c")
    a, b = look_up(vfs, "a"), look_up(vfs, "a/b")
    assert vfs.lookup(b.inode, ".") is b
    assert vfs.lookup(b.inode, "..") is a
    assert vfs.lookup(ROOT_INODE, "..").inode == ROOT_INODE


@pytest.mark.parametrize(("parent", "name"), [("", "nowhere"), ("a", "nowhere"), ("a/b", "c")])
def test_what_is_not_there_is_not_found(parent: str, name: str) -> None:
    vfs = shown("a/b")
    inode = look_up(vfs, parent).inode if parent else ROOT_INODE
    with pytest.raises(NotFoundError, match=name):
        vfs.lookup(inode, name)


def test_an_unknown_inode_is_not_found() -> None:
    vfs = shown("a")
    with pytest.raises(NotFoundError, match="12345"):
        vfs.node(12345)
    with pytest.raises(NotFoundError):
        vfs.lookup(12345, "a")
    with pytest.raises(NotFoundError, match="no folder"):
        vfs.entries(look_up(vfs, "a").inode, 0)


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a/b/c", "a", "a/b", "a/d"]])
def test_an_image_with_the_name_of_a_folder_hides_what_is_below(names: list[str]) -> None:
    vfs = shown(*names)
    assert isinstance(look_up(vfs, "a"), FileNode)
    assert sorted(vfs.tree.hidden) == sorted(set(names) - {"a"})
    assert len(vfs.tree.nodes) == 2


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "a-b", "ä"]), min_size=1, max_size=4).map("/".join),
    unique=True,
    max_size=12,
)


@given(names, st.randoms())
def test_a_tree_depends_on_what_is_there_and_not_on_its_order(
    found: list[str], chosen: st.DataObject
) -> None:
    tree = Tree(image(name) for name in found)
    mixed = list(found)
    chosen.shuffle(mixed)  # type: ignore[attr-defined]
    again = Tree(image(name) for name in mixed)
    assert again.nodes == tree.nodes
    assert again.hidden == tree.hidden
    vfs = Vfs()
    vfs.show(tree)
    for name in found:
        if name in tree.hidden:
            assert any(name.startswith(f"{other}/") for other in found)
        else:
            assert file_at(vfs, name).name == name
    assert len(tree.files()) + len(tree.hidden) == len(found)


def test_a_version_keeps_its_inode_and_a_new_one_is_another() -> None:
    first = Tree([image("a", 1)])
    second = Tree([image("a", 1, 2), image("b")])
    [old] = first.files()
    assert old not in second.files()
    assert list(Tree([image("a", 1)]).files()) == [old]
    assert file_node("a", version(1)).inode == old
    assert 1 < old < 2**62
    assert file_node("b", version(1)).inode != old
    remade = ImageVersion(1, "f" * 64, 1, 4096, 1, 1, "2024-01-01T00:00:00+00:00")
    assert file_node("a", remade).inode != old  # removed, and made again under the same number


def test_an_open_file_stays_on_its_version() -> None:
    vfs = shown("a")
    old = file_at(vfs, "a")
    vfs.show(Tree([image("a", 1, 2)]))
    assert file_at(vfs, "a").version.number == 2
    assert vfs.node(old.inode) is old
    vfs.show(Tree([]))
    assert vfs.node(old.inode) is old
    with pytest.raises(NotFoundError):
        vfs.lookup(ROOT_INODE, "a")
    vfs.show(Tree([image("a", 1)]))
    assert file_at(vfs, "a").inode == old.inode


def test_a_folder_goes_with_its_last_image() -> None:
    vfs = shown("a/b")
    folder = look_up(vfs, "a")
    vfs.show(Tree([]))
    with pytest.raises(NotFoundError):
        vfs.node(folder.inode)


def test_versions_of_an_earlier_daemon_are_reachable_by_inode() -> None:
    earlier = shown("a")
    vfs = Vfs()
    vfs.remember(earlier.tree.files())
    assert vfs.node(file_at(earlier, "a").inode) == file_at(earlier, "a")
    assert vfs.entries(ROOT_INODE, 0) == []


def test_a_listing_goes_on_after_any_entry_and_after_a_change() -> None:
    many = [f"image-{number}" for number in range(50)]
    vfs = shown(*many)
    everything = vfs.entries(ROOT_INODE, 0)
    inodes = [node.inode for _, node in everything]
    assert inodes == sorted(inodes)
    for at in (0, 10, 49):
        assert vfs.entries(ROOT_INODE, inodes[at]) == everything[at + 1 :]
    vfs.show(Tree(image(name) for name in many if name != everything[20][0]))
    rest = [name for name, _ in vfs.entries(ROOT_INODE, inodes[20])]
    assert rest == [name for name, _ in everything[21:]]


def test_times_are_those_of_versions() -> None:
    older = Image("a", (version(created="2024-01-01T00:00:00+00:00"),))
    newer = Image("b", (version(created="2024-01-02T00:00:00.5+00:00"),))
    tree = Tree([older, newer])
    assert tree.modified_ns == 1704153600_500_000_000
    assert file_node("a", older.current).modified_ns == 1704067200_000_000_000
