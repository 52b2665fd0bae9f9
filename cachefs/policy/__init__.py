"""Decisions without I/O, clock or trio: events in, plans out."""
