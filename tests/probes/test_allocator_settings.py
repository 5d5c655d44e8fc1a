"""The allocator's settings are said outright, so that no import changes them for some cells alone."""

from __future__ import annotations

import os

import pytest

from egobench.probes.allocator import ALLOCATOR, state_allocator

FORMER = "PYTORCH_CUDA_ALLOC_CONF"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ALLOCATOR, FORMER):
        monkeypatch.setenv(name, "")  # what a test sets is taken back
        monkeypatch.delenv(name)


def test_it_is_torchs_default_in_words_that_gptqmodel_finds() -> None:
    assert state_allocator() == "expandable_segments:False"
    assert os.environ[ALLOCATOR]  # GPTQModel writes its own where this is empty


@pytest.mark.parametrize("name", [ALLOCATOR, FORMER])
def test_somebodys_own_settings_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "expandable_segments:True")
    assert state_allocator() == os.environ[ALLOCATOR] == "expandable_segments:True"
