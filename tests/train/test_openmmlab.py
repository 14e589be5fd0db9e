"""Our backbones as OpenMMLab's configs name them: built, loaded by our rules, frozen, trained by mmengine's runner."""

import http.server
import threading
from functools import partial

import pytest
import torch
from golden import golden
from torch import nn

from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'patchloom[openmmlab]'")

from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint

from patchloom.train.openmmlab_names import as_published

SWIN, CONVNEXT = golden.load("swin/swin_tiny_dense"), golden.load("convnext/convnext_tiny_dense")
SMALL = "cct_2_3x2_32"  # plain, two blocks
PLAIN = "vit_tiny_patch16_224"


def built(name, **options):
    """As a config says it."""
    text = f"backbone = dict(type='patchloom.{name}', **{options!r})"
    return MODELS.build(Config.fromstring(text, ".py").backbone)


def image(size=(64, 96), batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def theirs(record, prefix="backbone."):
    return {prefix + n: v for n, v in record.state_dict().items()}


def check(backbone, record):
    with torch.inference_mode():
        maps = backbone.eval()(record.input())
    assert type(maps) is tuple
    for i, m in enumerate(maps, 1):
        record.compare(f"stage{i}", m, 1e-5)


# ------------------------------------------------------------------------------------------------------------- building


def test_a_config_names_a_backbone():
    backbone = built("swin_tiny", out_indices=(1, 3), drop_path_rate=0.1)
    assert [tuple(m.shape) for m in backbone(image())] == [(1, 192, 8, 12), (1, 768, 2, 3)]
    assert (backbone.channels, backbone.strides) == ([192, 768], [8, 32])
    assert set(backbone.pyramid.norms) == {"1", "3"}
    assert not built("swin_tiny", dense=False).pyramid.norms


def test_it_is_the_pyramid_of_create_model():
    backbone, pyramid = (
        built(PLAIN, out_indices=(3, 7, 11)).eval(),
        create_model(PLAIN, features_only=True, out_indices=(3, 7, 11)),
    )
    pyramid.load_state_dict(backbone.pyramid.state_dict())
    with torch.inference_mode():
        for a, b in zip(backbone(image()), pyramid.eval()(image()), strict=True):
            assert torch.equal(a, b)


def test_tokens_and_adapters_go_along():
    backbone = built(PLAIN, tokens="clustering:scale=0.5", adapter="lora:r=2")
    learnt = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert learnt
    assert all("lora_" in n for n in learnt)
    assert [m.shape[2:] for m in backbone(image())] == [(4, 6)] * 4


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("record", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_a_detector_s_file_goes_in_by_our_rules(record, tmp_path):
    """As mmdetection and mmsegmentation save it: `state_dict`, and the backbone's names behind `backbone.`."""
    path = tmp_path / "mask_rcnn.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs(record) | {"neck.conv.weight": torch.ones(1)}}, path)
    name = record.meta["variant"].removesuffix("_dense")
    backbone = built(name, init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."})
    backbone.init_weights()
    check(backbone, record)
    other = built(name, init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    other.init_weights()
    assert torch.equal(other.pyramid.norms["0"].weight, backbone.pyramid.norms["0"].weight)


class Detector(BaseModel):
    """A backbone and a convolution, whose mean is pulled to 1."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        self.neck = nn.Conv2d(self.backbone.channels[-1], 1, 1)

    def forward(self, inputs, mode="tensor"):
        found = self.neck(self.backbone(torch.stack(list(inputs)))[-1])
        return {"loss": (found - 1).square().mean()} if mode == "loss" else found


def test_a_whole_detector_loads_what_others_saved_and_what_it_saved(tmp_path):
    first = Detector(built("swin_tiny"))
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": theirs(SWIN) | {f"neck.{n}": v for n, v in first.neck.state_dict().items()}}, path)
    load_checkpoint(first, str(path), strict=True)
    check(first.backbone, SWIN)
    torch.save({"state_dict": first.state_dict()}, path)
    second = Detector(built("swin_tiny", init_cfg={"type": "Pretrained", "checkpoint": str(path)}))
    second.backbone.init_weights()
    check(second.backbone, SWIN)
    load_checkpoint(second, str(path), strict=True)
    with torch.no_grad():
        first.backbone.pyramid.norms["0"].weight.zero_()
    first.load_state_dict(second.state_dict())
    check(first.backbone, SWIN)


def test_what_does_not_fit_is_an_error_even_where_mmengine_is_not_strict(tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save({"state_dict": theirs(SWIN) | {"backbone.other.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=r"no place for other\.weight"):
        load_checkpoint(Detector(built("swin_tiny")), str(path), strict=False)
    with pytest.raises(ValueError, match="do not fit"):
        load_checkpoint(Detector(built("convnext_tiny")), str(path), strict=False)
    backbone = built("swin_tiny", init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "trunk"})
    with pytest.raises(ValueError, match=r"no tensor's name begins with 'trunk\.'; the first are backbone\."):
        backbone.init_weights()


def test_an_address_is_fetched_by_mmengine(tmp_path, monkeypatch):
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "cache"))
    small = create_model(SMALL, features_only=True)
    torch.save({"state_dict": {f"backbone.pyramid.{n}": v for n, v in small.state_dict().items()}}, tmp_path / "a.pth")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_address[1]}/a.pth"
        backbone = built(SMALL, init_cfg={"type": "Pretrained", "checkpoint": where, "prefix": "backbone"})
        backbone.init_weights()
        server.shutdown()
    for name, value in small.state_dict().items():
        assert torch.equal(backbone.pyramid.state_dict()[name], value)


def test_published_weights_are_fetched_when_they_are_initialised(monkeypatch):
    backbone = built("swin_tiny.coco_mask_rcnn_1x", pretrained=True)
    asked = []
    monkeypatch.setattr(
        "patchloom.vision.download.open_weights", lambda weights: asked.append(weights.tag) or SWIN.state_dict()
    )
    backbone.init_weights()
    assert asked == ["coco_mask_rcnn_1x"]
    check(backbone, SWIN)


# ------------------------------------------------------------------------------------------------ OpenMMLab's own names


class UnfoldedMerging(nn.Module):
    """2x2 places to one, as OpenMMLab computes it."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        h, w = x.shape[2:]
        seen = nn.functional.unfold(x, 2, stride=2).mT  # B HW/4 4C
        return self.reduction(self.norm(seen)).mT.unflatten(2, (h // 2, w // 2))


def test_swin_s_merging_unfolds():
    torch.manual_seed(0)
    merge = UnfoldedMerging(96)
    nn.init.normal_(merge.norm.weight)
    nn.init.normal_(merge.norm.bias)
    state = {f"stages.0.downsample.{n}": v for n, v in merge.state_dict().items()}
    found = as_published(state | {"stages.0.blocks.0.attn.w_msa.proj.bias": torch.ones(1)})
    down = create_model("swin_tiny", features_only=True).backbone.stages[1].down
    down.norm.load_state_dict({n: found[f"layers.0.downsample.norm.{n}"] for n in ("weight", "bias")})
    down.reduction.load_state_dict({"weight": found["layers.0.downsample.reduction.weight"]})
    x = torch.randn(2, 96, 6, 8)
    with torch.inference_mode():
        ours = down(Tokens(x.permute(0, 2, 3, 1).flatten(1, 2), (6, 8)))
        torch.testing.assert_close(ours.map().permute(0, 3, 1, 2), merge(x))


RENAMED = {  # the authors' names -> OpenMMLab's, the way that its own converters go
    "swin": [("layers.", "stages."), (".attn.", ".attn.w_msa."), ("patch_embed.proj", "patch_embed.projection"),
             ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1")],
    "convnext": [("dwconv", "depthwise_conv"), ("pwconv1", "pointwise_conv1"), ("pwconv2", "pointwise_conv2")],
    "vit": [("patch_embed.proj", "patch_embed.projection"), ("blocks.", "layers."), ("norm1", "ln1"), ("norm2", "ln2"),
            ("norm.", "ln1."), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1")],
}  # fmt: skip
ATTENTION = [("attn.qkv.", "attn.attn.in_proj_"), ("attn.proj", "attn.attn.out_proj")]  # as mmsegmentation has it


def in_their_names(state, pairs):
    found = {}
    for name, value in state.items():
        for a, b in pairs:
            name = name.replace(a, b)
        found[name] = value
    return found


@pytest.mark.parametrize(("family", "record"), [("swin", SWIN), ("convnext", CONVNEXT)])
def test_openmmlab_s_own_names_are_known(family, record):
    state = record.state_dict()
    named = in_their_names(state, RENAMED[family])
    for n, v in named.items():
        if "downsample" in n and family == "swin":
            named[n] = v.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].mT.flatten(-2)
    back = as_published(named)
    assert set(named) & set(state) < set(state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], v) for n, v in state.items())
    backbone = built(record.meta["variant"].removesuffix("_dense"))
    backbone.take(named, "theirs")
    check(backbone, record)


@pytest.mark.parametrize("more", [[], ATTENTION], ids=["mmpretrain", "mmsegmentation"])
def test_their_plain_transformers_are_known(more):
    timm = pytest.importorskip("timm")
    state = timm.create_model(PLAIN, num_classes=0).state_dict()
    named = in_their_names(state, RENAMED["vit"] + more)
    assert not any("mlp" in n or "blocks" in n for n in named)
    assert as_published(named).keys() == state.keys()
    backbone, pyramid = built(PLAIN).eval(), create_model(PLAIN, features_only=True).eval()
    backbone.take(named, "theirs")
    load_published(pyramid, state)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(backbone(image()), pyramid(image()), strict=True))


# ------------------------------------------------------------------------------------------------------------- training


def test_frozen_stages_and_norms():
    backbone = built("convnext_tiny", frozen_stages=2, drop_path_rate=0.5).train()
    trunk = backbone.pyramid.backbone
    assert not any(p.requires_grad for part in (trunk.stem, *trunk.stages[:2]) for p in part.parameters())
    assert all(p.requires_grad for part in trunk.stages[2:] for p in part.parameters())
    assert not any(m.training for part in (trunk.stem, *trunk.stages[:2]) for m in part.modules())
    assert trunk.stages[2].training
    plain = built(PLAIN, frozen_stages=3).pyramid.backbone
    assert [any(p.requires_grad for p in b.parameters()) for b in plain.stages[0].blocks[:4]] == [False] * 3 + [True]
    norms = [m for m in built("efficientformer_l1", norm_eval=True).train().modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)


def test_checkpointing_changes_no_gradient():
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = built(SMALL, with_cp=again)
        sum(m.square().mean() for m in backbone(image())).backward()
        grads.append([p.grad for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads)


def test_mmengine_s_runner_trains_saves_and_goes_on(tmp_path):
    data = [image((32, 48))[0] for _ in range(4)]
    cfg = {"type": f"patchloom.{SMALL}", "out_indices": (0, 1), "frozen_stages": 0}
    loader = {
        "batch_size": 2, "sampler": {"type": DefaultSampler, "shuffle": False}, "dataset": data, "num_workers": 0,
        "collate_fn": lambda batch: {"inputs": batch},
    }  # fmt: skip
    model = Detector(cfg)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    runner = Runner(
        model, str(tmp_path), train_dataloader=loader, train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-2}}, experiment_name="one",
        default_hooks={"logger": None, "checkpoint": {"type": "CheckpointHook", "interval": 1}},
    )  # fmt: skip
    runner.train()
    after = model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n].cpu())}
    assert any(n.startswith("backbone.pyramid.backbone.stages.") for n in changed)
    assert not any(".stem." in n for n in changed)
    saved = torch.load(tmp_path / "epoch_2.pth", weights_only=False)["state_dict"]
    other = Detector(cfg)
    other.load_state_dict(saved)
    assert torch.equal(other.eval()(data[:1]), model.cpu().eval()(data[:1]))


