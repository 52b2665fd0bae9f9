"""The file system as names and attributes: images as files, the parts of their names as folders.

A plain module without FUSE: a Tree is one immutable state, made from a listing of images, and the
Vfs holds the current one. Inodes are derived from what they stand for, so they mean the same in
every daemon: a version of an image keeps its inode for ever, a new version is a new inode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from blake3 import blake3

from cachefs.errors import NotFoundError
from cachefs.model.image import Image, ImageVersion, OnOutage

ROOT_INODE = 1
_INODE_BITS = 62


@dataclass(frozen=True, slots=True)
class FileNode:
    """One version of an image."""

    inode: int
    name: str
    version: ImageVersion

    @property
    def modified_ns(self) -> int:
        """When the version was made, in ns of the Unix epoch."""
        return int(datetime.fromisoformat(self.version.created).timestamp() * 1e9)


@dataclass(frozen=True, slots=True)
class FolderNode:
    """A folder: the names in it, by their inodes."""

    inode: int
    parent: int
    children: dict[str, int] = field(default_factory=dict)


Node = FileNode | FolderNode


class Tree:
    """One state of the file system."""

    def __init__(self, images: Iterable[Image]) -> None:
        self.nodes: dict[int, Node] = {ROOT_INODE: FolderNode(ROOT_INODE, ROOT_INODE)}
        self.hidden: list[str] = []
        """Images that cannot be shown, because another one has the name of one of their folders."""
        self.image_bytes = 0
        self.modified_ns = 0
        for image in sorted(images, key=lambda image: image.name):
            self._add(image)

    def files(self) -> dict[int, tuple[str, ImageVersion]]:
        """Return all files: inode -> (name, version)."""
        return {
            node.inode: (node.name, node.version)
            for node in self.nodes.values()
            if isinstance(node, FileNode)
        }

    def _add(self, image: Image) -> None:
        *folders, leaf = image.name.split("/")
        parent = self.nodes[ROOT_INODE]
        path = ""
        for folder in folders:
            path = f"{path}/{folder}"
            parent = self._folder(parent, folder, path)
            if isinstance(parent, FileNode):
                self.hidden.append(image.name)
                return
        node = file_node(image.name, image.current)
        if not isinstance(parent, FolderNode) or leaf in parent.children:
            self.hidden.append(image.name)
            return
        self.nodes[node.inode] = node
        parent.children[leaf] = node.inode
        self.image_bytes += image.current.size_bytes
        self.modified_ns = max(self.modified_ns, node.modified_ns)

    def _folder(self, parent: Node, name: str, path: str) -> Node:
        if not isinstance(parent, FolderNode):
            return parent
        inode = parent.children.get(name)
        if inode is None:
            inode = _inode(f"folder\0{path}")
            self.nodes[inode] = FolderNode(inode, parent.inode)
            parent.children[name] = inode
        return self.nodes[inode]


class Vfs:
    """The current tree, and older versions that the kernel may still know.

    `on_outage` is for images that have no label of their own.
    """

    def __init__(self, on_outage: OnOutage = "fail") -> None:
        self._on_outage = on_outage
        self.tree = Tree([])
        self._older: dict[int, FileNode] = {}

    def show(self, tree: Tree) -> None:
        """Make another tree the current one. Files of the old one stay reachable by inode."""
        for inode, node in self.tree.nodes.items():
            if isinstance(node, FileNode) and inode not in tree.nodes:
                self._older[inode] = node
        self.tree = tree

    def remember(self, versions: Mapping[int, tuple[str, ImageVersion]]) -> None:
        """Take over versions that an earlier daemon showed."""
        for inode, (name, version) in versions.items():
            self._older[inode] = FileNode(inode, name, version)

    def known(self, inode: int) -> Node | None:
        """Return what an inode stands for, None if nothing that was ever shown."""
        return self.tree.nodes.get(inode) or self._older.get(inode)

    def node(self, inode: int) -> Node:
        """Return what an inode stands for.

        Raises:
            NotFoundError: nothing that was ever shown.
        """
        node = self.known(inode)
        if node is None:
            raise NotFoundError(f"no inode {inode}")
        return node

    def holds(self, inode: int) -> bool:
        """Whether what needs the store waits for it, however long it is away.

        Raises:
            NotFoundError: nothing that was ever shown.
        """
        node = self.node(inode)
        return isinstance(node, FileNode) and node.version.holds(self._on_outage)

    def lookup(self, parent: int, name: str) -> Node:
        """Return what a name in a folder stands for.

        Raises:
            NotFoundError: no such name, or no such folder.
        """
        folder = self.node(parent)
        if isinstance(folder, FolderNode):
            if name == ".":
                return folder
            if name == "..":
                return self.node(folder.parent)
            if name in folder.children:
                return self.node(folder.children[name])
        raise NotFoundError(f"no '{name}' here")

    def entries(self, inode: int, after: int) -> list[tuple[str, Node]]:
        """Return the names in a folder whose inodes are greater than `after`, in order of inodes.

        That order lets a reader go on after a change, or in another daemon.
        """
        folder = self.node(inode)
        if not isinstance(folder, FolderNode):
            raise NotFoundError(f"inode {inode} is no folder")
        found = sorted((child, name) for name, child in folder.children.items() if child > after)
        return [(name, self.node(child)) for child, name in found]


def file_node(name: str, version: ImageVersion) -> FileNode:
    """Return the file of a version, with its inode."""
    return FileNode(_inode(f"image\0{name}\0{version.number}\0{version.manifest}"), name, version)


def _inode(text: str) -> int:
    value = int.from_bytes(blake3(text.encode()).digest(8), "little") >> (64 - _INODE_BITS)
    return max(value, ROOT_INODE + 1)
