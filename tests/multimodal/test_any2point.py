"""Any2Point against what its authors' code computes, and what it takes."""

import pytest
import torch
from golden import golden

from patchloom.multimodal.any2point import SIGHTS, Any2Point, Sight, load_any2point, placed, virtual
from patchloom.multimodal.points import farthest
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.norm import Norm
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify

NORM = Norm(eps=1e-6)


def vit(dim: int, depth: int, heads: int, grid: int = 37, special: int = 1) -> Classifier:
    stem = Patchify(14, None, position=Position((grid, grid), special=special))
    stage = Stage(Global(heads), dim, depth, scale=1.0, block=PreNorm(NORM))
    return Classifier(Backbone([stage], stem), 0, Head(NORM, pool="token"), img_size=14 * grid)


def cloud(points: torch.Tensor) -> torch.Tensor:
    return points / points.norm(dim=-1).amax(1)[:, None, None]


@torch.inference_mode()
def test_record() -> None:
    record = golden.load("any2point/dinov2_depth2")
    x, c = record.input(), record.meta["config"]
    model = Any2Point(vit(c["embed_dim"], c["depth"], c["num_heads"]), 15, SIGHTS["scanobjectnn"]).eval()
    assert (model.sight.k, model.sight.last, model.sight.share) == (c["patchknn"], c["lastdim"], c["coef_pro"])
    load_any2point(model, record.state_dict())
    model.table.copy_(0.3 * x["pos_embed"][:, 1:])
    points = cloud(x["points"])
    tokens, centres = model.tokens(points)
    record.compare("tokens", tokens, 1e-5)
    record.compare("centers", centres, 1e-5)
    pixels = virtual(centres, model.sight.away, model.size)
    record.compare("view_x", pixels[..., 0].flatten(0, 1), 1e-5)
    record.compare("view_y", pixels[..., 1].flatten(0, 1), 1e-5)
    table = model.table.unflatten(1, model.grid).permute(0, 3, 1, 2)
    where = placed(pixels, table, model.size, True)
    first = (model.first + model.first_place).expand(2, -1, -1)
    record.compare("first_block_input", torch.cat([first, tokens + where], 1), 1e-5)
    y = model.features(points)
    record.compare("features", y, 1e-5)
    record.compare("global", torch.cat([y[:, 1:].amax(1), y[:, 0]], -1), 1e-5)


def small(**options: object) -> Any2Point:
    torch.manual_seed(0)
    return Any2Point(vit(48, 2, 2, 6), 5, Sight(k=8, last=8, **options)).eval()  # type: ignore[arg-type]


@torch.inference_mode()
def test_a_cloud_alone_is_what_it_is_in_a_batch_of_its_like() -> None:
    model, points = small(), cloud(torch.randn(1, 200, 3))
    both = model(torch.cat([points, points]))
    torch.testing.assert_close(model(points), both[:1], rtol=1e-4, atol=1e-5)
    assert both.shape == (2, 5)
    assert not torch.allclose(small(scrambled=False)(points), model(points))


def test_what_is_frozen_and_what_learns() -> None:
    model = small().train()
    torch.nn.init.normal_(model.guided[0].fc2.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    torch.nn.init.normal_(model.guided[1].fc2.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    model(cloud(torch.randn(4, 128, 3))).square().mean().backward()
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone", "norm", "first", "table"}
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead


def test_points_at_the_origin_are_passed_over() -> None:
    points = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0.9, 0, 0], [0.5, 0, 0]]])
    assert farthest(points, 2).tolist() == [[0, 1]]
    assert farthest(points, 2, 0.1).tolist() == [[0, 3]]


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="M of at least 32"):
        small()(torch.randn(1, 31, 3))
    with pytest.raises(ValueError, match="40 channels"):
        Any2Point(vit(40, 1, 2), 5)
    with pytest.raises(ValueError, match="one class token"):
        Any2Point(vit(48, 1, 2, special=2), 5)
    with pytest.raises(ValueError, match="takes a ViT"):
        Any2Point(Classifier(Backbone([Stage(Global(2), 24, 1), Stage(Global(2), 48, 1)])), 5)
    with pytest.raises(ValueError, match="no place for smell"):
        load_any2point(small(), {"smell": torch.zeros(1)})
