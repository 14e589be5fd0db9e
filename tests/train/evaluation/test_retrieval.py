"""Recall at k: by hand, under ties, by chance; and the metric that gathers it over batches and processes."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patchloom.train.cli import main
from patchloom.train.evaluation.recall import Matches, guessed, numbered, retrieval
from patchloom.train.evaluation.zeroshot import measured


def unit(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_by_hand() -> None:
    """Two pictures at 0 and 90 degrees, with two captions each: the first's at 10 and 80, the second's at 70 and 95."""
    found = retrieval(unit(0, 90), unit(10, 80, 70, 95), torch.tensor([0, 0, 1, 1]))
    assert found.image_to_text.at == {1: 1.0, 5: 1.0, 10: 1.0}
    assert found.text_to_image.at[1] == 0.75  # the one at 80 is nearer to the second picture
    assert (found.image_to_text.queries, found.text_to_image.queries) == (2, 4)
    assert found.image_to_text.chance[1] == 0.5
    assert found.mean == pytest.approx((3 + 0.75 + 2) / 6)


def test_equal_vectors_find_nothing() -> None:
    same = torch.ones(30, 4)
    found = retrieval(same, same, torch.arange(30))
    assert found.image_to_text.at == found.text_to_image.at == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.image_to_text.median_rank == 30


def test_what_is_no_number_finds_nothing() -> None:
    image, text = torch.eye(30), torch.eye(30)
    image[0] = torch.nan
    found = retrieval(image, text, torch.arange(30))
    assert found.image_to_text.at[1] == pytest.approx(29 / 30)
    assert found.text_to_image.at[1] == 0.0
    assert retrieval(image * torch.nan, text, torch.arange(30)).mean == 0.0
    assert measured("all", torch.full((4, 10), torch.nan), torch.arange(4))["acc5"] == 0.0


def test_the_same_words_are_right_for_all_their_pictures() -> None:
    image, text = unit(0, 5, 90), unit(2, 2, 88)
    of = torch.arange(3)
    told = retrieval(image, text, of, torch.tensor([7, 7, 9]))
    assert told.image_to_text.at[1] == told.text_to_image.at[1] == 1.0
    assert told.image_to_text.chance[1] == 0.5  # of two different texts
    assert told.text_to_image.queries == 3
    apart = retrieval(image, text, of)
    assert apart.image_to_text.at[1] == pytest.approx(1 / 3)  # each of both ties with the other's


@pytest.mark.parametrize(("right", "of", "k"), [(1, 5, 1), (2, 6, 3), (5, 6, 2), (1, 3, 5)])
def test_chance(right: int, of: int, k: int) -> None:
    drawn = list(itertools.combinations(range(of), min(k, of)))
    assert guessed(right, of, k) == pytest.approx(sum(min(d) < right for d in drawn) / len(drawn))


def test_random_vectors_are_at_chance() -> None:
    torch.manual_seed(0)
    found = retrieval(torch.randn(600, 16), torch.randn(1200, 16), torch.arange(600).repeat_interleave(2))
    for one in (found.image_to_text, found.text_to_image):
        assert one.at[10] == pytest.approx(one.chance[10], abs=0.02)


def test_the_metric_is_that_of_all_batches() -> None:
    torch.manual_seed(0)
    norm = torch.nn.functional.normalize
    image, text = norm(torch.randn(7, 8), dim=-1), norm(torch.randn(10, 8), dim=-1)
    of = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 6])
    said = ["x", *(f"caption {i}" for i in range(8)), "x"]
    whole = retrieval(image, text, of, torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]))
    metric = Matches()
    metric.update(image[:3], text[:4], of[:4], said[:4], torch.tensor(2.0))
    metric.update(image[3:], text[4:], of[4:] - 3, said[4:], torch.tensor(1.0))
    found = metric.compute()
    assert found["recall"].item() == pytest.approx(whole.mean)
    assert found["i2t_r5"].item() == pytest.approx(whole.image_to_text.at[5])
    assert found["loss"].item() == pytest.approx((3 * 2 + 4 * 1) / 7)
    metric.reset()
    assert metric.pictures == 0


def test_numbers_of_captions_differ() -> None:
    said = [f"a {c} {k} {i}" for c in ("red", "blue") for k in ("star", "bolt") for i in range(500)]
    assert len({numbered(c) for c in said}) == len(said)


def test_vectors_in_a_file(tmp_path: Path, capsys: Any) -> None:
    held = {"image": 3 * unit(0, 90), "text": unit(10, 80, 70, 95), "of": torch.tensor([0, 0, 1, 1])}
    save_file(held, tmp_path / "vectors.safetensors")
    assert main(["eval", "retrieval", "--vectors", str(tmp_path / "vectors.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["image_to_text"]["r1"], found["text_to_image"]["r1"]) == (1.0, 0.75)
    assert found["text_to_image"]["chance"]["r1"] == 0.5
    save_file(held | {"of": torch.tensor([0, 0, 1, 2])}, tmp_path / "wrong.safetensors")
    assert main(["eval", "retrieval", "--vectors", str(tmp_path / "wrong.safetensors")]) == 1
    assert "its picture, 0 to 1" in capsys.readouterr().err
    assert main(["eval", "retrieval", "--checkpoint", "RUN"]) == 2
    assert "name the captions too" in capsys.readouterr().err
