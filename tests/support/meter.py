"""redis-py's metrics, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from aioentra_redis._redis_py import _telemetry as telemetry

__all__ = ["Meter", "meter"]

Series = tuple[dict[str, Any], int]


class Meter:
    """redis-py's metrics in memory: of commands, and of errors that a user gets to see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.fresh()

    def fresh(self) -> None:
        """Begin anew with nothing counted."""
        from redis.observability import providers

        self.switch_off()
        self._reader = InMemoryMetricReader()
        provider = MeterProvider([self._reader])
        manager = providers.OTelProviderManager
        self._monkeypatch.setattr(manager, "get_meter_provider", lambda _: provider)

    def switch_on(self) -> None:
        from redis.observability import OTelConfig, get_observability_instance
        from redis.observability.config import MetricGroup

        groups = [MetricGroup.COMMAND, MetricGroup.RESILIENCY]
        get_observability_instance().init(OTelConfig(metric_groups=groups))

    def switch_off(self) -> None:
        from redis.observability import providers

        providers.reset_observability_instance()
        telemetry._recorder._async_metrics_collector = None

    def commands(self) -> list[Series]:
        return self._series("db.client.operation.duration")

    def errors(self) -> list[Series]:
        return [
            (attributes, count)
            for attributes, count in self._series("redis.client.errors")
            if attributes["redis.client.errors.internal"] is False
        ]

    def _series(self, name: str) -> list[Series]:
        """Attributes but for the port, and the count, of each series."""
        data = self._reader.get_metrics_data()
        found: list[Series] = []
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points if metric.name == name else ():
                        attributes = dict(point.attributes or {})
                        for port in ("server.port", "network.peer.port"):
                            assert attributes.pop(port) > 1024
                        count = point.count if hasattr(point, "count") else point.value
                        found.append((attributes, count))
        return sorted(found, key=repr)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    made = Meter(monkeypatch)
    yield made
    made.switch_off()
