"""The cache for programs that use it without a mount: `from cachefs.api import Cache`."""

from cachefs.api.cache import Cache, Key

__all__ = ["Cache", "Key"]
