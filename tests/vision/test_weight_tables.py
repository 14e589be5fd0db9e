"""The tables of published weights: complete, unambiguous, and as timm states its copies."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import fields

import pytest

from patchloom.vision.cache import local_path
from patchloom.vision.generation import DENOISERS
from patchloom.vision.published import Weights
from patchloom.vision.tables import MILLIONS, WEIGHTS, find_file, find_weights, megabytes, name_of

ROWS = [pytest.param(variant, w, id=f"{variant}.{w.tag}") for variant, rows in WEIGHTS.items() for w in rows]


def test_every_published_file_is_there():
    """Counted in the papers' own lists: files that the authors published, each once."""
    files = {w.url for rows in WEIGHTS.values() for w in rows if w.source == "published"}
    assert Counter(re.match(r"https?://[^/]+/[\w-]+|hf-hub:\w+", url)[0] for url in files) == {
        "https://github.com/SwinTransformer": 17 + 10,
        "https://dl.fbaipublicfiles.com/convnext": 4 + 2 + 5 + 5 + 5 + 3 + 3 + 13,
        "https://github.com/sail-sg": 5,
        "hf-hub:sail": 3 * 5 + 2 * 4 * 5,
        "https://shi-labs.com/projects": 10,
        "https://github.com/SHI-Labs": 10,
        "https://github.com/yitu-opensource": 7 + 1 + 3 + 4,
        "https://github.com/huawei-noah": 2,
        "https://dl.fbaipublicfiles.com/deit": 8,
        "https://github.com/wkcn": 11,
        "https://1drv.ms/u": 7,  # CvT
        "https://drive.google.com/file": 8,  # EfficientFormer
        "hf-hub:techmonsterwang": 8,
        "https://github.com/xinghaochen": 8,
        "https://github.com/szq0214": 14,
        "https://www.dropbox.com/sh": 6,  # ViT-ResNAS
        "hf-hub:hustvl": 5,
        "https://github.com/MzeroMiko": 9,
        "hf-hub:YuhengSSS": 1 + 2 * 3,
        "hf-hub:ChenhongyiYang": 3,
        "https://dl.fbaipublicfiles.com/DiT": 2,
        "hf-hub:VSehwag24": 4,
        "hf-hub:QHL067": 2,
        "hf-hub:hjzheng": 3,
    }


def test_tags_are_unambiguous():
    for variant, rows in WEIGHTS.items():
        assert rows, variant
        assert len({w.tag for w in rows}) == len(rows), variant
        assert not any("." in w.tag for w in rows), variant
        form = "denoiser" if variant in DENOISERS else "classifier"
        assert rows[0].form == form, f"{variant}: the default must be a {form}"


def test_no_two_addresses_share_a_place_in_the_cache():
    places = defaultdict(set)
    for rows in WEIGHTS.values():
        for w in rows:
            places[local_path(w)].add(w.url)
    assert {place: urls for place, urls in places.items() if len(urls) > 1} == {}


@pytest.mark.parametrize(("variant", "weights"), ROWS)
def test_a_row_makes_sense(variant, weights):
    assert re.fullmatch(r"https://\S+|hf-hub:[\w.-]+/[\w.-]+(/\S+)?", weights.url)
    assert weights.license in ("mit", "apache-2.0", "cc-by-nc-4.0", "other", "none", "bsd-3-clause-clear")
    assert weights.num_classes in (0, 10, 100, 102, 1000, 11821, 21841, 21843)
    assert weights.interpolation in ("bicubic", "bilinear")
    assert weights.crop_mode in ("center", "squash")
    assert 0.8 < weights.crop_pct <= 1
    assert all(0 < value < 1 for value in (*weights.mean, *weights.std))
    if weights.form == "denoiser":
        arguments = DENOISERS[variant].arguments
        assert 1 < weights.metrics["fid"] < 20
        assert weights.input_size == (arguments.get("in_channels", 4), *arguments.get("size", (32, 32)))
        return
    assert all(30 < value <= 100 for value in weights.metrics.values())
    assert weights.sha256 is None or re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", weights.sha256)
    assert (
        (weights.form == "dense")
        == (weights.prefix == "backbone.")
        == ("top1" not in weights.metrics and len(weights.metrics) == 2)
    )
    if weights.form == "classifier" and (
        size := re.search(r"_(32|224|256|384)(?:_c100|_sine|_sine_c100|_22k)?$", variant)
    ):
        assert weights.input_size == (3, int(size[1]), int(size[1]))
    if variant.endswith("_22k"):
        assert weights.num_classes == 21841
    if (digits := re.search(r"-([0-9a-f]{8})\.pth$", weights.url)) is not None:
        assert weights.sha256 == digits[1]


@pytest.mark.parametrize(("variant", "weights"), [row for row in ROWS if row.values[1].source == "timm"])
def test_timm_states_its_copies_so(variant, weights):
    from timm.models import get_pretrained_cfg

    name = weights.url.removeprefix("hf-hub:timm/")
    theirs = get_pretrained_cfg(name, allow_unregistered=False)
    assert theirs.hf_hub_id == f"timm/{name}"
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "num_classes", "license"):
        assert getattr(theirs, key) == getattr(weights, key), key


