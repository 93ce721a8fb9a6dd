"""The result file of the index benchmark as a page: one table of targets, one per data set."""

from __future__ import annotations

from typing import Any, Final

TARGETS: Final = {
    "engine_search_ratio": ("≥", 0.9),
    "engine_insert_ratio": ("≥", 0.7),
    "search_p99_under_ingest_ratio": ("≤", 1.5),
    "recall_after_churn_ratio": ("≥", 0.99),
    "search_vs_best_peer": ("≥", 1.5),
    "bytes_per_point_sq8": ("≤", 900.0),
    "insert_to_searchable_p99_ms": ("≤", 20.0),
}
_COLUMNS: Final = (
    ("recall_at_10", "recall@10"),
    ("effort", "ef"),
    ("inserts_per_s", "inserts/s"),
    ("insert_cpu_ms_per_point", "processor ms per insert"),
    ("search_qps", "searches/s"),
    ("search_p50_ms", "p50 ms"),
    ("search_p99_ms", "p99 ms"),
    ("search_batch32_qps", "searches/s, batches of 32"),
    ("under_ingest_qps", "searches/s while inserting"),
    ("under_ingest_p99_ms", "p99 ms while inserting"),
    ("insert_to_searchable_p99_ms", "insert → searchable p99 ms"),
    ("resident_bytes_per_point", "resident bytes per point"),
    ("disk_bytes_per_point", "disk bytes per point"),
    ("restart_s", "restart s"),
)


def render(content: dict[str, Any]) -> str:
    """Markdown of the content of `index.json`."""
    values = {result["name"]: result["value"] for result in content["results"]}
    lines = [
        "# Index benchmark",
        "",
        f"Commit `{content['commit']}`, {content['hardware']}, {content['started_at']}, seed {content['seed']}. "
        "Written by `make bench-index`; the figures are those of `index.json`.",
        "",
        content["method"],
        "",
        *_table(
            ["figure", "value", "target", "met"],
            [
                [f"`{name}`", _number(values[name]), f"{sign} {target:g}", _met(values[name], sign, target)]
                for name, (sign, target) in TARGETS.items()
                if name in values
            ],
        ),
    ]
    for dataset in content["datasets"]:
        lines += ["", f"## {dataset['name']}: {dataset['points']:,} points of {dataset['dimension']} dimensions", ""]
        lines += _table(
            ["system", *(title for _, title in _COLUMNS)],
            [
                [system["name"], *(_cell(values, system["name"], dataset["name"], metric) for metric, _ in _COLUMNS)]
                for system in dataset["systems"]
            ],
        )
        failures = [system for system in dataset["systems"] if system["failure"]]
        lines += [""] if failures else []
        lines += [f"- **{system['name']}** failed: {_escaped(system['failure'])}" for system in failures]
    lines += ["", "## Systems", ""]
    systems = {system["name"]: system for dataset in content["datasets"] for system in dataset["systems"]}
    lines += _table(
        ["system", "what", "graph holds", "durable"],
        [
            [name, _escaped(system["versions"]), system["quantization"], system["durable"]]
            for name, system in systems.items()
        ],
    )
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _cell(values: dict[str, float], system: str, dataset: str, metric: str) -> str:
    value = values.get(f"{system}_{dataset}_{metric}")
    return "–" if value is None else _number(value)


def _number(value: float) -> str:
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _met(value: float, sign: str, target: float) -> str:
    return "yes" if (value >= target if sign == "≥" else value <= target) else "**no**"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
