"""The fixtures of tests that mount, for all tests in this folder."""

from tests.mount.fixtures import images, mounted, mounts, shared_mount, short_path

__all__ = ["images", "mounted", "mounts", "shared_mount", "short_path"]
