"""Data of many kinds through one frozen encoder: what each tokeniser makes of it, padding, any size, what learns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchloom.multimodal.modalities import Image, Points, Series, Spectrogram, Table, Text, Video, axes
from patchloom.multimodal.points import farthest, gathered, nearest
from patchloom.multimodal.shared import SharedClassifier, SharedEncoder
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.linear import LinearAttention
from patchloom.vision.mixers.window import Window
from patchloom.vision.model import Classifier
from patchloom.vision.zoo import create_model

KINDS: dict[str, Any] = {
    "image": Image(8), "text": Text(50), "spectrogram": Spectrogram(8, 5), "points": Points(6, 4), "video": Video(8),
    "series": Series(2, 8, 4), "table": Table(3, (4, 2)),
}  # fmt: skip


def data(kind: str, batch: int = 2) -> Any:
    g = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=g)

    return {
        "image": normal(3, 24, 33), "text": torch.randint(1, 50, (batch, 7), generator=g),
        "spectrogram": normal(1, 16, 31), "points": normal(20, 3), "video": normal(3, 5, 16, 20),
        "series": normal(2, 37),
        "table": (normal(3), torch.randint(0, 2, (batch, 2), generator=g)),
    }[kind]  # fmt: skip


COUNTS = {"image": 3 * 5, "text": 7, "spectrogram": 3 * 6, "points": 6, "video": 3 * 2 * 3, "series": 9, "table": 5}


def encoder(**options: Any) -> SharedEncoder:
    torch.manual_seed(0)
    return SharedEncoder(Backbone([Stage(Global(2), 32, 2)], patch=8), KINDS, **options).eval()


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_tokens(kind: str) -> None:
    model = encoder()
    y = model(kind, data(kind))
    assert y.x.shape == (2, 1 + COUNTS[kind], 32)
    assert y.real is None
    one = tuple(d[:1] for d in data(kind)) if kind == "table" else data(kind)[:1]
    torch.testing.assert_close(model(kind, one).x, y.x[:1], rtol=1e-4, atol=1e-5)
    half = model.to(torch.bfloat16)
    whole = data(kind)
    if kind == "table":
        whole = (whole[0].bfloat16(), whole[1])
    elif whole.is_floating_point():
        whole = whole.bfloat16()
    assert half(kind, whole).x.dtype == torch.bfloat16


@torch.inference_mode()
def test_padding_and_what_is_missing_change_nothing() -> None:
    model, ids = encoder(), data("text")
    long = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    long[1, 7:] = 5
    y = model("text", long)
    assert y.real is not None
    assert y.real.sum(1).tolist() == [8, 11]
    torch.testing.assert_close(y.x[0, :8], model("text", ids[:1]).x[0], rtol=1e-4, atol=1e-5)
    numbers, categories = data("table")
    numbers[0, 1], categories[0, 0] = torch.nan, -1
    other = categories.clone()
    seen = model("table", (numbers, other)).x
    model.tokenisers["table"].weight[1] += 5  # type: ignore[index, operator, union-attr]
    torch.testing.assert_close(model("table", (numbers, other)).x[0][[0, 1, 3, 5]], seen[0][[0, 1, 3, 5]])
    assert not torch.allclose(model("table", (numbers, other)).x[1], seen[1])


@torch.inference_mode()
def test_a_cloud_has_no_order_but_its_first_point() -> None:
    model, cloud = encoder(), data("points", 1)
    again = torch.cat([cloud[:, :1], cloud[:, 1:].flip(1)], 1)
    torch.testing.assert_close(model("points", again).x, model("points", cloud).x, rtol=1e-4, atol=1e-5)
    few = model("points", cloud[:, :3])  # fewer than groups and neighbours
    assert few.x.shape == (1, 4, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenisers_learn_and_the_encoder_does_not(kind: str) -> None:
    model = SharedClassifier(encoder(), dict.fromkeys(KINDS, 3)).train()
    assert not model.encoder.stages.training
    model(kind, data(kind)).square().mean().backward()
    own = {n: p for n, p in model.named_parameters() if f".{kind}." in f".{n}"}
    assert len(own) >= 3
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in own.items() if "categories" not in n)
    frozen = [p for n, p in model.named_parameters() if "stages." in n]
    assert frozen
    assert all(not p.requires_grad and p.grad is None for p in frozen)
    assert model.encoder.first.grad is not None


def test_a_thawed_encoder_and_a_model_of_the_zoo() -> None:
    assert all(p.requires_grad for p in encoder(frozen=False).parameters())
    zoo = SharedEncoder(create_model("deit_tiny_patch16_224", num_classes=0), {"series": Series()})
    assert zoo("series", torch.randn(1, 1, 40)).x.shape == (1, 5, 192)
    names = [n for n in zoo.state_dict() if n.startswith("stages.")]
    assert len(names) == 12 * 12


def test_points_far_and_near() -> None:
    line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [9, 0, 0]]])
    assert farthest(line, 3).tolist() == [[0, 3, 2]]
    assert nearest(line, line[:, 2:3], 2).tolist() == [[[2, 1]]] or nearest(line, line[:, 2:3], 2)[0, 0, 0] == 2
    assert gathered(line, torch.tensor([[[3, 0]]]))[0, 0, :, 0].tolist() == [9, 0]
    with pytest.raises(ValueError, match="5 of 4 points"):
        farthest(line, 5)
    with pytest.raises(ValueError, match="k=9"):
        nearest(line, line, 9)


def test_places_differ_on_every_axis() -> None:
    table = axes((3, 4), 9)[0]
    assert table.shape == (12, 9)
    assert len({tuple(row.tolist()) for row in table}) == 12


@pytest.mark.parametrize(
    ("kind", "wrong", "why"),
    [
        ("image", torch.zeros(2, 1, 8, 8), r"images of shape \(2, 1, 8, 8\)"),
        ("series", torch.zeros(2, 8), r"time series of shape \(2, 8\)"),
        ("text", torch.zeros(2, 3), "ids"),
        ("text", torch.full((1, 2), 50), "id 50: the vocabulary has 50"),
        ("text", torch.tensor([[3, -1]]), "id -1: the vocabulary has 50"),
        ("points", torch.zeros(2, 9, 4), r"\(B, points, 3\)"),
        ("table", (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long)), "3 and 2 are wanted"),
        ("table", (torch.zeros(1, 3), torch.tensor([[0, 99]])), "category 99 in column 1 of categories, which has"),
        ("smell", torch.zeros(1), "no tokeniser for 'smell'"),
    ],
)
def test_wrong_data_is_said(kind: str, wrong: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encoder()(kind, wrong)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="WindowAttention needs a full grid"):
        SharedEncoder(Backbone([Stage(Window(2), 32, 2)], patch=8), KINDS)
    with pytest.raises(ValueError, match="one resolution"):
        SharedEncoder(Classifier(Backbone([Stage(Global(2), 32, 1), Stage(Global(2), 64, 1)])), KINDS)
    with pytest.raises(ValueError, match="no kinds"):
        SharedEncoder(Backbone([Stage(Global(2), 32, 1)]), {})
    with pytest.raises(ValueError, match="each kind of data takes both"):
        SharedClassifier(encoder(), {"image": 2})
    soft = SharedEncoder(Backbone([Stage(LinearAttention(2), 32, 1)], patch=8), KINDS)
    assert soft("text", torch.ones(1, 3, dtype=torch.long)).x.shape == (1, 4, 32)
    with pytest.raises(ValueError, match=r"text with padding: .* mixes it with the rest"):
        soft("text", torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="one column"):
        Table()
    assert isinstance(encoder().tokenisers, nn.ModuleDict)
