"""The eviction policy that an operator chose on a running mount: it outlives the daemon.

It ends with the mount; what the configuration says is there again at the next one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cachefs.daemon.cache import Cache
from cachefs.errors import UsageError

logger = logging.getLogger(__name__)

_NAME = "eviction-policy"
_LONGEST = 64


def keep_choice(run_dir: Path, name: str) -> None:
    """Write a policy's name down for the next daemon of this mount. Blocks: in a thread."""
    temporary = run_dir / f"{_NAME}.tmp"
    try:
        temporary.write_text(name)
        temporary.replace(run_dir / _NAME)
    except OSError as error:
        logger.warning("the policy '%s' will not outlive this daemon: %s", name, error)


def restore_choice(run_dir: Path, cache: Cache, *, fresh: bool) -> None:
    """Take over what an operator chose while an earlier daemon of this mount ran.

    Args:
        run_dir: The mount's, which an earlier mount may have had.
        cache: Whose policy it is.
        fresh: This is the mount's first daemon; what was chosen for another mount is forgotten.
    """
    try:
        if fresh:
            (run_dir / _NAME).unlink(missing_ok=True)
        with (run_dir / _NAME).open(encoding="ascii") as file:
            name = file.read(_LONGEST)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        logger.warning("cannot read which policy was chosen: %s", error)
        return
    try:
        cache.change_policy(name)
    except UsageError as error:
        logger.warning("the policy that was chosen cannot be taken over: %s", error)
