"""The dashboard of what the engine does: steps, runs and how full they are, queues, the arena."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import INSTANCE, MODEL, RATE, Board, Row, assemble
from deploy.grafana.panels import BYTES, COUNT, SECONDS, SHARE, About, Panel, Query, heat, lines, listing

BY = "instance, model, version"
NAME = "{{model}}/{{version}} {{instance}}"
STEPS = "suffix: steps/s"
RUNS = "suffix: runs/s"


def board() -> Dashboard:
    about = Board("tidegate-engine", "Engine and batching", "How steps of many sessions share runs, and what waits.")
    rows = [
        Row("Steps", _steps()),
        Row("Batching", _batching()),
        Row("Time", _time()),
        Row("Arena and models", _arena()),
    ]
    return assemble(about, rows, is_by_model=True)


def _rate(metric: str, by: str = BY) -> str:
    return f"sum by ({by}) (rate({metric}{{{MODEL}}}[{RATE}]))"


def _quantiles(metric: str) -> list[Query]:
    buckets = f"sum by (model, version, le) (rate({metric}_bucket{{{MODEL}}}[{RATE}]))"
    name = "{{model}}/{{version}}"
    return [Query(f"histogram_quantile({q}, {buckets})", f"{name} p{round(100 * q)}") for q in (0.5, 0.95, 0.99)]


def _increase(metric: str) -> str:
    return f"sum by (le) (increase({metric}_bucket{{{MODEL}}}[{RATE}]))"


def _steps() -> list[Panel]:
    return [
        lines(
            About("Steps by kind", "Of sessions, of prompts, of stateless predictions, and generated ones.", STEPS),
            Query(_rate("tidegate_steps_total", "kind"), "{{kind}}"),
            is_stacked=True,
        ),
        lines(
            About("Steps by model", "All kinds.", STEPS),
            Query(_rate("tidegate_steps_total"), NAME),
        ),
        lines(
            About("Generated tokens", "Tokens that were sampled and sent.", "suffix: tokens/s"),
            Query(_rate("tidegate_generated_tokens_total"), NAME),
        ),
        lines(
            About("Chunks not answered yet", "Waiting or in a run. At --max-queue more are refused.", COUNT),
            Query(f"sum by ({BY}) (tidegate_queued_chunks{{{MODEL}}})", NAME),
        ),
    ]


def _batching() -> list[Panel]:
    return [
        lines(
            About(
                "Rows in a run",
                "Sessions that share a run, on average over five minutes. More is cheaper a step.",
                COUNT,
            ),
            Query(f"job_instance_model:tidegate_run_rows:mean_rate5m{{{MODEL}}}", NAME),
        ),
        heat(About("Rows in a run, all", "How many runs had how many rows.", COUNT), _increase("tidegate_run_rows")),
        lines(
            About("Runs", "Of onnxruntime.", RUNS),
            Query(_rate("tidegate_runs_total"), NAME),
        ),
        lines(
            About(
                "Padding",
                "Share of computed steps that only filled a run up: none on a CPU, else the buckets of CUDA graphs.",
                SHARE,
            ),
            Query(f"job_instance_model:tidegate_padding_steps:ratio_rate5m{{{MODEL}}}", NAME),
        ),
    ]


def _time() -> list[Panel]:
    run, steps, runs = (_rate(f"tidegate_{name}_total") for name in ("run_seconds", "steps", "runs"))
    return [
        lines(
            About(
                "Waiting", "From a chunk's arrival in the engine to its first run. An alert at 0.5 s (p95).", SECONDS
            ),
            *_quantiles("tidegate_queue_seconds"),
            limit=0.5,
        ),
        lines(
            About("Waiting by server, p95", "Over five minutes: what the alert judges.", SECONDS),
            Query(f"job_instance_model:tidegate_queue_seconds:p95_rate5m{{{MODEL}}}", NAME),
            limit=0.5,
        ),
        lines(
            About("Ticks", "Plan, gather, run, commit, scatter, reply.", SECONDS),
            *_quantiles("tidegate_tick_seconds"),
        ),
        heat(About("Ticks, all", "How many ticks took how long.", SECONDS), _increase("tidegate_tick_seconds")),
        lines(
            About(
                "Time inside onnxruntime",
                "Share of one core, or more with --threads. At 1 the model is the limit.",
                SHARE,
            ),
            Query(run, NAME),
            limit=1,
        ),
        lines(
            About("Run time", "Of one run, and of one step in it.", SECONDS),
            Query(f"{run} / {runs}", f"run {NAME}"),
            Query(f"{run} / {steps}", f"step {NAME}"),
        ),
    ]


def _arena() -> list[Panel]:
    used = f"sum by (instance) (tidegate_arena_bytes{{{INSTANCE}}})"
    return [
        lines(
            About("Arena", "Memory for states, taken as it is needed.", BYTES),
            Query(used, "{{instance}}"),
            width=6,
        ),
        lines(
            About("Arena of its limit", "What is taken of --arena-mb. Full, it evicts.", SHARE),
            Query(f"{used} / sum by (instance) (tidegate_arena_limit_bytes{{{INSTANCE}}})", "{{instance}}"),
            width=6,
            limit=1,
        ),
        lines(
            About("Slots in use", "Sessions and unfinished chunks whose state is in memory.", COUNT),
            Query(f"sum by ({BY}) (tidegate_arena_slots{{{MODEL}}})", NAME),
        ),
        lines(
            About("Failed runs", "Each took all its rows with it; their sessions stayed where they were.", RUNS),
            Query(_rate("tidegate_failed_runs_total"), NAME),
            width=6,
        ),
        lines(
            About("Bundles loaded and refused", "By starts and reloads, in the last hour.", COUNT),
            Query(f"sum by (outcome) (increase(tidegate_model_loads_total{{{INSTANCE}}}[1h]))", "{{outcome}}"),
            width=6,
        ),
        listing(
            About("Models", "What is loaded, and where it runs.", COUNT),
            Query(f"tidegate_model_info{{{MODEL}}}", ""),
            ["instance", "model", "version", "task", "cell", "provider"],
        ),
    ]
