"""Users and passwords of L2: read when a connection is made, kept nowhere, shown nowhere.

They come from a file or the environment, so that neither `ps` nor a log nor the configuration that
the daemon gets on its command line ever has them; a password that is changed on disk is used by the
next connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.errors import TierError


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where user and password are found; both may be missing."""

    user: str
    password_file: str
    variable: str
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

    def password(self) -> str:
        """Return the password as it is now; empty: none.

        Raises:
            TierError: the file cannot be read.
        """
        if not self.password_file:
            return self.environment.get(self.variable, "")
        try:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise TierError(
                f"cannot read the password file {self.password_file}: {reason}"
            ) from error
