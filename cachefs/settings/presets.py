"""Presets: what is other than by default for a kind of host. Starting points, which a file refines.

Kept as text and numbers, as in a configuration file, so that they go through the same checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

PresetName = Literal["default", "edge", "regional", "global"]

Values = Mapping[str, Mapping[str, object]]

PRESETS: Mapping[PresetName, Values] = {
    "default": {},
    # Little SSD, few cores, a store that is far away: keep what is hot, wait for nothing but it.
    "edge": {
        "store": {"refresh_s": 10.0},
        "s3": {"requests_in_flight": 8},
        "l1": {
            "quota_bytes": "2GiB",
            "free_floor_bytes": "256MiB",
            "scrub_bytes_per_s": "2MiB",
        },
        "l2": {"timeout_s": 0.02},
        "mount": {"read_ahead_bytes": "2MiB"},
        "lane": {"disk_patience_s": 0.25},
    },
    # Hosts that share an L2 with their neighbours: what leaves one is still near the others.
    "regional": {
        "store": {"refresh_s": 5.0},
        "s3": {"requests_in_flight": 8},
        "l1": {"quota_bytes": "200GiB", "free_floor_bytes": "10GiB"},
        "l2": {"demote": True, "backfill_queue_bytes": "64MiB"},
    },
    # Large disks, whole images, long streams: capacity before latency.
    "global": {
        "store": {"refresh_s": 5.0},
        "s3": {"requests_in_flight": 16, "connections": 128},
        "l1": {
            "quota_bytes": "2TiB",
            "free_floor_bytes": "50GiB",
            "scrub_bytes_per_s": "32MiB",
        },
        "l2": {"backfill_queue_bytes": "64MiB"},
        "fetch": {"read_deadline_s": 60.0, "job_timeout_s": 120.0},
        "mount": {"read_ahead_bytes": "16MiB"},
    },
}
"""By name: section -> key -> value. Every value is other than the default (checked by a test)."""
