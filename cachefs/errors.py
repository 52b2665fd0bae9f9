"""The one hierarchy of errors.

`transient` on the class is the only test for a retry: true means that the same call may succeed
later with nothing changed here. `exit_code` is what the command line ends with. Exceptions of third
parties are mapped to these once, in the module that calls the third party.
"""

from __future__ import annotations


class CachefsError(Exception):
    """Base of all errors; its text says what happened, to what, and what to do."""

    transient = False
    exit_code = 1


class UsageError(CachefsError):
    """The caller asked for something that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key, value or combination is wrong."""


class NotFoundError(CachefsError):
    """No such image, version or object."""

    exit_code = 3


class ObjectMissingError(NotFoundError):
    """The store answered, and says that it has no such object."""


class StoreUnavailableError(CachefsError):
    """The store did not answer, or answered that it cannot now: an outage, not a miss."""

    transient = True
    exit_code = 4


class StoreRefusedError(CachefsError):
    """The store answered, and does not let us: credentials, rights, region. Not an outage."""

    exit_code = 9


class CorruptError(CachefsError):
    """Bytes are not what their name, checksum or table says; they are never passed on."""

    exit_code = 5


class TableDamagedError(CorruptError):
    """A local manifest table is damaged: it is fetched again."""


class FormatError(CachefsError):
    """Something is not ours, or of a format that this version does not know."""

    exit_code = 5


class ConflictError(CachefsError):
    """Somebody else changed or holds what this call wanted to change or hold."""

    exit_code = 6


class CacheError(CachefsError):
    """The local cache folder cannot be used."""

    exit_code = 7


class TierError(CachefsError):
    """An optional tier refused, failed or was too slow: the next one is asked."""

    transient = True
    exit_code = 4


class SlotWriteError(CacheError):
    """The local disk did not take a chunk; the chunk is served without being kept."""

    transient = True


class DeadlineError(CachefsError):
    """A wait reached its deadline."""

    transient = True
    exit_code = 4


class MountError(CachefsError):
    """A mount could not be made, found or ended."""

    exit_code = 8
