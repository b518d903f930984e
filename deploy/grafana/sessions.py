"""The dashboard of sessions: how many there are, how they end, branching, and the store of durable ones."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import INSTANCE, RATE, Board, Row, assemble
from deploy.grafana.panels import COUNT, GREEN, RED, SECONDS, SHARE, About, Panel, Query, State, heat, lines, states

OPERATIONS = ("forks", "checkpoints", "rewinds", "restores", "upgrades")
OPENED = 'method=~"Open|Restore",outcome="ok"'
SESSIONS = "suffix: sessions/s"
WRITES = "suffix: writes/s"


def board() -> Dashboard:
    about = Board("tidegate-sessions", "Sessions and store", "Running sequences, and where the durable ones are kept.")
    rows = [
        Row("Sessions", _sessions()),
        Row("Repeats and branching", _branching()),
        Row("Store", _store()),
    ]
    return assemble(about, rows)


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{INSTANCE}}}[{RATE}]))"


def _sessions() -> list[Panel]:
    return [
        lines(
            About("Sessions held", "Ephemeral ones live nowhere else; of durable ones these are copies.", COUNT),
            Query(f"sum by (tier, instance) (tidegate_sessions{{{INSTANCE}}})", "{{tier}} {{instance}}"),
        ),
        lines(
            About(
                "Opened and restored", "Requests that succeeded; opening again what is open counts as well.", SESSIONS
            ),
            Query(
                f"sum by (method) (rate(tidegate_requests_total{{{INSTANCE},{OPENED}}}[{RATE}]))",
                "{{method}}",
            ),
        ),
        lines(
            About("Ephemeral sessions ended", "By reason. Evicted ones lost their state.", SESSIONS),
            Query(_rate("tidegate_sessions_ended_total", "reason"), "{{reason}}"),
            is_stacked=True,
        ),
        lines(
            About(
                "Evictions", "Sessions that made room in the arena. Durable ones are read again when stepped.", SESSIONS
            ),
            Query(_rate("tidegate_evictions_total", "tier, reason"), "{{tier}} {{reason}}"),
        ),
        lines(
            About("Evicted of those held", "Within five minutes. Above 10 % an alert: the arena is too small.", SHARE),
            Query(
                f"job_instance_tier:tidegate_evictions:ratio_increase5m{{{INSTANCE}}}",
                "{{tier}} {{instance}}",
            ),
            width=24,
            limit=0.1,
        ),
    ]


def _branching() -> list[Panel]:
    return [
        lines(
            About(
                "Repeats served",
                "Chunks that came again and got the stored reply: retries at work.",
                "suffix: chunks/s",
            ),
            Query(_rate("tidegate_repeats_total", "model, version"), "{{model}}/{{version}}"),
            width=8,
        ),
        lines(
            About(
                "Position conflicts",
                "Chunks refused because their session is elsewhere: clients that disagree.",
                "suffix: chunks/s",
            ),
            Query(_rate("tidegate_conflicts_total", "model, version"), "{{model}}/{{version}}"),
            width=8,
        ),
        lines(
            About("Branching", "Forks, checkpoints, rewinds, restored snapshots, upgrades.", "suffix: calls/s"),
            *(Query(f"sum(rate(tidegate_{name}_total{{{INSTANCE}}}[{RATE}]))", name) for name in OPERATIONS),
            width=8,
        ),
    ]


def _store() -> list[Panel]:
    commits = f"sum by (store, le) (rate(tidegate_store_commit_seconds_bucket{{{INSTANCE}}}[{RATE}]))"
    increase = f"sum by (le) (increase(tidegate_store_commit_seconds_bucket{{{INSTANCE}}}[{RATE}]))"
    groups = _rate("tidegate_store_commit_seconds_count", "store, instance")
    return [
        states(
            About(
                "Store", "Whether it answers. While it is away, steps of durable sessions end with UNAVAILABLE.", COUNT
            ),
            Query(f"tidegate_store_up{{{INSTANCE}}}", "{{store}} {{instance}}"),
            (State("away", RED), State("up", GREEN)),
        ),
        lines(
            About("Commit time", "Of a group of writes: every durable step waits for one.", SECONDS),
            *(
                Query(f"histogram_quantile({q}, {commits})", f"{{{{store}}}} p{round(100 * q)}")
                for q in (0.5, 0.95, 0.99)
            ),
            limit=0.25,
        ),
        heat(About("Commit time, all", "How many groups took how long.", SECONDS), increase),
        lines(
            About("Commit time by server, p99", "Over five minutes. Above 0.25 s an alert.", SECONDS),
            Query(
                f"job_instance_store:tidegate_store_commit_seconds:p99_rate5m{{{INSTANCE}}}", "{{store}} {{instance}}"
            ),
            limit=0.25,
        ),
        lines(
            About("Writes", "Each is the commit of one session.", WRITES),
            Query(_rate("tidegate_store_writes_total", "store, instance"), "{{store}} {{instance}}"),
        ),
        lines(
            About("Writes in a group", "How many commits share a transaction, or a round trip.", COUNT),
            Query(f"{_rate('tidegate_store_writes_total', 'store, instance')} / {groups}", "{{store}} {{instance}}"),
            width=8,
        ),
        lines(
            About(
                "Conflicts", "Share of writes that came second. Above 10 % an alert: replicas share sessions.", SHARE
            ),
            Query(f"job_instance_store:tidegate_store_conflicts:ratio_rate5m{{{INSTANCE}}}", "{{store}} {{instance}}"),
            width=8,
            limit=0.1,
        ),
        lines(
            About("Writes without an answer", "Nobody knows what became of them until they are read again.", WRITES),
            Query(_rate("tidegate_store_failures_total", "store, instance"), "{{store}} {{instance}}"),
            width=8,
        ),
    ]
