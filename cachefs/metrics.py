"""Every metric, defined once: its name, unit and meaning.

The hot path adds to plain integers; they become Prometheus metrics when somebody asks.
Event loop only, but `collect`, which only reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

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
    held_reads: int = _counter("Times that a read was to wait on for the store to come back")
    l1_hit_chunks: int = _counter("Chunks read that were in L1")
    zero_chunks: int = _counter("Chunks read that are all zeros")
    miss_chunks: int = _counter("Chunks read that were not in L1")
    read_wait_us: int = _counter("Microseconds that reads waited for chunks or the disk, in all")
    stalled_us: int = _counter("Microseconds in which at least one read waited")
    joined_chunks: int = _counter("Misses that waited for a fetch that was already in flight")
    disk_waits: int = _counter("L1 reads that the page cache could not answer")
    l2_chunks: int = _counter("Chunks fetched from L2")
    l2_plain_bytes: int = _counter("Their bytes, decompressed")
    l2_misses: int = _counter("Chunks that L2 was asked for and did not have")
    l2_bypassed: int = _counter("Chunks that L2 was not asked for, because its breaker was open")
    l2_errors: int = _counter("Requests to L2 that failed or took too long")
    l2_hedges: int = _counter("Second requests to L2, because the first took longer than the p95")
    l2_corrupt: int = _counter("Frames from L2 that were not what their id says; replaced")
    l2_backfilled: int = _counter("Frames written to L2")
    l2_backfill_dropped: int = _counter("Frames not written to L2: too many waited, or it failed")
    l2_scan_chunks: int = _counter("Chunks from the store kept out of L2, as parts of long scans")
    l2_demoted: int = _counter("Chunks that left L1 and that L2 has or was given")
    l2_demotions_lost: int = _counter("Chunks that left L1 too fast to be given to L2")
    l3_chunks: int = _counter("Chunks fetched from the store")
    l3_plain_bytes: int = _counter("Their bytes, decompressed")
    l3_frame_bytes: int = _counter("Bytes fetched from the store, gaps between frames included")
    l3_requests: int = _counter("Requests to the store for frames")
    l3_bypassed: int = _counter("Requests to the store not made: it had failed before")
    l3_retries: int = _counter("Chunks asked for again after an outage")
    l3_corrupt: int = _counter("Frames from the store that were not what their id says")
    l1_corrupt: int = _counter("Chunks in L1 that were not what their id says; dropped")
    l1_errors: int = _counter("L1 reads and writes that the disk failed")
    unkept_chunks: int = _counter("Chunks served without a place in L1")
    evicted_chunks: int = _counter("Chunks that L1 gave up for others")
    policy_errors: int = _counter("Slots that the eviction policy named and must not; left alone")
    trainings: int = _counter("Models that the eviction policy has learned")
    training_us: int = _counter("Microseconds that this took, beside the reads")
    commits: int = _counter("Transactions of the index")
    scrubbed_chunks: int = _counter("Chunks that the scrub verified")
    scrub_passes: int = _counter("Times that the scrub has seen all of L1")
    fetcher_deaths: int = _counter("Fetchers that ended unasked, or were ended because they hung")
    refreshes: int = _counter("Times that the list of images was read")
    refresh_errors: int = _counter("Times that it could not be read")
    lane_hits: int = _counter("Reads that the lane answered from L1")
    lane_hit_bytes: int = _counter("Bytes of those reads")
    lane_hit_chunks: int = _counter("Chunks of those reads")
    lane_zero_chunks: int = _counter("Chunks of those reads that are all zeros")
    lane_disk_reads: int = _counter("Reads of the lane that waited for the cache's disk")
    lane_passed_reads: int = _counter("Reads that the lane passed on to the daemon")
    lane_unknown_image: int = _counter("Of these: the image has no table on the board")
    lane_unknown_chunk: int = _counter("Of these: nothing is known of a chunk, or it is not in L1")
    lane_moved: int = _counter("Of these: a chunk is not (any more) where the hint says")
    lane_changed: int = _counter("Of these: a slot was emptied while it was read")
    lane_unreadable: int = _counter("Of these: a segment file could not be read")
    lane_disk_busy: int = _counter("Of these: too many reads waited for the disk")
    lane_accesses_dropped: int = _counter("Accesses that the policy missed: the ring was full")
    ahead_chunks: int = _counter("Chunks that were fetched before anybody asked for them")
    ahead_frame_bytes: int = _counter("Their bytes, as in the store")
    ahead_used: int = _counter("Of these: read after they had come")
    ahead_late: int = _counter("Of these: somebody waited for them when they came")
    ahead_wasted: int = _counter("Of these: given up as not wanted")
    ahead_evicted: int = _counter("Of these: evicted before anybody read them")
    ahead_failed: int = _counter("Chunks that were asked for ahead and did not come")
    ahead_wasted_bytes: int = _counter("Bytes, as in the store, of those wasted and evicted")
    ahead_requests: int = _counter("Jobs ahead of demand that were given to fetchers")
    ahead_unseen: int = _counter("Batches of reads that arms did not look at, to save processor")
    ahead_jobs: int = _gauge("Jobs ahead of demand that are under way now")
    ahead_unread_bytes: int = _gauge("Bytes fetched ahead, or being fetched, that nobody read yet")
    waiting_reads: int = _gauge("Reads that wait for chunks now")
    flights: int = _gauge("Chunks that are being fetched now")
    l2_queued_bytes: int = _gauge("Frames that wait to be written to L2 now")
    l2_open_breakers: int = _gauge("Fetchers that leave L2 alone now")
    l1_left: int = _gauge("Whether L1 is left alone now, because its disk fails or hangs")
    pinned_slots: int = _gauge("Slots that reads hold now")

    def take_lane(self, counts: Mapping[str, Any]) -> None:
        """Take over what the lane has counted since the mount."""
        for name, count in counts.items():
            if isinstance(count, int):
                setattr(self, f"lane_{name}", count)

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
