"""What takes long to make or to download is kept in a folder of the user's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cachefs-images"


@contextmanager
def made_once(name: str) -> Iterator[tuple[Path, Path | None]]:
    """Yield the place of a cached folder, and a folder to fill if it is not there yet.

    The filled folder is renamed to its place when the context ends without an exception, so that
    the place holds all or nothing.

    Args:
        name: Of the folder; put in it whatever its contents depend on.
    """
    place = cache_folder() / name
    if place.exists():
        yield place, None
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=place.parent))
    try:
        yield place, fresh
        try:
            fresh.rename(place)
        except OSError:
            # Somebody else was faster; theirs is as good.
            if not place.exists():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
