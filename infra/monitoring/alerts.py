"""The alert rules. Each says what it means to whoever is woken, and where in docs/runbook.md it says what to do."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from contract import telemetry as t
from infra.monitoring import objectives as o
from infra.monitoring.promql import API_JOB, INGEST_JOB, mean, over, quantile, rate, select, share

RUNBOOK = "docs/runbook.md"
_REPLICA = ("collection", "shard", "replica")
_SHARD = ("collection", "shard")
_AT = "{{ $labels.collection }}"
_AT_SHARD = "shard {{ $labels.shard }} of {{ $labels.collection }}"
_AT_REPLICA = "replica {{ $labels.replica }} of shard {{ $labels.shard }} of {{ $labels.collection }}"
_PERCENT = "{{ $value | humanizePercentage }}"
_SECONDS = "{{ $value | humanizeDuration }}"


class Alert(Struct, frozen=True, kw_only=True):
    """An alert: `critical` wakes somebody, `warning` waits for the morning. `summary` may be a template."""

    name: str
    expression: str
    severity: Literal["critical", "warning"]
    summary: str
    lasting: str = "0s"

    def rule(self) -> dict[str, Any]:
        """As it stands in a rule file."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": f"{RUNBOOK}#{self.name.lower()}"},
        }


def rule_file() -> dict[str, Any]:
    """All groups, as a rule file of Prometheus."""
    groups = {
        "freshness": (*_burns(), *_freshness()),
        "searches": _searches(),
        "uploads": _uploads(),
        "parts": _parts(),
        "machines": _machines(),
    }
    recorded = {"name": "riverlens-freshness-objective", "rules": _recorded()}
    alerts = [{"name": f"riverlens-{name}", "rules": [one.rule() for one in group]} for name, group in groups.items()]
    return {"groups": [recorded, *alerts]}


def _windows() -> list[str]:
    return list(dict.fromkeys(window for burn in o.BURN_RATES for window in (burn.short, burn.long)))


def _once(expression: str) -> str:
    """What each replica tells of itself through every replica of the API, counted once."""
    return over("sum", over("max", expression, *_REPLICA), "collection")


def _slow(window: str, function: str) -> tuple[str, str]:
    """(uploads within the objective, all uploads) over a window."""
    in_time = {"le": str(o.SEARCHABLE_WITHIN_S)}
    quick = select(t.UPLOAD_TO_SEARCHABLE_SECONDS, part="_bucket", window=window, **in_time)
    every = select(t.UPLOAD_TO_SEARCHABLE_SECONDS, part="_count", window=window)
    return _once(f"{function}({quick})"), _once(f"{function}({every})")


def _recorded() -> list[dict[str, Any]]:
    rules = []
    for window in _windows():
        quick, every = _slow(window, "rate")
        rules.append({"record": f"riverlens:upload_slow:ratio_rate{window}", "expr": f"1 - {share(quick, every)}"})
    for burn in o.BURN_RATES:
        quick, every = _slow(burn.long, "increase")
        rules.append({"record": f"riverlens:upload_slow:increase{burn.long}", "expr": f"{every} - {quick}"})
    return rules


def _burns() -> list[Alert]:
    budget = 1 - o.SEARCHABLE_SHARE
    names: dict[str, tuple[str, Literal["critical", "warning"]]] = {
        "critical": ("FreshnessBudgetBurnsFast", "critical"),
        "warning": ("FreshnessBudgetBurnsSlowly", "warning"),
    }
    alerts = []
    for severity, (name, level) in names.items():
        conditions = [
            f"(riverlens:upload_slow:ratio_rate{burn.long} > {burn.factor * budget:g}"
            f" and riverlens:upload_slow:ratio_rate{burn.short} > {burn.factor * budget:g}"
            f" and riverlens:upload_slow:increase{burn.long} >= {o.SLOW_UPLOADS_MIN})"
            for burn in o.BURN_RATES
            if burn.severity == severity
        ]
        summary = f"{_PERCENT} of the uploads to {_AT} took longer than {o.SEARCHABLE_WITHIN_S:g} s to be searchable"
        alerts.append(Alert(name=name, expression=" or ".join(conditions), severity=level, summary=summary))
    return alerts


def _freshness() -> list[Alert]:
    lag = over("max", select(t.LAG_MESSAGES), "collection")
    return [
        Alert(
            name="SearchesAreStale",
            expression=f"{over('max', select(t.STALENESS_SECONDS), *_SHARD)} > {o.STALE_S:g}",
            lasting="2m",
            severity="critical",
            summary=f"{_AT_SHARD} has not applied an event that is {_SECONDS} old",
        ),
        Alert(
            name="IngestStandsStill",
            expression=f"{lag} > 0 unless on (collection) {over('max', select(t.DRAIN_SECONDS), 'collection')}",
            lasting="5m",
            severity="critical",
            summary=f"{{{{ $value }}}} events of {_AT} wait, and nothing moves",
        ),
        Alert(
            name="LagGrows",
            expression=f"{lag} > {o.LAG_MESSAGES}",
            lasting="10m",
            severity="warning",
            summary=f"{{{{ $value }}}} events of {_AT} are not searchable; uploads will be refused",
        ),
    ]


