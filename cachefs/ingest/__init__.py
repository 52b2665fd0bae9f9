"""Whole images between files and the store: import, export, and the check of what is stored.

Synchronous, with threads of its own; knows nothing of mounts and caches.
"""
