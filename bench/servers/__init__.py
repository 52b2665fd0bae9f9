"""Servers to compare with: each shows one file, `image`, with the least work that it can do."""
