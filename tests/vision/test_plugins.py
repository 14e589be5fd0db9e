from dataclasses import replace
from typing import Literal

import pytest
import torch
from golden import golden
from plugin_parts import every_parameter_learns, total
from torch import nn

from patchloom.vision.block import Seams
from patchloom.vision.plugins import SeamError, attach, attached, plugin
from patchloom.vision.plugins.merge import Merge, MergeLayer, match, merge, removable
from patchloom.vision.spelling import read
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

NAMES = ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return golden.fill_module(create_model(request.param, num_classes=10, img_size=64)).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def hosts(model: nn.Module) -> list[Seams]:
    return [m for m in model.modules() if isinstance(m, Seams)]


# ---------------------------------------------------------------------------------------------- golden: the matching


@pytest.mark.parametrize(
    ("name", "r", "special"), [("plain", 5, ()), ("cls", 5, (0,)), ("cls_dist", 6, (0, 1)), ("capped", 100, (0,))]
)
def test_matching_is_the_originals(name, r, special):
    record = golden.load("tome/matching")
    given = record.input()
    x, size = given["x"], given["size"].abs() + 1
    found = match(given["metric"], removable(r, 24, special), special)
    merged = merge(Tokens(x, None, special, size), *found)
    record.compare(f"{name}.x", merged.x, 1e-5)
    record.compare(f"{name}.size", merged.size, 1e-5)
    # every token, special or not, as a patch of its own: where it went, and what comes back from there
    every = torch.arange(24).expand(2, -1)
    traced = merge(Tokens(x, None, special, size, every), *found)
    where = torch.zeros(2, merged.x.shape[1], 24).scatter(1, traced.source[:, None], 1.0)
    record.compare(f"{name}.source", where, 1e-6)
    if name == "cls_dist":  # a bug of the original: it unmerges as if all of A stood before all of B (6 left of A here)
        read = torch.tensor([0, 6, 1, 2, 3, 4, 5, *range(7, 18)])
        traced = replace(traced, source=read[traced.source])
    record.compare(f"{name}.unmerged", unmerge(traced), 1e-5)
    assert merged.special == tuple(range(len(special)))
    assert merged.grid is None
    patches = [i for i in range(24) if i not in special]
    if name != "cls_dist":
        assert torch.equal(merged.source, traced.source[:, patches])


