"""Replays recorded accesses through the policies that the daemon runs."""
