"""The fixtures of tests that mount, for tests of faults on real mounts."""

from tests.mount.fixtures import images, mounted, mounts, shared_mount, short_path

__all__ = ["images", "mounted", "mounts", "shared_mount", "short_path"]