@pytest.mark.parametrize(
    ("record", "name", "setting"),
    [
        ("vit_tiny_patch16_224_r8", "vit_tiny_patch16_224", "tome:r=8"),
        ("vit_tiny_patch16_224_r16", "vit_tiny_patch16_224", "tome:r=16"),
        ("vit_tiny_patch16_224_r12_decreasing", "vit_tiny_patch16_224", "tome:r=12,inflect=-1"),
        ("vit_tiny_patch16_224_r13_no_prop", "vit_tiny_patch16_224", "tome:r=13,prop=false"),
        ("deit_tiny_distilled_patch16_224_r8", "deit_tiny_distilled_patch16_224", "tome:r=8"),
    ],
)
def test_a_merged_vit_is_the_originals(record, name, setting):
    record = golden.load(f"tome/{record}")
    model = create_model(name, num_classes=1000).eval()
    load_published(model, record.state_dict())
    last: list[Tokens] = []
    hosts(model)[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
    with torch.inference_mode(), attached(model, plugin(setting)):
        logits = model(record.input())
    t = last[0]
    record.compare("logits", logits, 1e-5)
    record.compare("tokens", t.x, 1e-5)
    record.compare("size", t.size, 1e-6)
    special = torch.arange(len(t.special)).expand(len(t.x), -1)
    record.compare("group", torch.cat([special, t.source], 1), 1e-7)
    assert t.size.sum(1).unique().tolist() == [t.source.shape[1] + len(t.special)]


# --------------------------------------------------------------------------------------------------------- the laws


def test_zero_merges_change_nothing(model, image):
    with torch.inference_mode():
        plain = model(image)
        with attached(model, Merge(0)):
            assert torch.equal(model(image), plain)
        with attached(model, Merge(0, prop=False)):
            assert torch.equal(model(image), plain)
        with attached(model, Merge(2)):
            assert not torch.equal(model(image), plain)


def test_detaching_restores_everything(model, image):
    names, modules = list(model.state_dict()), [n for n, _ in model.named_modules()]
    before = [set(vars(h)) for h in hosts(model)]
    with torch.inference_mode():
        plain = model(image)
        detach = attach(model, Merge(2, prop=False))
        assert list(model.state_dict()) == names
        model(image)
        detach()
        assert torch.equal(model(image), plain)
    assert [n for n, _ in model.named_modules()] == modules
    assert [set(vars(h)) for h in hosts(model)] == before
    again = attach(model, Merge(1))
    detach()  # a second call leaves the newcomer in place
    assert all(isinstance(h.after_mixer, MergeLayer) for h in hosts(model))
    again()


def test_an_error_inside_detaches(model, image):
    with pytest.raises(RuntimeError, match="mine"), attached(model, Merge(2)):
        raise RuntimeError("mine")
    assert all(h.after_mixer is None for h in hosts(model))


def test_two_training_steps(model, image):
    attach(model, Merge(2))
    every_parameter_learns(model, image)


def test_checkpointing_gives_the_same_gradients(model, image):
    attach(model, Merge(2))
    grads = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.train()
        model.zero_grad()
        total(model(image)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@torch.inference_mode()
def test_an_image_alone_is_merged_as_in_a_batch(model, image):
    with attached(model, Merge(3)):
        torch.testing.assert_close(model(image)[1:], model(image[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny", "poolformer_s12", "convnext_tiny"])
def test_grid_mixers_are_refused_by_name_and_left_alone(name):
    model = create_model(name)
    with pytest.raises(SeamError, match=r"stages\.0\S*: \w+ needs a full grid"):
        attach(model, Merge(2))
    assert all(getattr(h, s) is None for h in hosts(model) for s in h.seams)


def test_all_or_nothing_where_a_late_host_refuses():
    model = create_model("deit_tiny_patch16_224", img_size=32)
    late = hosts(model)[-1]
    late.mixer.needs_grid = True
    with pytest.raises(SeamError, match="11: SelfAttention needs a full grid"):
        attach(model, Merge(2))
    assert all(h.after_mixer is None for h in hosts(model))
    late.mixer.needs_grid, late.mixer.offers = False, ()
    with pytest.raises(SeamError, match="11: SelfAttention shows no keys"):
        attach(model, Merge(2))
    assert all(h.after_mixer is None for h in hosts(model))


def test_a_taken_seam_and_a_model_without_seams(model):
    attach(model, Merge(1))
    with pytest.raises(SeamError, match=r"'after_mixer' of .* is taken by MergeLayer"):
        attach(model, Merge(2, prop=False))
    assert all(h.after_norm is None for h in hosts(model))
    with pytest.raises(SeamError, match="Linear has no blocks with seams"):
        attach(nn.Linear(1, 1), Merge(1))


# ----------------------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("special", [(), (0,), (0, 1), (8,), (15, 16), (4, 3)])
def test_special_tokens_survive_and_lead(special):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 17, 4, generator=g)
    t, want = Tokens(x, None, special), x[:, list(special)]
    for _ in range(6):
        r = removable(100, t.x.shape[1], t.special)
        if r:
            t = merge(t, *match(torch.randn(t.x.shape, generator=g), r, t.special))
        assert torch.equal(t.x[:, list(t.special)], want)
    assert (t.size[:, : len(special)] == 1).all()
    # each token is the mean of the patches that it stands for
    back = unmerge(t)
    for i in range(len(special), t.x.shape[1]):
        for image in range(2):
            mine = t.source[image] == i
            assert mine.sum() == t.size[image, i, 0]
            patches = Tokens(x, None, special).patches()[image, mine]
            torch.testing.assert_close(t.x[image, i], patches.mean(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(back[image, mine], t.x[image, i].expand(int(mine.sum()), -1), rtol=0, atol=0)


def test_dropped_patches_stay_dropped():
    t = Tokens(torch.randn(1, 6, 4), None, source=torch.tensor([[0, 1, -1, 2, 3, 4, 5, -1]]))
    merged = merge(t, *match(torch.randn(1, 6, 4), 2, ()))
    assert (merged.source == -1).nonzero()[:, 1].tolist() == [2, 7]
    assert not unmerge(merged)[0, [2, 7]].any()


def test_schedules():
    assert Merge(12, inflect=-1).schedule(12) == [24, 21, 19, 17, 15, 13, 10, 8, 6, 4, 2, 0]
    assert Merge(12, inflect=1).schedule(12)[::11] == [0, 24]
    assert Merge((3, 2)).schedule(4) == [3, 2, 0, 0]
    assert Merge((3, 2, 1)).schedule(2) == [3, 2]
    assert Merge(5).schedule(1) == [5]


def test_spellings():
    assert plugin("tome:r=8") == Merge(8)
    assert plugin("tome: r=4, inflect=-0.5 ,prop=FALSE") == Merge(4, -0.5, False)
    assert plugin("tome:r=8+4 + 2,prop=false") == Merge((8, 4, 2), prop=False)


@pytest.mark.parametrize(
    ("value", "kind", "want"),
    [
        ("3", int | tuple[int, ...], 3),
        ("3", tuple[int, ...] | None, (3,)),
        ("3+6", tuple[int, ...], (3, 6)),
        ("1e+1", float | tuple[float, ...], 10.0),
        ("0.5+1", tuple[float, ...], (0.5, 1.0)),
        ("7+14", tuple[int, int], (7, 14)),
        ("mean", Literal["mean", "max"] | int, "mean"),
        ("4", Literal["mean", "max"] | int, 4),
        ("a+b", tuple[str, ...], ("a", "b")),
    ],
)
def test_values_are_read_as_their_annotation_says(value, kind, want):
    found = read(value, kind, "")
    assert found == want
    assert type(found) is type(want)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("3-6", tuple[int, ...], "a number is wanted"),
        ("3+", tuple[int, ...], r"one or more with \+ between them \(3\+6\+9\) are wanted"),
        ("7", tuple[int, int], r"2 with \+ between them"),
        ("7+7+7", tuple[int, int], r"2 with \+ between them"),
        ("0.5+x", float | tuple[float, ...], "a number is wanted"),
        ("men", Literal["mean", "max"], "did you mean mean"),
    ],
)
def test_values_that_cannot_be_read(value, kind, words):
    with pytest.raises(ValueError, match=words):
        read(value, kind, f"k={value}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tomé:r=8", "did you mean tome"),
        ("quantum", "there are tome"),
        ("tome", "lacks r: write tome:r=VALUE"),
        ("tome:r", "write r=VALUE, once"),
        ("tome:r=1,r=2", "write r=VALUE, once"),
        ("tome:r=eight", "a number is wanted"),
        ("tome:r=1.5", "a number is wanted"),
        ("tome:r=-1", "0 or more"),
        ("tome:r=8+x", "a number is wanted"),
        ("tome:r=8+", r"one or more with \+ between them"),
        ("tome:r=8,4", r"'4' .* is not known; write KEY=VALUE, and a tuple with \+"),
        ("tome:r=1,inflekt=1", "did you mean inflect"),
        ("tome:r=1,inflect=3", "between -1 and 1"),
        ("tome:r=1,prop=perhaps", "write true or false"),
    ],
)
def test_misspellings_say_what_would_do(text, words):
    with pytest.raises(ValueError, match=words) as error:
        plugin(text)
    assert "\n" not in str(error.value)


def test_create_model_takes_the_spelling_and_the_dataclass(image):
    torch.manual_seed(0)
    a = create_model("deit_tiny_patch16_224", img_size=64, tokens="tome:r=2").eval()
    torch.manual_seed(0)
    b = create_model("deit_tiny_patch16_224", img_size=64, tokens=Merge(2)).eval()
    with torch.inference_mode():
        assert torch.equal(a(image), b(image))
    assert [h.after_mixer.r for h in hosts(a)] == [2] * 12
