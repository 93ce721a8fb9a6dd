"""What a decoding pool tells Prometheus; the process that owns the pool registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.decoding.pool import DecodingLoad
from contract import telemetry


class DecodingMetrics(Collector):
    """Asks a pool for its load at every scrape. Until `load` is set there is none."""

    def __init__(self, load: Callable[[], DecodingLoad] = lambda: DecodingLoad(0, 0, 0)) -> None:
        self.load = load

    def collect(self) -> Iterable[Metric]:
        """Processes, pictures in flight, processes lost."""
        load = self.load()
        alive, busy, lost = telemetry.DECODERS, telemetry.DECODINGS_IN_FLIGHT, telemetry.DECODERS_LOST
        return [
            GaugeMetricFamily(alive.name, alive.help, value=load.processes),
            GaugeMetricFamily(busy.name, busy.help, value=load.in_flight),
            CounterMetricFamily(lost.name, lost.help, value=load.lost),
        ]
