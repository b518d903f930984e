"""The dashboard of model quality: surprise and its control chart, inputs, intervals."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import MODEL, RATE, Board, Row, assemble
from deploy.grafana.panels import (
    COUNT,
    GREEN,
    ORANGE,
    RED,
    REQUESTS,
    SHARE,
    About,
    Panel,
    Query,
    State,
    dashed,
    heat,
    lines,
    states,
)

BY = "model, version"
NAME = "{{model}}/{{version}}"
STATES = (State("normal", GREEN), State("warning", ORANGE), State("drift", RED))
UNIT = "In bits per step (text), or relative to the seasonal naive forecast's error."


def board() -> Dashboard:
    about = Board(
        "tidegate-quality",
        "Model quality and drift",
        "How well models predict their next input, and whether that changes.",
    )
    rows = [
        Row("Drift", _drift()),
        Row("Surprise", _surprise()),
        Row("Inputs and intervals", _inputs()),
    ]
    return assemble(about, rows, is_by_model=True)


def _rate(metric: str) -> str:
    return f"sum by ({BY}) (rate({metric}{{{MODEL}}}[{RATE}]))"


def _per_step(metric: str) -> str:
    return f"{_rate(metric)} / {_rate('tidegate_surprise_steps_total')}"


def _drift() -> list[Panel]:
    def of(state: str) -> str:
        return f'max by (instance, {BY}) (tidegate_drift_state{{{MODEL},state="{state}"}})'

    return [
        states(
            About("State", "State of each model's control chart on each server: see docs/monitoring.md.", COUNT),
            # Workers may differ in their state: the worst is shown.
            Query(f"clamp_max({of('warning')} + 2 * {of('drift')}, 2)", f"{NAME} {{{{instance}}}}"),
            STATES,
        ),
        _chart(),
        lines(
            About("Changes of state", "Changes in the last hour, by the new state.", COUNT),
            Query(
                f"sum by ({BY}, state) (increase(tidegate_drift_changes_total{{{MODEL}}}[1h]))", f"{NAME} {{{{state}}}}"
            ),
            width=24,
        ),
    ]


def _chart() -> Panel:
    """Return the control chart of one model, repeated for each selected model."""
    about = About(
        "Control chart of $model",
        "Moving average of the surprise of blocks of steps, and its limits. They widen over the first blocks.",
        COUNT,
    )
    limits = f"max by ({BY}, limit, side) (tidegate_drift_limit{{{MODEL}}})"
    panel = lines(
        about,
        Query(f"tidegate_drift_ewma{{{MODEL}}}", "{{version}} {{instance}}"),
        Query(limits, "{{version}} {{limit}} {{side}}"),
        width=24,
        is_from_zero=False,
    )
    dashed(dashed(panel, "/ warning /", ORANGE), "/ drift /", RED)
    return panel.repeat("model").repeat_direction("h").max_per_row(2)


def _surprise() -> list[Panel]:
    increase = f"sum by (le) (increase(tidegate_surprise_bucket{{{MODEL}}}[{RATE}]))"
    return [
        lines(
            About("Mean surprise", f"{UNIT} Over all servers.", COUNT),
            Query(_per_step("tidegate_surprise_sum_total"), NAME),
        ),
        lines(
            About("Mean surprise over five minutes", f"{UNIT} The recorded series.", COUNT),
            Query('job_model:tidegate_surprise:mean_rate5m{job=~"$job",model=~"$model",version=~"$version"}', NAME),
        ),
        heat(About("Blocks", f"Number of blocks of steps by their mean surprise. {UNIT}", COUNT), increase),
        lines(
            About("Steps scored", "Generated tokens, prompts and repeats do not count.", "suffix: steps/s"),
            Query(_rate("tidegate_surprise_steps_total"), NAME),
        ),
        lines(
            About(
                "Surprise that is not finite",
                "A state overflowed, or weights are damaged. Alert: any.",
                "suffix: steps/s",
            ),
            Query(_rate("tidegate_surprise_nan_total"), NAME),
            width=24,
        ),
    ]


def _inputs() -> list[Panel]:
    recorded = 'job=~"$job",model=~"$model",version=~"$version"'
    return [
        lines(
            About(
                "Coverage",
                "Share of inputs inside the 80 % interval that the step before predicted, over an hour.",
                SHARE,
            ),
            Query(f"job_model:tidegate_forecast_coverage:ratio_rate1h{{{recorded}}}", NAME),
        ),
        lines(
            About(
                "Unusual inputs per step",
                "Unknown tokens and values outside the training range, over an hour. Alert: above 0.05.",
                COUNT,
            ),
            Query(f"job_model:tidegate_unusual_inputs:per_step_rate1h{{{recorded}}}", NAME),
            limit=0.05,
        ),
        lines(
            About("Unknown tokens per step", "Tokens outside the vocabulary.", COUNT),
            Query(_per_step("tidegate_input_unknown_total"), NAME),
            width=8,
        ),
        lines(
            About(
                "Values out of range per step", "Values below the minimum or above the maximum of the training.", COUNT
            ),
            Query(_per_step("tidegate_input_out_of_range_total"), NAME),
            width=8,
        ),
        lines(
            About("Missing values", "Requests refused for a value that is not finite.", REQUESTS),
            Query(_rate("tidegate_input_missing_total"), NAME),
            width=8,
        ),
    ]
