"""Names on a hub, with the hub's own client put aside: nothing here needs a network."""

from __future__ import annotations

import socket
import time
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from tunesmith.data import hub
from tunesmith.data.readers import read_rows
from tunesmith.errors import DataError, ModelError
from tunesmith.models.load import load


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)


def loaded_as(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None) -> Any:
        asked.append((name, config))
        rows = [{"question": "a?", "answer": "b"}]
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    return asked


def test_a_name_may_have_a_configuration_and_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = loaded_as(monkeypatch)
    [row] = read_rows("nobody/maths-v1.5@main")
    assert row.fields == {"question": "a?", "answer": "b"}
    assert str(row.origin) == "nobody/maths-v1.5@main[train]:1"
    list(read_rows("nobody/maths"))
    assert asked == [("nobody/maths-v1.5", "main"), ("nobody/maths", None)]
    with pytest.raises(DataError, match="no split 'test'"):
        list(read_rows("nobody/maths", split="test"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["nobody/nothing", "squad"])
def test_without_a_network_a_name_is_refused_at_once(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached") as refused:
        list(read_rows(name))
    assert repr(name) in str(refused.value)
    assert time.monotonic() - began < 5
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("no_network")
def test_without_a_network_a_model_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="cannot be reached"):
        load("nobody/nothing")
