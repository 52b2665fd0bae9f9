"""Epochs: which records of the index can be trusted after an unclean stop.

Every start of a daemon is an epoch. A record carries the epoch in which its bytes were last
verified. After an unclean stop all older records are suspect: the bytes may not have reached the
disk. They are verified at first use, and by the scrub, which ends the suspicion when it has seen
them all.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import lmdb

from cachefs.index.database import Database

logger = logging.getLogger(__name__)


class Epoch:
    """`now` is this run's epoch; records of epochs before `suspect_before` are suspect."""

    def __init__(self, database: Database) -> None:
        self._database = database
        state = self._load()
        self.now = int(state.get("now", 0)) + 1
        was_clean = bool(state.get("clean", True))
        self.suspect_before = int(state.get("suspect_before", 0)) if was_clean else self.now
        self.unclean_start = not was_clean
        self._is_saved = False
        try:
            self.save()
        except lmdb.Error as error:
            logger.warning("cannot write the index yet: %s", error)

    def save(self) -> None:
        """Write down that this epoch has begun, before its first record. Blocks briefly.

        Raises:
            lmdb.Error: the disk is full or broken; then no record of this epoch may be written.
        """
        if not self._is_saved:
            self._save(clean=False)
            self._is_saved = True

    def suspect_all(self) -> None:
        """Everything has to be verified at first use."""
        self.suspect_before = self.now
        self._is_saved = False

    def trust_all(self) -> None:
        """All records have been verified: nothing is suspect any more. Blocks briefly."""
        self.suspect_before = 0
        self._save(clean=False)

    def close(self) -> None:
        """Say that everything is on disk. Blocks until the index itself is."""
        self._database.env.sync(True)
        self._save(clean=True)
        self._database.env.sync(True)

    def _load(self) -> dict[str, Any]:
        with self._database.env.begin(db=self._database.meta) as txn:
            value = txn.get(b"epoch")
        return dict(json.loads(value)) if value else {}

    def _save(self, *, clean: bool) -> None:
        state = {"now": self.now, "clean": clean, "suspect_before": self.suspect_before}
        with self._database.env.begin(write=True, db=self._database.meta) as txn:
            txn.put(b"epoch", json.dumps(state).encode())
