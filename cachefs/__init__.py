"""cachefs: VM images from object storage as plain, read-only files."""

__version__ = "0.1.0"
