"""The store (L3): packs, manifests and image names over a small interface of objects.

Everything here is synchronous and is called from fetchers, importers and commands, never from the
daemon's event loop.
"""
