"""``tidegate predict``: one call to a running server, for one sequence or several."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tidegate.api import Forecast, Input, Prediction, PredictResult
from tidegate.cli.connection import DEFAULT_SERVER, Server, connected, reaches_grpc
from tidegate.cli.output import AsJson, print_table
from tidegate.client import read_wav
from tidegate.errors import ConfigurationError, InvalidInputError, known_names, listed
from tidegate.slices import at_once
from tidegate.transports.http.convert import predict_json
from tidegate.transports.http.large_json import write


@reaches_grpc
def predict(  # noqa: PLR0913, PLR0917 - one parameter per option
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    text: Annotated[list[str] | None, typer.Option(help="Text of one sequence; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file of one sequence; - for standard input.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="CSV file with a column for each feature.")] = None,
    tokens: Annotated[
        list[str] | None, typer.Option(help="Token ids of one sequence, like 17,4,9; repeatable.")
    ] = None,
    wav: Annotated[
        Path | None, typer.Option(help="WAV file of one channel, at the sample rate that the model takes.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="Value of one of the model's settings, like limit=6 or speaker=[0.1,0.2]; repeatable.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Number of candidates for each step.")] = 5,
    every_step: Annotated[bool, typer.Option("--every-step", help="Print every step, not only the last.")] = False,
    version: Annotated[str | None, typer.Option(help="Version of the model.", show_default="highest")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Predict what comes next after a sequence: --text, --file, --csv, --tokens or --wav."""
    settings = dict(map(_parse_setting, inputs or ()))
    sequences = [*_texts(text, file), *map(_parse_tokens, tokens or ())]
    with connected(server) as client:
        if table is not None:
            sequences.append(Input(values=_read_csv(table, client.model(model, version).features)))
        if wav is not None:
            sequences.append(Input(values=read_wav(wav, client.model(model, version))))
        if not sequences:
            raise ConfigurationError("give a sequence: --text, --file, --csv, --tokens or --wav")
        result = client.predict(model, sequences, version=version, inputs=settings, top=top, every_step=every_step)
    if as_json:
        typer.echo(at_once(write(predict_json(result))))
    else:
        _print_result(result)


def _texts(texts: Sequence[str] | None, file: Path | None) -> Iterator[Input]:
    for text in texts or ():
        yield Input(text=text)
    if file is not None:
        yield Input(text=_read_text(file))


def _read_text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from None


def _parse_tokens(text: str) -> Input:
    try:
        return Input(tokens=[int(part) for part in text.split(",")])
    except ValueError:
        raise InvalidInputError(f"--tokens: {text!r} is not a list of ids like 17,4,9") from None


def _parse_setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        if separator and name:
            return name, json.loads(value.lower())
    except ValueError:
        pass
    raise InvalidInputError(f"--input: {text!r} is not NAME=VALUE, with a number or a list of numbers like [0.1,0.2]")


def _read_csv(file: Path, features: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the columns ``features`` of the file, [rows, features], in data units."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            _check_header(file, reader.fieldnames or (), features)
            rows = [_whole_row(file, row, reader.line_num) for row in reader]
    except OSError as error:
        raise InvalidInputError(f"{file}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file}: not a CSV in UTF-8: {error}") from None
    if not rows:
        raise InvalidInputError(f"{file}: no rows below a header")
    missing = [feature for feature in features if feature not in rows[0]]
    if missing or not features:
        there = known_names(missing[0], rows[0], "the file has") if missing else ""
        raise InvalidInputError(
            f"{file}: the model wants the columns {listed(features)}: {listed(missing)} missing{there}"
        )
    return np.array(
        [[_number(file, row, feature, line) for feature in features] for line, row in enumerate(rows, 2)], np.float32
    )


def _check_header(file: Path, header: Sequence[str], features: Sequence[str]) -> None:
    twice = [feature for feature in features if header.count(feature) > 1]
    if twice:
        raise InvalidInputError(f"{file}: the column {twice[0]} is there {header.count(twice[0])} times: keep one")


def _whole_row(file: Path, row: dict[str, str], line: int) -> dict[str, str]:
    if None in row:  # where DictReader puts what is beyond the header
        raise InvalidInputError(f"{file}, line {line}: more fields than the header has")
    return row


def _number(file: Path, row: dict[str, str], feature: str, line: int) -> float:
    try:
        return float(row[feature])
    except (TypeError, ValueError):
        raise InvalidInputError(f"{file}, line {line}: {feature} is {row[feature]!r}, not a number") from None


def _print_result(result: PredictResult) -> None:
    for index, prediction in enumerate(result.predictions):
        title = f"{result.model}/{result.version}, sequence {index}: {prediction.length} steps"
        if prediction.surprise is not None:
            title += f", surprise {prediction.surprise.mean:.3f} {prediction.surprise.unit}"
        _print_prediction(title, prediction)


def _print_prediction(title: str, prediction: Prediction) -> None:
    if prediction.next is not None:
        rows = [
            (str(step), repr(candidate.token), str(candidate.id), f"{candidate.probability:.4f}")
            for step, candidates in zip(_steps(prediction, prediction.next), prediction.next, strict=True)
            for candidate in candidates
        ]
        print_table(("after step", "next", "id", "probability"), rows, title)
    if prediction.forecast is not None:
        quantiles = [f"{quantile:g}" for quantile in prediction.forecast[0].quantiles]
        print_table(("after step", "ahead", *quantiles), list(_forecast_rows(prediction, prediction.forecast)), title)
    if prediction.outputs is not None:
        rows_of_tensors = [(name, str(tensor.dtype), str(tensor.shape)) for name, tensor in prediction.outputs.items()]
        print_table(("output", "dtype", "shape"), rows_of_tensors, f"{title} (--json prints the numbers)")


def _forecast_rows(prediction: Prediction, forecasts: Sequence[Forecast]) -> Iterator[tuple[str, ...]]:
    for step, forecast in zip(_steps(prediction, forecasts), forecasts, strict=True):
        for ahead, values in enumerate(forecast.values, 1):
            yield str(step), str(ahead), *(f"{value:.6g}" for value in values)


def _steps(prediction: Prediction, entries: Sequence[object]) -> range:
    """Return the step of each entry: all steps, or only the last."""
    return range(prediction.length - len(entries) + 1, prediction.length + 1)