def _searches() -> list[Alert]:
    # Recall over an hour, against the same a day before: a figure of its own jumps with every sample.
    recall = {
        offset: over("min", f"avg_over_time({select(t.RECALL, window='1h', offset=offset)})", *_SHARD)
        for offset in ("", "1d")
    }
    low, samples = over("min", select(t.RECALL), *_SHARD), over("max", select(t.RECALL_SAMPLES), *_SHARD)
    refused = share(rate(t.SEARCH_ADMISSIONS, window="5m", outcome="refused"), rate(t.SEARCH_ADMISSIONS, window="5m"))
    # A load balancer asks /readyz all the time, and 503 is its answer.
    asked = {"route": "!/readyz"}
    failed = share(
        rate(t.HTTP_REQUESTS, window="5m", status="~5..", **asked), rate(t.HTTP_REQUESTS, window="5m", **asked)
    )
    degraded = share(rate(t.SEARCHES, window="5m", degraded="!false"), rate(t.SEARCHES, window="5m"))
    late = share(
        rate(t.SHARD_CALLS, *_SHARD, window="5m", outcome="~late|failed"), rate(t.SHARD_CALLS, *_SHARD, window="5m")
    )
    return [
        Alert(
            name="CoverageIsIncomplete",
            expression=f"{mean(t.COVERAGE_RATIO, 'collection', window='5m')} < {o.COVERAGE}",
            lasting="2m",
            severity="critical",
            summary=f"searches of {_AT} cover {_PERCENT} of its shards",
        ),
        Alert(
            name="SearchesAreDegraded",
            expression=f"{degraded} > {o.FAILED_SHARE}",
            lasting="5m",
            severity="warning",
            summary=f"{_PERCENT} of the searches are answered without a shard, or by words alone",
        ),
        Alert(
            name="SearchesAreSlow",
            expression=f"{quantile(0.99, t.SEARCH_STAGE_SECONDS, window='5m', stage='total')} > {o.SEARCH_P99_S:g}",
            lasting="10m",
            severity="warning",
            summary=f"the slowest percent of the searches takes longer than {_SECONDS}",
        ),
        Alert(
            name="SearchesAreRefused",
            expression=f"{refused} > {o.REFUSED_SHARE}",
            lasting="5m",
            severity="warning",
            summary=f"{_PERCENT} of the searches are refused, because too many are under way",
        ),
        Alert(
            name="RequestsFail",
            expression=f"{failed} > {o.FAILED_SHARE}",
            lasting="5m",
            severity="critical",
            summary=f"{_PERCENT} of the requests are answered with a status of 5xx",
        ),
        Alert(
            name="ShardIsLate",
            expression=f"{late} > {o.LATE_SHARE}",
            lasting="10m",
            severity="warning",
            summary=f"{_PERCENT} of the calls to {_AT_SHARD} are late or fail",
        ),
        Alert(
            name="RecallIsLow",
            expression=f"{low} < {o.RECALL} and on (collection, shard) {samples} >= {o.RECALL_SAMPLES}",
            lasting="15m",
            severity="warning",
            summary=f"{_AT_SHARD} finds {_PERCENT} of what an exact search finds",
        ),
        Alert(
            name="RecallDrifts",
            expression=f"{recall['1d']} - {recall['']} > {o.RECALL_DRIFT}"
            f" and on (collection, shard) {samples} >= {o.RECALL_SAMPLES}",
            lasting="15m",
            severity="warning",
            summary=f"{_AT_SHARD} finds {_PERCENT} less of what an exact search finds than a day ago",
        ),
    ]


def _uploads() -> list[Alert]:
    # A counter that is there for the first time has no increase yet.
    letters = select(t.DEAD_LETTERS, retryable="true")
    increased = over("sum", f"increase({select(t.DEAD_LETTERS, retryable='true', window='10m')})", "stage", "code")
    new = over("sum", f"{letters} unless {letters} offset 10m", "stage", "code")
    rejected = share(rate(t.EVENTS, window="15m", outcome="rejected"), rate(t.EVENTS, window="15m"))
    lost = over("sum", f"increase({select(t.DECODERS_LOST, window='15m')})", "job", "instance")
    return [
        Alert(
            name="UploadsAreRefused",
            expression=f"{rate(t.UPLOADS_REFUSED, 'reason', window='5m')} > 0",
            lasting="5m",
            severity="warning",
            summary="uploads are refused with 429: no room for {{ $labels.reason }}",
        ),
        Alert(
            name="DeadLettersCanBeRedriven",
            expression=f"{increased} > 0 or {new} > 0",
            severity="warning",
            summary="events became dead letters for a fault that passes: {{ $labels.code }} at {{ $labels.stage }}",
        ),
        Alert(
            name="PicturesAreRejected",
            expression=f"{rejected} > {o.REJECTED_SHARE}",
            lasting="15m",
            severity="warning",
            summary=f"{_PERCENT} of the events lead to dead letters",
        ),
        Alert(
            name="DecodersDie",
            expression=f"{lost} > {o.DECODERS_LOST}",
            severity="warning",
            summary="decoding processes of {{ $labels.job }} on {{ $labels.instance }} die or hang under pictures",
        ),
    ]


