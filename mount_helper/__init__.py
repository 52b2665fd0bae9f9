"""The mount helper: the supervisor and the lane, the part of cachefs that outlives its daemon.

It imports nothing of cachefs and nothing but the standard library: it stays small, and an upgrade
of the daemon does not touch it.
"""

__version__ = "0.1.0"
