"""What a message says of an unknown name: what was probably meant, and what there is. The places that say it follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidegate.cli import app
from tidegate.client.endpoint import parse_endpoint
from tidegate.config import load_settings, misspelt_variables
from tidegate.errors import ConfigurationError, InvalidInputError, known_names, listed


def test_a_close_name_is_proposed_whatever_its_case() -> None:
    told = known_names("Shakspeare-LSTM", ["load-lstm", "shakespeare-lstm"], "there are")
    assert told == ": did you mean 'shakespeare-lstm'? There are load-lstm, shakespeare-lstm"
    assert known_names("x", ["load-lstm"], "there are") == ": there are load-lstm"
    assert known_names("x", [], "there are") == ": there are none"


def test_a_list_of_names_is_bounded_and_long_or_odd_names_are_cut_and_quoted() -> None:
    assert listed(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed(["a\nb", "c" * 200]) == f"'a\\nb', '{'c' * 128}'…"
    assert len(known_names("c" * 10**6, ["c" * 10**6], "there are")) < 400


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"store": "rdis://u:secret@h"}, "did you mean 'redis://'?"),
        ({"store": "sqlit"}, "did you mean 'sqlite'?"),
        ({"log_level": "dbug"}, "did you mean 'debug'?"),
        ({"http": "unx:/run/tidegate"}, "did you mean 'unix:'?"),
        ({"http": "http://127.0.0.1:8080"}, "leave http:// out"),
        ({"otlp": "htp://127.0.0.1:4317"}, "did you mean 'http://'?"),
    ],
)
def test_a_setting_with_an_unknown_word_or_scheme_proposes_one(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags)
    assert message in caught.value.message
    assert "secret" not in caught.value.message


def test_a_misspelt_key_of_the_file_proposes_one(tmp_path: Path) -> None:
    (tmp_path / "tidegate.toml").write_text("thread = 2\n")
    with pytest.raises(ConfigurationError, match="did you mean 'threads'"):
        load_settings({}, tmp_path / "tidegate.toml")


def test_a_misspelt_variable_is_warned_of_but_no_variable_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEGATE_MAX_ROW", "TIDEGATE_PORT", "TIDEGATE_SERVICE_HOST", "TIDEGATE_HTTP_PORT", "TIDEGATE_TOKEN"):
        monkeypatch.setenv(name, "1")
    assert misspelt_variables() == ["'TIDEGATE_MAX_ROW' is not a setting: did you mean 'TIDEGATE_MAX_ROWS'?"]


@pytest.mark.parametrize(
    ("address", "message"),
    [("grpcs://h:1", "did you mean 'https'?"), ("htp://h:1", "did you mean 'http'?"), ("unx:/run/t", "'unix:'?")],
)
def test_an_address_with_an_unknown_scheme_proposes_one(address: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_endpoint(address)
    assert message in caught.value.message


def test_the_password_of_an_address_is_not_shown() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_endpoint("https://user:secret@h:1")
    assert "secret" not in caught.value.message


def test_a_misspelt_verb_proposes_one() -> None:
    result = CliRunner().invoke(app, ["serv"])
    assert (result.exit_code, "did you mean 'serve'? There are serve, predict" in result.output) == (2, True)
