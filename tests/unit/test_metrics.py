from dataclasses import fields

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cachefs.metrics import Metrics


def test_every_figure_becomes_a_prometheus_metric_with_its_kind_and_help() -> None:
    metrics = Metrics()
    metrics.reads += 3
    metrics.flights = 2
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    assert "cachefs_reads_total 3.0" in lines
    assert "cachefs_flights 2.0" in lines
    assert "# TYPE cachefs_flights gauge" in lines
    for metric in fields(Metrics):
        assert any(line.startswith(f"# HELP cachefs_{metric.name}") for line in lines)
        assert metrics.to_dict()[metric.name] == getattr(metrics, metric.name)


def test_a_metric_that_does_not_exist_cannot_be_counted() -> None:
    with pytest.raises(AttributeError):
        Metrics().raeds = 1  # type: ignore[attr-defined]
