"""Fetching ahead of demand: what the arms of `policy/prefetch` wish for is brought into L1."""
