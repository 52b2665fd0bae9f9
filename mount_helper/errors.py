"""The one exception of the mount helper: a line for the user, and an exit code."""

MOUNT_FAILED_EXIT_CODE = 8
"""What the command line documents for a mount that could not be made, found or ended."""


class MountError(Exception):
    """A mount that cannot be made, or undone.

    Attributes:
        message: One line: what happened, to what, what to do.
        exit_code: What the launching process returns.
    """

    def __init__(self, message: str, exit_code: int = MOUNT_FAILED_EXIT_CODE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
