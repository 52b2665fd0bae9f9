"""Benches: each prints a table, and each number comes with the command that makes it."""
