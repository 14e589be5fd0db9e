"""Mamba YOLO's backbone, neck and head: the originals' numbers and the published counts."""

import pytest
import torch
from golden import golden
from torch import nn
from vision_tiny import tiny_pyramid

from patchloom.vision.blocks.local_scan import LocalScan
from patchloom.vision.heads.yolo import mamba_yolo
from patchloom.vision.heads.yolo_neck import PathAggregation
from patchloom.vision.mixers.cross_scan import Cross
from patchloom.vision.mixers.in_a_row import InARow
from patchloom.vision.mixers.pyramid_pool import PyramidPool
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

PARAMETERS = {"mamba_yolo_tiny": 6_131_688, "mamba_yolo_base": 21_827_984, "mamba_yolo_large": 57_631_008}

# With the records' weights these scans enlarge a rounding about a hundredfold (tiny) or a thousandfold (large: of the
# input's alone, 6e-8, p5 keeps 2e-5). Computed in float64, our numbers differ from the records, which were computed in
# float32, by up to 2.8e-5 and 5.6e-4 of the largest value; computed in float32 hardly by more.
TOLERANCE = {
    "mamba_yolo_tiny": {"p2": 1e-5, "p3": 1e-5, "decoded": 1e-5, "": 1e-4},
    "mamba_yolo_large": {"p2": 1e-5, "p3": 1e-5, "decoded": 1e-4, "": 1e-3},
}


@torch.inference_mode()
def outputs(model, x):
    """What the detector computes on its way, under the records' names."""
    maps = model.backbone(x)
    neck = model.neck([m.permute(0, 2, 3, 1) for m in maps[1:]])
    raw = model.branches(neck)
    found = {f"p{i}": m for i, m in enumerate(maps, 2)} | {
        f"n{i}": m.permute(0, 3, 1, 2) for i, m in enumerate(neck, 3)
    }
    found |= {f"raw{i}": torch.cat(pair, -1).permute(0, 3, 1, 2) for i, pair in enumerate(raw)}
    places = model.branches.places(raw)
    low, high = places.boxes.split(2, -1)
    found["decoded"] = torch.cat([(low + high) / 2, high - low, places.scores.sigmoid()], -1).mT
    return found


@pytest.mark.parametrize("name", ["mamba_yolo_tiny", pytest.param("mamba_yolo_large", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_original(name, dtype):
    r, model = golden.load(f"mamba_yolo/{name}"), mamba_yolo(name).eval()
    report = model.load_published(r.state_dict())
    assert not report.fresh
    assert report.dropped == []
    found = outputs(model.to(dtype), r.input().to(dtype))
    assert set(found) == set(r.meta["outputs"])
    for output, value in found.items():
        r.compare(output, value, TOLERANCE[name].get(output, TOLERANCE[name][""]))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_the_published_ones(name, count):
    with torch.device("meta"):
        model = mamba_yolo(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_backbone_takes_its_part_of_a_detector_s_file():
    r = golden.load("mamba_yolo/mamba_yolo_tiny")
    file = r.state_dict() | {"model.21.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}
    for only in (True, False):
        model = create_model("mamba_yolo_tiny", features_only=only)
        report = load_published(model, file)
        assert not report.fresh
        assert all(int(n.split(".")[1]) >= 11 for n in report.dropped)
    assert mamba_yolo().load_published(file).dropped == ["model.21.dfl.conv.weight"]
    with pytest.raises(ValueError, match="not the table that this architecture computes"):
        mamba_yolo().load_published(file | {"model.21.dfl.conv.weight": torch.ones(1, 16, 1, 1)})
    with pytest.raises(ValueError, match=r"nothing fills neck\.up"):
        mamba_yolo().load_published({n: v for n, v in file.items() if not n.startswith("model.14.")})
    with pytest.raises(ValueError, match="no Mamba YOLO; there are mamba_yolo_tiny"):
        mamba_yolo("swin_tiny")


def test_norms_average_slowly_and_states_begin_alike():
    model = mamba_yolo()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    decays = [p for n, p in model.named_parameters() if n.endswith("A_log")]
    assert decays
    assert not any(p.any() for p in decays)


# ---------------------------------------------------------------------------------------------------------- its parts


def tokens(m):
    return Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2]))


@torch.inference_mode()
def test_a_block_is_the_definition():
    torch.manual_seed(0)
    block = LocalScan(12, always=False, bias=False).build(8, 0, Cross(4, act="gelu").build(8, 0), 4.0, None, 0.0).eval()
    m = torch.randn(2, 3, 5, 12)
    x = block.enter(m)
    local = x + block.local.mlp.fc2(nn.functional.gelu(block.local.mlp.fc1(block.local.conv(x))))
    x = x + block.mixer(tokens(block.norm1(local))).unflatten(1, (3, 5))  # around both
    a, v = block.ffn.fc1(block.norm2(x)).chunk(2, -1)
    assert a.shape[-1] == 21  # two thirds of 4 * 8
    a = nn.functional.gelu(a + block.ffn.conv.conv(a.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    torch.testing.assert_close(block(tokens(m)).map(), x + block.ffn.fc2(a * v), rtol=1e-5, atol=1e-5)
    assert isinstance(LocalScan(8, always=False).build(8, 0, nn.Identity(), 4.0, None, 0.0).enter, nn.Identity)
    assert not isinstance(LocalScan().build(8, 0, nn.Identity(), 4.0, None, 0.0).enter, nn.Identity)


@torch.inference_mode()
def test_mixers_in_a_row_have_nothing_between_them():
    mixer = InARow(Cross(4), 3).build(8, 0)
    x = t = torch.randn(2, 12, 8)
    for each in mixer.mixers:
        t = each(Tokens(t, (3, 4)))
    torch.testing.assert_close(mixer(Tokens(x, (3, 4))), t)
    assert mixer.needs_grid
    with pytest.raises(ValueError, match="count=0"):
        InARow(Cross(), 0)


@torch.inference_mode()
def test_chained_pools_are_ever_larger_ones():
    mixer = PyramidPool(3, 2).build(8, 0).eval()
    m = torch.randn(1, 6, 7, 8)
    x = mixer.before(m).permute(0, 3, 1, 2)
    pools = [nn.functional.max_pool2d(x, k, 1, k // 2) for k in (1, 3, 5)]
    want = mixer.after(torch.cat(pools, 1).permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(mixer(tokens(m)), want)
    with pytest.raises(ValueError, match="an odd size"):
        PyramidPool(4)


def test_a_neck_keeps_sizes_that_no_stride_divides():
    neck = PathAggregation([8, 16, 24])
    maps = [torch.randn(2, h, w, c) for h, w, c in ((13, 9, 8), (7, 5, 16), (4, 3, 24))]
    out = neck(maps)
    assert [m.shape for m in out] == [m.shape for m in maps]
    sum(m.square().mean() for m in out).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.any()]
    with pytest.raises(ValueError, match=r"\[8, 16, 24\] channels are wanted; got \[24, 16, 8\]"):
        neck(maps[::-1])


def test_every_parameter_of_a_pyramid_gets_a_gradient():
    torch.manual_seed(0)
    model = tiny_pyramid("mamba_yolo_tiny").train()
    sum(m.square().mean() for m in model(torch.randn(2, 3, 97, 131))).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