def test_every_vit_of_timm_has_timms_default():
    import timm
    from timm.models import get_pretrained_cfg

    for variant in (name for name in WEIGHTS if re.match("(vit|deit)_(?!lite|res|.*prepbn)", name)):
        assert variant in timm.list_models()
        default = get_pretrained_cfg(variant).tag
        assert WEIGHTS[variant][0].tag == default


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("swin_tiny", "metrics", {"top1": 81.2}),
        ("swin_tiny.ms_in1k", "crop_pct", 0.875),
        ("swin_tiny.ms_in1k_timm", "crop_pct", 0.9),
        ("swin_base_384", "crop_mode", "squash"),
        ("swin_large", "tag", "ms_in22k_ft_in1k"),
        ("swin_base.ms_in22k", "num_classes", 21841),
        ("swin_base_22k", "tag", "ms_in22k"),
        ("swin_tiny.coco_mask_rcnn_1x", "metrics", {"box_ap": 43.7, "mask_ap": 39.8}),
        ("swin_small.ade20k_upernet", "metrics", {"miou": 47.64, "miou_multiscale": 49.47}),
        ("convnext_base_22k", "url", "https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth"),
        ("convnext_base_384", "metrics", {"top1": 85.1}),
        ("convnext_base.fb_in1k_384", "input_size", (3, 384, 384)),
        ("convnext_xlarge.in22k_ade20k_upernet", "input_size", (3, 640, 640)),
        ("convnext_isotropic_large", "metrics", {"top1": 82.6}),
        ("poolformer_s12", "crop_pct", 0.9),
        ("poolformer_m48", "crop_pct", 0.95),
        ("caformer_m36_384.sail_in22k_ft_in1k", "metrics", {"top1": 87.5}),
        ("caformer_m36.sail_in22k_ft_in1k_384", "url", "hf-hub:sail/dl/caformer/caformer_m36_384_in21ft1k.pth"),
        ("cct_7_3x1_32_sine_c100", "metrics", {"top1": 82.87}),
        ("cct_14_7x2_384.flowers102", "num_classes", 102),
        (
            "vit_lite_7_4_32",
            "url",
            "https://github.com/SHI-Labs/Compact-Transformers/files/6666087/vitlite7-4_cifar10.pth.zip",
        ),
        ("deit_tiny_distilled_patch16_224", "sha256", "b40b3cf7"),
        ("vit_base_patch16_224.orig_in21k_ft_in1k_hf", "url", "hf-hub:google/vit-base-patch16-224"),
    ],
)
def test_rows_as_the_papers_have_them(name, key, value):
    variant, weights = find_weights(name)
    assert getattr(weights, key) == value
    assert find_weights(name_of(weights))[1] == weights
    assert variant == name.partition(".")[0]


@pytest.mark.parametrize(
    ("name", "near"),
    [("swin_tinny", "swin_tiny"), ("swin_tiny.ms_in1K", "ms_in1k"), ("caformer_s18_348", "caformer_s18_384")],
)
def test_a_misspelt_name_gets_near_ones(name, near):
    with pytest.raises(ValueError, match=rf"did you mean .*\b{near}\b") as error:
        find_weights(name)
    assert "\n" not in str(error.value)


def test_a_published_files_name_says_what_it_is(tmp_path):
    variant, weights = find_file(tmp_path / "upernet_swin_base_patch4_window7_512x512.pth")
    assert (variant, weights.tag, weights.wrapper, weights.prefix) == (
        "swin_base",
        "ade20k_upernet",
        "state_dict",
        "backbone.",
    )
    assert find_file("caformer_s18_384_in21ft1k.pth")[1].tag == "sail_in22k_ft_in1k_384"
    assert find_file("model.safetensors") is find_file("mine.pth") is None


def test_preprocessing_has_timms_names_and_rows_are_hashable():
    weights = WEIGHTS["swin_tiny"][0]
    assert weights.preprocessing() == {
        "input_size": (3, 224, 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    assert len(set(WEIGHTS["swin_tiny"])) == len(WEIGHTS["swin_tiny"])
    assert {"tag", "url", "license"} <= {field.name for field in fields(Weights)}


def test_the_places_need_no_torch():
    code = "import sys, patchloom.vision.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "variant",
    ["swin_tiny", "convnext_tiny_22k", "deit_tiny_distilled_patch16_224", "cvt_7_4_32_c100", "poolformer_s12"],
)
def test_the_told_size_is_that_of_the_parameters(variant):
    from patchloom.vision.zoo import create_model

    parameters = sum(value.numel() for value in create_model(variant, device="meta").parameters())
    assert megabytes(variant, WEIGHTS[variant][0]) == pytest.approx(parameters * 4e-6, abs=0.21)


def test_sizes_are_told_for_every_classifier_and_no_detector():
    for variant, rows in WEIGHTS.items():
        for w in rows:
            assert (megabytes(variant, w) is None) == (w.form == "dense")
    assert megabytes("swin_tiny", find_weights("swin_tiny.ms_in22k")[1]) == pytest.approx(4 * 44.3)
    assert megabytes("caformer_s18", find_weights("caformer_s18.sail_in22k")[1]) == pytest.approx(4 * 69.0)
    assert set(WEIGHTS) <= set(MILLIONS)


def test_every_row_belongs_to_a_variant_and_the_other_way_round():
    from patchloom.vision.weights import published
    from patchloom.vision.zoo import VARIANTS

    assert set(WEIGHTS) <= {*VARIANTS, *DENOISERS}
    assert all(published(name) == WEIGHTS.get(name, ()) for name in DENOISERS)
    for variant, network in VARIANTS.items():
        assert published(variant) == WEIGHTS.get(variant, ())
        if variant in WEIGHTS:
            assert WEIGHTS[variant][0].num_classes in (network.classes, 0)
            assert WEIGHTS[variant][0].input_size[1:] == network.size
