"""What is promised, and from where on somebody is told. Dashboards draw these lines and alerts fire at them."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from contract.settings import Settings
from contract.telemetry import DELAY_BUCKETS_S

# Of all uploads, this share is searchable within that time, over 30 days.
SEARCHABLE_SHARE: Final = 0.99
SEARCHABLE_WITHIN_S: Final = 5.0
# The histogram can only be asked at the bounds of its buckets.
assert SEARCHABLE_WITHIN_S in DELAY_BUCKETS_S  # noqa: S101

# Age of the oldest event that is not searchable.
STALE_S: Final = 60.0
# Half of where uploads begin to be refused.
LAG_MESSAGES: Final = int(Settings.model_fields["upload_lag_max"].default) // 2
SEARCH_P99_S: Final = 0.5
# Of searches refused, of answers that failed, and of shard calls that are late.
REFUSED_SHARE: Final = 0.01
FAILED_SHARE: Final = 0.01
LATE_SHARE: Final = 0.01
# Coverage is 1 unless a shard is missing; what is left allows for one search in a thousand.
COVERAGE: Final = 0.999
RECALL: Final = 0.9
# Against the same shard a day before.
RECALL_DRIFT: Final = 0.03
RECALL_SAMPLES: Final = 50
# Of events that became dead letters because of their picture.
REJECTED_SHARE: Final = 0.2
DISK_FREE_LOW: Final = 0.15
DISK_FREE_CRITICAL: Final = 0.05
MEMORY_LOW: Final = 0.1
MEMORY_CRITICAL: Final = 0.04
# Twelve times the default interval of snapshots.
SNAPSHOT_AGE_S: Final = 12 * float(Settings.model_fields["snapshot_interval_s"].default)
RESTARTS: Final = 2
DECODERS_LOST: Final = 5


class BurnRate(Struct, frozen=True):
    """Too fast a use of the error budget: `factor` times what the budget allows, in both windows.

    The short window ends the alert soon after its cause. Source: Google, The Site Reliability Workbook, chapter 5,
    table 5-8.
    """

    long: str
    short: str
    factor: float
    severity: str


BURN_RATES: Final = (
    BurnRate("1h", "5m", 14.4, "critical"),
    BurnRate("6h", "30m", 6.0, "critical"),
    BurnRate("1d", "2h", 3.0, "warning"),
    BurnRate("3d", "6h", 1.0, "warning"),
)
# At few uploads a day, one slow one would burn the budget of a week; so many must have been slow.
SLOW_UPLOADS_MIN: Final = 10
