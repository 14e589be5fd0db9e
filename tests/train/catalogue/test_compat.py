"""patchloom compat: the matrix of plugins and kinds of backbones, and the page that it writes."""

import json
from math import nan

import pytest
import torch
from torch import nn

from patchloom.train.catalogue import compat
from patchloom.train.catalogue.heads import ADDED, HEAD_KINDS, HEADS, obstacles, take_steps
from patchloom.train.cli import main
from patchloom.vision.adapters import ADAPTERS
from patchloom.vision.plugins import PLUGINS


def said(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert main(["compat", *line]) == 0
    return capsys.readouterr().out


def test_the_page_is_up_to_date() -> None:
    """`patchloom compat --write` writes it."""
    text = compat.PAGE.read_text()
    assert text.startswith(
        f"{compat.INTRODUCTION}\n{compat.section(compat.matrix())}\n\n{compat.ADAPTERS_INTRODUCTION}"
    )
    assert text.endswith(f"\n\n{compat.onnx()}")


@pytest.mark.slow
def test_the_whole_page_is_up_to_date() -> None:
    assert compat.PAGE.read_text() == compat.page()


def test_the_page_has_every_kind_under_every_head() -> None:
    """And says of some what is found now; the slow test compares all of it, and takes the steps again."""
    text = compat.PAGE.read_text()
    table = text[text.index(compat.HEADS_INTRODUCTION) :].split("\n\n")[2].splitlines()
    header, _, *rows = [[word.strip() for word in line.strip("|").split("|")] for line in table]
    columns = [f"{head} + {added}" if added else head for head in HEADS for added in ADDED]
    assert header == ["backbone", "variant", *columns]
    assert [(kind, name) for kind, name, *_ in rows] == list(HEAD_KINDS.items())
    assert {mark for _, _, *marks in rows for mark in marks} == {"yes", "1"}
    some = {k: HEAD_KINDS[k] for k in ("ViT", "PoolFormer")}
    assert compat.lines(compat.heads_matrix(some))[1] == [row for row in rows if row[0] in some]


CELLS = [(name, head, added) for name in HEAD_KINDS.values() for head in HEADS for added in ADDED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head", "added"), CELLS)
def test_what_the_page_allows_trains_and_answers(name: str, head: str, added: str) -> None:
    if added in obstacles(name):
        with pytest.raises(ValueError, match="needs a full grid"):
            take_steps(name, head, added)
    else:
        take_steps(name, head, added)


def test_heads_take_the_steps_that_they_speak_of(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    taken = []
    monkeypatch.setattr("patchloom.train.catalogue.heads.take_steps", lambda *cell: taken.append(cell))
    cells = json.loads(said(capsys, "poolformer_s12", "--heads", "--json"))
    assert [(c["method"], c["works"]) for c in cells][:3] == [
        ("Mask R-CNN", True), ("Mask R-CNN + clustering", False), ("Mask R-CNN + lora", True)
    ]  # fmt: skip
    assert "needs a full grid" in cells[1]["why"]
    assert taken == [("poolformer_s12", head, added) for head in HEADS for added in ("", "lora")]


def test_a_step_that_goes_wrong_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchloom.train.catalogue.heads.losses", lambda model, *_: {"main": constant(model, nan)})
    with pytest.raises(ArithmeticError, match="vit_tiny_patch16_224 under UPerNet : a loss is no finite number"):
        take_steps("vit_tiny_patch16_224", "UPerNet", "")
    monkeypatch.setattr("patchloom.train.catalogue.heads.losses", lambda model, *_: {"main": constant(model.head, 1.0)})
    with pytest.raises(ArithmeticError, match="no gradient reaches the backbone"):
        take_steps("vit_tiny_patch16_224", "UPerNet", "lora")


def constant(model: nn.Module, value: float) -> torch.Tensor:
    return torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum() * value


def test_adapters_have_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(said(capsys, "swin_tiny", "--adapters", "--json"))
    assert [(c["variant"], c["method"]) for c in cells] == [("swin_tiny", a) for a in ADAPTERS]
    found = {c["method"]: c for c in cells}
    assert found["lora"]["works"]
    assert not found["hst"]["works"]
    assert found["hst"]["part"] == "WindowAttention"
    assert "no meta tokens" in found["hst"]["why"]
    header = said(capsys, "swin_tiny", "--adapters").splitlines()[0].split()
    assert header == ["variant", *ADAPTERS]


def test_json_is_one_list_with_every_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(said(capsys, "deit_tiny_patch16_224", "swin_tiny", "--json"))
    assert [(c["variant"], c["method"]) for c in cells] == [
        (v, m) for v in ("deit_tiny_patch16_224", "swin_tiny") for m in PLUGINS
    ]
    merged = {c["variant"]: c for c in cells if c["method"] == "tome"}
    assert merged["deit_tiny_patch16_224"]["works"]
    assert merged["deit_tiny_patch16_224"]["why"] is None
    assert not merged["swin_tiny"]["works"]
    assert merged["swin_tiny"]["block"] == "backbone.stages.0.blocks.0"
    assert merged["swin_tiny"]["part"] == "WindowAttention"
    assert merged["swin_tiny"]["why"].startswith("needs a full grid")


def test_the_table_says_yes_or_gives_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "deit_tiny_patch16_224", "swin_tiny").splitlines()
    header, deit, swin = (lines[i].split() for i in (0, 2, 3))
    assert header == ["variant", *PLUGINS]
    at = header.index("tome")
    assert deit[at] == "yes"
    assert f"{swin[at]:>2}  needs a full grid, so its tokens cannot become fewer (WindowAttention)" in lines


def test_an_unknown_variant_and_a_page_of_some_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compat", "swn_tiny"]) == 1
    assert "swin_tiny" in capsys.readouterr().err
    assert main(["compat", "swin_tiny", "--write"]) == 1
    assert "give it alone" in capsys.readouterr().err


def test_every_family_has_a_row() -> None:
    from patchloom.vision.families import FAMILIES
    from patchloom.vision.zoo import VARIANTS

    assert {VARIANTS[v].family for v in compat.KINDS.values() if v != compat.LINEAR} == set(FAMILIES)
