"""Settings of any kind: read or refused, and the same after a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.faults import judged
from tests.fuzz.hostile import (
    KEYS,
    Drawn,
    answer,
    cases,
    configs,
    damaged,
    encoded,
    files,
    numbers,
    texts,
    toml,
    toml_text,
    values,
)

from augury_train.config import (
    RunConfig,
    assign_text,
    load_config,
    parse_composition,
    parse_method,
    read_config,
    read_recipe,
    read_value,
    save_config,
)


@cases(15, found=configs())
def test_settings_are_read_or_refused_and_stay_what_they_are(tmp_path: Path, found: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(encoded(json.dumps(found)))
    config = answer(lambda: load_config(path), judged(found))
    if isinstance(config, RunConfig):
        save_config(config, path)
        assert load_config(path) == config
    answer(lambda: read_config(found))


@cases(15, content=files(configs().map(lambda found: encoded(json.dumps(found)))))
def test_any_file_can_lie_in_the_place_of_settings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    answer(lambda: load_config(path))


@cases(15, content=files(configs().map(lambda found: encoded(toml_text(found)))))
def test_any_file_can_be_given_as_a_recipe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    found = answer(lambda: read_recipe(path))
    if found is not None:
        answer(lambda: read_config(found))


words = texts | st.text("abk:=+,.[]{}\"' 01\n-_\x1b", max_size=30)
assignments = st.builds(lambda key, value: f"{key}={value}", words, words | values.map(toml))


@cases(20, text=words | assignments.map(lambda text: f"isda:{text}") | st.builds("{}:{}".format, words, assignments))
def test_methods_of_the_command_line(text: str) -> None:
    answer(lambda: parse_composition(text))
    answer(lambda: parse_method(text))


settings_keys = st.sampled_from(
    [f"{a}.{b}" if b else a for a, b in KEYS] + ["methods.isda.lambda_0", "a" + ".a" * 5000]
)


@cases(20, text=words | assignments | st.builds("{}={}".format, settings_keys | words, values.map(toml) | words))
def test_assignments_of_the_command_line(text: str) -> None:
    for before in ({}, {"methods": [{"name": "isda", "options": 3}, {"name": ["isda"]}, 5]}, {"data": []}):
        values_now: dict[str, Any] = json.loads(json.dumps(before))
        answer(lambda values_now=values_now, text=text: assign_text(values_now, text))
        answer(lambda values_now=values_now: read_config(values_now))


@cases(
    10,
    options=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.integers(-9, 9), max_size=3),
        max_size=4,
    ),
)
def test_a_method_reads_as_it_was_printed(options: dict[str, Any]) -> None:
    said = ",".join(f"{key}={toml(value)}" for key, value in options.items())
    assert parse_method("isda" + (f":{said}" if said else "")) == ("isda", options)
    for value in options.values():
        assert read_value(toml(value)) == value


@cases(6, number=numbers, path=st.sampled_from(KEYS))
def test_numbers_of_any_size_are_read_or_refused(number: float, path: tuple[str, str]) -> None:
    section, key = path
    config = answer(lambda: read_config({section: {key: number} if key else number}))
    assert config is None or isinstance(config, RunConfig)


@cases(3, content=damaged(b'data.dataset = "digits"\n' * 1))
def test_ten_megabytes_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content + b"a." * 5_000_000)
    answer(lambda: read_recipe(path), Drawn(due="refused", about="larger than 1 MiB"))
    path.write_bytes(b'data.dataset = "' + b"x" * 500_000 + b'"')
    answer(lambda: read_recipe(path), Drawn(due="refused", about="500,000 characters; 10,000 are allowed"))
    path.write_bytes(b"a." * 400_000 + b"a = 1")
    answer(lambda: read_recipe(path), Drawn(due="refused", about="more than 32 parts"))
