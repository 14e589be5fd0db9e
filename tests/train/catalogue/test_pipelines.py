"""patchloom compat --pipelines: which tower goes with which connector and method, and the table of the page."""

import pytest
import torch

from patchloom.multimodal.plugins import PLUGINS
from patchloom.train.catalogue import compat
from patchloom.train.catalogue.heads import HEAD_KINDS
from patchloom.train.catalogue.pipelines import (
    CONNECTORS,
    METHODS,
    PIPELINES_INTRODUCTION,
    attempt,
    pipelines_matrix,
    pipelines_section,
)
from patchloom.train.cli import main

MARKS = {"yes", *map(str, range(1, 7))}


def table() -> list[list[str]]:
    """Of the page."""
    text = compat.PAGE.read_text()
    lines = text[text.index(PIPELINES_INTRODUCTION) :].split("\n\n")[3].splitlines()
    return [[word.strip() for word in line.strip("|").split("|")] for line in lines]


def test_the_page_has_every_tower_connector_and_method() -> None:
    """And says of ViT what is found now; the slow test compares all of it."""
    header, _, *rows = table()
    assert header == ["tower", "variant, connector", *METHODS]
    assert [row[:2] for row in rows] == [[k, f"{n}, {c}"] for k, n in HEAD_KINDS.items() for c in CONNECTORS]
    assert {mark for row in rows for mark in row[2:]} == MARKS
    assert compat.lines(pipelines_matrix({"ViT": HEAD_KINDS["ViT"]}))[1] == [row for row in rows if row[0] == "ViT"]


@pytest.mark.slow
def test_the_section_is_up_to_date() -> None:
    assert pipelines_section() in compat.PAGE.read_text()


def test_every_plugin_has_a_column() -> None:
    assert set(PLUGINS) <= set(METHODS)


def test_what_refuses_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    error = attempt("poolformer_s12", "Project", "damro")
    assert "backbone.stages.3.blocks.1: Pooling shows no queries and no keys" in str(error)
    error = attempt("poolformer_s12", "PixelShuffle", "damro")
    assert "Shuffled makes other tokens than one of each patch" in str(error)
    assert attempt("poolformer_s12", "Resampler", "mole") is None
    assert main(["compat", "--pipelines", "--write"]) == 1
    assert "give it alone" in capsys.readouterr().err


def test_an_answer_that_is_no_number_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchloom.multimodal.decoder import Decoder

    monkeypatch.setattr(Decoder, "logits", lambda self, x: (x.sum() * torch.nan).expand(*x.shape[:-1], 64))
    with pytest.raises(ArithmeticError, match="poolformer_s12 with Project and fastv: an answer is no finite number"):
        attempt("poolformer_s12", "Project", "fastv")
    with pytest.raises(ArithmeticError, match="poolformer_s12 with Project and lora: the loss is nan"):
        attempt("poolformer_s12", "Project", "lora")