def test_beside_parts_of_mmcv():
    cnn = pytest.importorskip("mmcv.cnn", reason="needs mmcv-lite: pip install 'patchloom[openmmlab]'")
    backbone = built(SMALL, out_indices=(-1,))
    parts = {"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "GELU"}}
    neck = cnn.ConvModule(backbone.channels[0], 5, 3, padding=1, **parts)
    neck(backbone(image((64, 96)))[0]).square().mean().backward()
    assert all(p.grad is not None for p in (*backbone.parameters(), *neck.parameters()))


# ---------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(("name", "options", "message"), [
    ("swn_tiny", {}, "no model 'swn_tiny'; did you mean swin_tiny"),
    ("swin_tiny.other", {}, "no weights 'other' of swin_tiny; there are ms_in1k"),
    ("swin_tiny", {"out_indices": (0, 4)}, "feature index 4 is out of range; there are 4"),
    ("swin_tiny", {"frozen_stages": 5}, "frozen_stages 5: swin_tiny has 4 stages; -1 for none"),
    (SMALL, {"frozen_stages": 3}, f"frozen_stages 3: {SMALL} has 2 blocks"),
    ("vit_comer_seg_tiny", {"frozen_stages": 1}, "frozen_stages 1: vit_comer_seg_tiny does not make its maps"),
    ("favit_b0", {"pretrained": True}, "nobody published weights of favit_b0"),
    (PLAIN, {"dense": True}, f"{PLAIN} has no detection form of its own"),
    ("swin_tiny", {"pretrained": True, "init_cfg": {"type": "Pretrained", "checkpoint": "a"}}, "exclude each other"),
])  # fmt: skip
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, **options)


def test_a_wrong_word_and_a_missing_file_are_errors():
    with pytest.raises(TypeError, match="depth"):
        built("swin_tiny", depth=3)
    backbone = built(SMALL, init_cfg={"type": "Pretrained", "checkpoint": "/nowhere.pth"})
    with pytest.raises(FileNotFoundError, match=r"no file of weights /nowhere\.pth"):
        backbone.init_weights()
    with pytest.raises(ValueError, match=r"images of shape \(B, 3, H, W\) are wanted"):
        backbone(torch.zeros(3, 32, 32))
