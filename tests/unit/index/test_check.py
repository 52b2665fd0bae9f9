from pathlib import Path

import pytest

from cachefs.errors import CacheError, ConflictError, FormatError
from cachefs.index.check import check_folder
from cachefs.index.database import open_database
from cachefs.index.folder import open_folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = open_folder(tmp_path / "cache", "s")
    database, _ = open_database(folder.index_path, folder.segments_path)
    database.close()
    folder.close()
    return folder.path


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_that_is_well_is_left_as_it_was(path: Path, whole: bool) -> None:
    for _ in range(2):  # the lock was given up
        check_folder(path, "s", whole=whole, wait_s=0)
    folder = open_folder(path, "s", wait_s=0)
    database, is_new = open_database(folder.index_path, folder.segments_path)
    database.close()
    folder.close()
    assert not is_new


@pytest.mark.parametrize("whole", [False, True])
def test_an_index_that_cannot_be_read(path: Path, whole: bool) -> None:
    data = path / "index.lmdb" / "data.mdb"
    data.unlink()
    check_folder(path, "s", whole=whole)  # it will be a new one
    data.mkdir()
    with pytest.raises(CacheError, match=r"cannot read the index .*index\.lmdb: Is a directory"):
        check_folder(path, "s", whole=whole)


def test_a_folder_that_is_used_or_another(path: Path) -> None:
    folder = open_folder(path, "s")
    with pytest.raises(ConflictError):
        check_folder(path, "s", whole=False, wait_s=0)
    folder.close()
    with pytest.raises(FormatError):
        check_folder(path, "t", whole=False)