def _parts() -> list[Alert]:
    by_embedder = over("max", select(t.EMBEDDER_READY), "model", "role", "index")
    missing = (
        f"{over('max', select(t.SHARDS_TOTAL), 'collection')} - {over('max', select(t.SHARDS_ANSWERING), 'collection')}"
    )
    processes = f"changes({select(t.PROCESS_START_TIME, job=f'~{API_JOB}|{INGEST_JOB}', window='15m')})"
    actors = over("max", f"changes({select(t.SHARD_START_TIME, window='15m')})", *_REPLICA)
    # A shard that has nothing new takes no snapshot.
    changed = over("sum", f"increase({select(t.UPLOAD_TO_SEARCHABLE_SECONDS, part='_count', window='1h')})", *_SHARD)
    age = over("max", select(t.SNAPSHOT_AGE_SECONDS), *_SHARD)
    return [
        *(
            Alert(
                name=name,
                expression=f'up{{job="{job}"}} == 0 or absent(up{{job="{job}"}})',
                lasting="1m",
                severity="critical",
                summary=f"{what} does not show its metrics: it is down, or cannot be reached",
            )
            for name, job, what in (
                ("ApiIsDown", API_JOB, "the API"),
                ("IngestIsDown", INGEST_JOB, "the ingest process"),
            )
        ),
        Alert(
            name="ShardIsMissing",
            expression=f"{missing} > 0",
            lasting="1m",
            severity="critical",
            summary=f"{{{{ $value }}}} shards of {_AT} have no replica that answers",
        ),
        Alert(
            name="ReplicaIsDown",
            expression=f"{over('max', select(t.REPLICA_READY), *_REPLICA)} == 0",
            lasting="5m",
            severity="warning",
            summary=f"{_AT_REPLICA} does not answer, or has not caught up",
        ),
        Alert(
            name="EmbedderIsDown",
            expression=f"{by_embedder} == 0",
            lasting="2m",
            severity="critical",
            summary="embedder {{ $labels.index }} of {{ $labels.model }} for {{ $labels.role }} does not answer",
        ),
        Alert(
            name="PartsRestart",
            expression=f"{processes} > {o.RESTARTS} or {actors} > {o.RESTARTS}",
            severity="warning",
            summary="{{ $labels.job }}{{ $labels.collection }} {{ $labels.instance }}{{ $labels.shard }}"
            " has started {{ $value }} times in 15 minutes",
        ),
        Alert(
            name="SnapshotIsOld",
            expression=f"{age} > {o.SNAPSHOT_AGE_S:g} and on (collection, shard) {changed} > 0",
            lasting="15m",
            severity="warning",
            summary=f"the newest snapshot of {_AT_SHARD} is {_SECONDS} old, though it has changed since",
        ),
    ]


def _machines() -> list[Alert]:
    free, disk, available, memory = (
        over("min" if left else "max", select(metric), *_REPLICA)
        for metric, left in (
            (t.DISK_FREE, True),
            (t.DISK, False),
            (t.MACHINE_MEMORY_AVAILABLE, True),
            (t.MACHINE_MEMORY, False),
        )
    )
    later = f"predict_linear({select(t.DISK_FREE, window='6h')}, 24 * 3600)"
    fills = f"{over('min', later, *_REPLICA)} < 0 and on (collection, shard, replica) {share(free, disk)} < 0.5"
    levels: tuple[tuple[str, str, str, float, str, Literal["critical", "warning"], str], ...] = (
        ("DiskIsLow", free, disk, o.DISK_FREE_LOW, "10m", "warning", "disk"),
        ("DiskIsNearlyFull", free, disk, o.DISK_FREE_CRITICAL, "2m", "critical", "disk"),
        ("MemoryIsLow", available, memory, o.MEMORY_LOW, "10m", "warning", "memory"),
        ("MemoryIsNearlyGone", available, memory, o.MEMORY_CRITICAL, "2m", "critical", "memory"),
    )
    return [
        *(
            Alert(
                name=name,
                expression=f"{share(left, whole)} < {limit}",
                lasting=lasting,
                severity=severity,
                summary=f"{_PERCENT} of the {what} is left where {_AT_REPLICA} runs",
            )
            for name, left, whole, limit, lasting, severity, what in levels
        ),
        Alert(
            name="DiskFillsWithinADay",
            expression=fills,
            lasting="30m",
            severity="warning",
            summary=f"the disk of {_AT_REPLICA} will be full within a day at the pace of the last six hours",
        ),
    ]
