"""Frames: how the bytes of a chunk are stored. Knows nothing of tiers, packs or files."""
