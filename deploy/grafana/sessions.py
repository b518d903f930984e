"""The dashboard of sessions: their number, endings and branching, and the store of durable ones."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import INSTANCE, RATE, Board, Row, assemble
from deploy.grafana.panels import COUNT, GREEN, RED, SECONDS, SHARE, About, Panel, Query, State, heat, lines, states

OPERATIONS = ("forks", "checkpoints", "rewinds", "restores", "upgrades")
OPENED = 'method=~"Open|Restore",outcome="ok"'
SESSIONS = "suffix: sessions/s"
WRITES = "suffix: writes/s"


def board() -> Dashboard:
    about = Board("tidegate-sessions", "Sessions and store", "Open sessions, and the store of durable ones.")
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
            About(
                "Sessions held", "Sessions in memory. Ephemeral ones exist only here; durable ones are copies.", COUNT
            ),
            Query(f"sum by (tier, instance) (tidegate_sessions{{{INSTANCE}}})", "{{tier}} {{instance}}"),
        ),
        lines(
            About("Opened and restored", "Successful requests; opening an open session again counts too.", SESSIONS),
            Query(
                f"sum by (method) (rate(tidegate_requests_total{{{INSTANCE},{OPENED}}}[{RATE}]))",
                "{{method}}",
            ),
        ),
        lines(
            About("Ephemeral sessions ended", "By reason. Evicted sessions are lost.", SESSIONS),
            Query(_rate("tidegate_sessions_ended_total", "reason"), "{{reason}}"),
            is_stacked=True,
        ),
        lines(
            About(
                "Evictions",
                "Sessions evicted from a full arena. Durable ones are read again at their next step.",
                SESSIONS,
            ),
            Query(_rate("tidegate_evictions_total", "tier, reason"), "{{tier}} {{reason}}"),
        ),
        lines(
            About(
                "Evicted share of sessions held",
                "Within five minutes. Alert: above 10 %, the arena is too small.",
                SHARE,
            ),
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
                "Repeated chunks that got the stored reply: clients retry.",
                "suffix: chunks/s",
            ),
            Query(_rate("tidegate_repeats_total", "model, version"), "{{model}}/{{version}}"),
            width=8,
        ),
        lines(
            About(
                "Position conflicts",
                "Chunks refused because the session is at another position: clients disagree.",
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
                "Store",
                "Whether the store can be written. While it is away, durable steps fail with UNAVAILABLE.",
                COUNT,
            ),
            Query(f"tidegate_store_up{{{INSTANCE}}}", "{{store}} {{instance}}"),
            (State("away", RED), State("up", GREEN)),
        ),
        lines(
            About("Commit time", "Time of a group of writes. Every durable step waits for one.", SECONDS),
            *(
                Query(f"histogram_quantile({q}, {commits})", f"{{{{store}}}} p{round(100 * q)}")
                for q in (0.5, 0.95, 0.99)
            ),
            limit=0.25,
        ),
        heat(About("Commit time, distribution", "Number of groups of writes by their time.", SECONDS), increase),
        lines(
            About("Commit time by server, p99", "Over five minutes. Alert: above 0.25 s.", SECONDS),
            Query(
                f"job_instance_store:tidegate_store_commit_seconds:p99_rate5m{{{INSTANCE}}}", "{{store}} {{instance}}"
            ),
            limit=0.25,
        ),
        lines(
            About("Writes", "A write commits one session.", WRITES),
            Query(_rate("tidegate_store_writes_total", "store, instance"), "{{store}} {{instance}}"),
        ),
        lines(
            About("Writes per group", "Mean number of commits that share a transaction or a round trip.", COUNT),
            Query(f"{_rate('tidegate_store_writes_total', 'store, instance')} / {groups}", "{{store}} {{instance}}"),
            width=8,
        ),
        lines(
            About(
                "Conflicts",
                "Share of writes that conflict. Alert: above 10 %, several replicas serve one session.",
                SHARE,
            ),
            Query(f"job_instance_store:tidegate_store_conflicts:ratio_rate5m{{{INSTANCE}}}", "{{store}} {{instance}}"),
            width=8,
            limit=0.1,
        ),
        lines(
            About("Writes without an answer", "Their outcome is unknown until the session is read again.", WRITES),
            Query(_rate("tidegate_store_failures_total", "store, instance"), "{{store}} {{instance}}"),
            width=8,
        ),
    ]
