"""Every metric, defined once: its name, unit and meaning.

The hot path adds to plain integers; they become Prometheus metrics when somebody asks.
Event loop only, but `collect`, which only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def _counter(text: str) -> int:
    return field(default=0, metadata={"kind": "counter", "help": text})


def _gauge(text: str) -> int:
    return field(default=0, metadata={"kind": "gauge", "help": text})


@dataclass(slots=True, eq=False)  # a registry wants its collectors hashable
class Metrics:
    """The figures of one daemon."""

    reads: int = _counter("Reads that the daemon answered")
    read_bytes: int = _counter("Bytes of those reads")
    read_errors: int = _counter("Reads that ended with an error")
    read_deadlines: int = _counter("Reads that reached their deadline")
    l1_hit_chunks: int = _counter("Chunks read that were in L1")
    zero_chunks: int = _counter("Chunks read that are all zeros")
    miss_chunks: int = _counter("Chunks read that were not in L1")
    joined_chunks: int = _counter("Misses that waited for a fetch that was already in flight")
    disk_waits: int = _counter("L1 reads that the page cache could not answer")
    l3_chunks: int = _counter("Chunks fetched from the store")
    l3_plain_bytes: int = _counter("Their bytes, decompressed")
    l3_frame_bytes: int = _counter("Bytes fetched from the store, gaps between frames included")
    l3_requests: int = _counter("Requests to the store for frames")
    l3_retries: int = _counter("Chunks asked for again after an outage")
    l3_corrupt: int = _counter("Frames from the store that were not what their id says")
    l1_corrupt: int = _counter("Chunks in L1 that were not what their id says; dropped")
    l1_errors: int = _counter("L1 reads and writes that the disk failed")
    unkept_chunks: int = _counter("Chunks served without a place in L1")
    evicted_chunks: int = _counter("Chunks that L1 gave up for others")
    trainings: int = _counter("Models that the eviction policy has learned")
    commits: int = _counter("Transactions of the index")
    scrubbed_chunks: int = _counter("Chunks that the scrub verified")
    scrub_passes: int = _counter("Times that the scrub has seen all of L1")
    fetcher_deaths: int = _counter("Fetchers that ended unasked, or were ended because they hung")
    refreshes: int = _counter("Times that the list of images was read")
    refresh_errors: int = _counter("Times that it could not be read")
    waiting_reads: int = _gauge("Reads that wait for chunks now")
    flights: int = _gauge("Chunks that are being fetched now")
    pinned_slots: int = _gauge("Slots that reads hold now")

    def to_dict(self) -> dict[str, int]:
        """Return all figures by name."""
        return {metric.name: getattr(self, metric.name) for metric in fields(self)}

    def collect(self) -> Iterator[Metric]:
        """Yield all figures as Prometheus metrics, `cachefs_` before their names."""
        for metric in fields(self):
            name, text = f"cachefs_{metric.name}", metric.metadata["help"]
            family = (
                CounterMetricFamily if metric.metadata["kind"] == "counter" else GaugeMetricFamily
            )
            yield family(name, text, value=getattr(self, metric.name))
