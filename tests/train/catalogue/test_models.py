"""patchloom models: the figures that the package holds are those of a fresh count."""

import json

import pytest

from patchloom.train.catalogue import models
from patchloom.train.catalogue.figures import FIGURES
from patchloom.train.cli import main
from patchloom.vision import zoo

CHEAP = ("vit_tiny_patch16_224", "swin_tiny", "poolformer_s12", "convnext_tiny", "cct_2_3x2_32", "randformer_s12")


def said(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert main(["models", *line]) == 0
    return capsys.readouterr().out


def test_json_is_one_list_of_objects_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capsys, "--json"))
    assert [r["name"] for r in rows] == zoo.list_models()
    swin = next(r for r in rows if r["name"] == "swin_tiny")
    assert swin["family"] == "swin"
    assert swin["parameters"] == swin["trainable"] == 28_288_354  # as the authors' own model has
    assert 4.4e9 < swin["macs"] < 4.6e9
    assert swin["input"] == [3, 224, 224]
    assert swin["weights"][0] == "ms_in1k"


def test_table_has_a_row_for_each_match(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "swin_tiny*").splitlines()
    assert lines[0].split() == ["name", "family", "params", "MACs", "input", "weights"]
    assert {line.split()[0] for line in lines[2:]} == set(zoo.list_models("swin_tiny*"))
    assert "28.3M" in lines[2]


def test_pretrained_leaves_out_what_has_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capsys, "--json", "--pretrained"))
    assert 0 < len(rows) < len(zoo.list_models())
    assert all(r["weights"] for r in rows)


def test_no_match_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "swn_tiny"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "swn_tiny" in err
    assert "swin_tiny" in err


def test_held_figures_belong_to_the_present_networks() -> None:
    stale = [n for n in zoo.list_models() if FIGURES.get(n, ("",))[0] != models.fingerprint(zoo.VARIANTS[n])]
    assert not stale, (
        f"run `python -m patchloom.train.catalogue.models`: {stale[:5]} were counted for other networks, or not at all"
    )
    assert set(FIGURES) == set(zoo.list_models())


@pytest.mark.parametrize("name", CHEAP)
def test_held_figures_are_those_of_a_fresh_count(name: str) -> None:
    assert models.row(name) == models.row(name, recount=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIGURES))
def test_all_held_figures_are_those_of_a_fresh_count(name: str) -> None:
    assert models.row(name) == models.row(name, recount=True)


def test_a_changed_network_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIGURES, "cct_2_3x2_32", ("00000000", 1, 1, 1))
    assert models.row("cct_2_3x2_32")["parameters"] > 100_000


def test_all_are_listed_without_building_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "model_info", lambda name: pytest.fail(f"{name} was built to be listed"))
    assert len(said(capsys).splitlines()) == len(zoo.list_models()) + 2


def test_the_page_of_families_is_up_to_date():
    """`python -m patchloom.train.catalogue.families` writes it."""
    from patchloom.train.catalogue.families import PAGE, page

    assert PAGE.read_text() == page()
