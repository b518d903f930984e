"""The dashboard of the engine: steps, runs and their batch sizes, queues, the arena."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import INSTANCE, MODEL, RATE, Board, Row, assemble
from deploy.grafana.panels import BYTES, COUNT, SECONDS, SHARE, About, Panel, Query, heat, lines, listing

BY = "instance, model, version"
NAME = "{{model}}/{{version}} {{instance}}"
STEPS = "suffix: steps/s"
RUNS = "suffix: runs/s"


def board() -> Dashboard:
    about = Board("tidegate-engine", "Engine and batching", "Steps, batches, waiting times and memory of the engine.")
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
            About("Steps by kind", "Steps of sessions, prompts, stateless predictions and generations.", STEPS),
            Query(_rate("tidegate_steps_total", "kind"), "{{kind}}"),
            is_stacked=True,
        ),
        lines(
            About("Steps by model", "Steps of all kinds.", STEPS),
            Query(_rate("tidegate_steps_total"), NAME),
        ),
        lines(
            About("Generated tokens", "Tokens sampled and sent.", "suffix: tokens/s"),
            Query(_rate("tidegate_generated_tokens_total"), NAME),
        ),
        lines(
            About("Unanswered chunks", "Chunks waiting or running. Above --max-queue new ones are refused.", COUNT),
            Query(f"sum by ({BY}) (tidegate_queued_chunks{{{MODEL}}})", NAME),
        ),
    ]


def _batching() -> list[Panel]:
    return [
        lines(
            About(
                "Rows per run",
                "Mean number of sessions that share a run, over five minutes. More rows make a step cheaper.",
                COUNT,
            ),
            Query(f"job_instance_model:tidegate_run_rows:mean_rate5m{{{MODEL}}}", NAME),
        ),
        heat(
            About("Rows per run, distribution", "Number of runs by their number of rows.", COUNT),
            _increase("tidegate_run_rows"),
        ),
        lines(
            About("Runs", "Runs of onnxruntime.", RUNS),
            Query(_rate("tidegate_runs_total"), NAME),
        ),
        lines(
            About(
                "Padding",
                "Share of computed steps that only pad a run: 0 on a CPU, batch buckets with CUDA graphs.",
                SHARE,
            ),
            Query(f"job_instance_model:tidegate_padding_steps:ratio_rate5m{{{MODEL}}}", NAME),
        ),
    ]


def _time() -> list[Panel]:
    run, steps, runs = (_rate(f"tidegate_{name}_total") for name in ("run_seconds", "steps", "runs"))
    return [
        lines(
            About("Waiting", "Time from a chunk's arrival to its first run. Alert: p95 above 0.5 s.", SECONDS),
            *_quantiles("tidegate_queue_seconds"),
            limit=0.5,
        ),
        lines(
            About("Waiting by server, p95", "Over five minutes; the alert uses this series.", SECONDS),
            Query(f"job_instance_model:tidegate_queue_seconds:p95_rate5m{{{MODEL}}}", NAME),
            limit=0.5,
        ),
        lines(
            About("Ticks", "Time of a tick: plan, gather, run, commit, scatter, reply.", SECONDS),
            *_quantiles("tidegate_tick_seconds"),
        ),
        heat(
            About("Ticks, distribution", "Number of ticks by their time.", SECONDS), _increase("tidegate_tick_seconds")
        ),
        lines(
            About(
                "Time inside onnxruntime",
                "Share of one core; more with --threads. At 1 the model is the bottleneck.",
                SHARE,
            ),
            Query(run, NAME),
            limit=1,
        ),
        lines(
            About("Run time", "Mean time of a run, and of one step in it.", SECONDS),
            Query(f"{run} / {runs}", f"run {NAME}"),
            Query(f"{run} / {steps}", f"step {NAME}"),
        ),
    ]


def _arena() -> list[Panel]:
    used = f"sum by (instance) (tidegate_arena_bytes{{{INSTANCE}}})"
    return [
        lines(
            About("Arena", "Memory for states, allocated as needed.", BYTES),
            Query(used, "{{instance}}"),
            width=6,
        ),
        lines(
            About("Arena, share of its limit", "Used share of --arena-mb. A full arena evicts sessions.", SHARE),
            Query(f"{used} / sum by (instance) (tidegate_arena_limit_bytes{{{INSTANCE}}})", "{{instance}}"),
            width=6,
            limit=1,
        ),
        lines(
            About("Slots in use", "Sessions and unfinished chunks with a state in memory.", COUNT),
            Query(f"sum by ({BY}) (tidegate_arena_slots{{{MODEL}}})", NAME),
        ),
        lines(
            About("Failed runs", "All rows of a failed run fail; their sessions keep their positions.", RUNS),
            Query(_rate("tidegate_failed_runs_total"), NAME),
            width=6,
        ),
        lines(
            About("Bundles loaded and refused", "At starts and reloads, in the last hour.", COUNT),
            Query(f"sum by (outcome) (increase(tidegate_model_loads_total{{{INSTANCE}}}[1h]))", "{{outcome}}"),
            width=6,
        ),
        listing(
            About("Models", "Loaded models and where they run.", COUNT),
            Query(f"tidegate_model_info{{{MODEL}}}", ""),
            ["instance", "model", "version", "task", "cell", "provider"],
        ),
    ]
