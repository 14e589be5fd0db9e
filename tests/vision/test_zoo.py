"""Names, arguments and the numbers that a model says of itself."""

import inspect

import pytest
import torch

from patchloom.vision.families import FAMILIES
from patchloom.vision.model import Classifier
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.zoo import VARIANTS, create_model, describe, list_models, model_info, rebuild

PUBLISHED = {  # parameters, GMACs: the fact files'
    "swin_tiny": (28_288_354, 4.49), "swin_small": (49_606_258, 8.74), "swin_base": (87_768_224, 15.43),
    "swin_base_384": (87_903_584, 47.08), "swin_large": (196_532_476, 34.48), "swin_large_384": (196_735_516, 103.92),
    "swin_tiny_c24_256": (28_306_432, 5.92),
    "poolformer_s12": (11_915_176, 1.81), "poolformer_s24": (21_388_968, 3.39), "poolformer_s36": (30_862_760, 4.97),
    "poolformer_m36": (56_172_520, 8.76), "poolformer_m48": (73_473_448, 11.53),
    "identityformer_s12": (11_891_712, 1.81), "poolformerv2_m48": (73_346_056, 11.53),
    "randformer_s12": (12_127_010, 1.89), "randformer_m36": (56_783_062, 9.04),
    "convformer_s18": (26_774_448, 3.94), "convformer_b36_384": (99_882_616, 66.49),
    "convformer_m36": (57_051_640, 12.84), "caformer_s18": (26_341_656, 4.11),
    "caformer_s36_384": (39_297_102, 25.98), "caformer_b36": (98_753_614, 23.16),
    "convnext_tiny": (28_589_128, 4.46), "convnext_small": (50_223_688, 8.68), "convnext_base_384": (88_591_464, 45.12),
    "convnext_xlarge": (350_196_968, 60.92), "convnext_base_22k": (109_953_489, None),
    "convnext_isotropic_small": (22_308_712, 4.29), "convnext_isotropic_large": (305_942_504, 59.70),
    "vit_lite_7_4_32": (3_716_874, 0.25), "cvt_7_4_32": (3_716_619, 0.25), "cct_2_3x2_32": (283_723, 0.04),
    "cct_6_3x1_32": (3_233_803, 1.01), "cct_7_3x2_32": (3_853_259, 0.29), "cct_7_7x2_224": (4_573_735, 1.60),
    "cct_14_7x2_224": (22_367_273, 5.52), "cct_14_7x2_384": (22_513_193, 18.58),
    "cct_7_7x2_224_sine": (4_573_735, 1.60),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    info, (parameters, gmacs) = model_info(name), PUBLISHED[name]
    assert info.parameters == parameters
    assert gmacs is None or info.macs / 1e9 == pytest.approx(gmacs, rel=0.01, abs=0.0051)


def test_lists():
    assert set(list_models()) == {n for n, v in VARIANTS.items() if v.listed}
    assert list_models("swin_*_384") == ["swin_base_384", "swin_large_384"]
    assert list_models(["swin_tiny", "cct_2*"], exclude_filters="*_c100") == [
        "cct_2_3x2_32",
        "cct_2_3x2_32_sine",
        "swin_tiny",
    ]
    assert list_models("swin_tiny", pretrained=True)[0].startswith("swin_tiny.")
    assert all(VARIANTS[n].family == "vit" for n in list_models(module="vit"))
    assert list_models(module="vision_transformer") == list_models(module="deit") == list_models(module="vit") != []
    assert list_models(module=["swin_transformer", "resnet"]) == list_models(module="swin") != []
    assert list_models(module="resnet") == []


def test_every_table_of_weights_names_variants_that_exist():
    for family in FAMILIES.values():
        assert set(family.WEIGHTS) <= set(family.VARIANTS)


@pytest.mark.parametrize(
    ("name", "hint"), [("swin_tinny", "swin_tiny"), ("convnxt_base", "convnext_base"), ("swin_tiny.nope", "ms_in1k")]
)
def test_a_misspelt_name_is_answered_with_near_ones(name, hint):
    with pytest.raises(ValueError, match=hint):
        create_model(name)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="windw"):
        create_model("swin_tiny", windw=3)
    with pytest.raises(ValueError, match="features_only=True"):
        create_model("swin_tiny", out_indices=(1, 2))
    with pytest.raises(ValueError, match="no detection form"):
        create_model("cct_7_3x1_32", features_only=True, dense=True)
    with pytest.raises(ValueError, match="feature index 9"):
        create_model("swin_tiny", features_only=True, out_indices=(9,), device="meta")
    with pytest.raises(ValueError, match="global_pool 'max'"):
        create_model("swin_tiny", global_pool="max", device="meta")
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        create_model("cct_2_3x2_32")(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="larger image"):
        create_model("convnext_isotropic_small")(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("name", "kind", "size"), [
    ("swin_tiny_dense", Pyramid, 224), ("swin_tiny_160_dense", Pyramid, 160), ("swin_tiny_dense_160", Pyramid, 160),
    ("poolformer_s12_feat", Pyramid, 224), ("swin_tiny_256", Classifier, 256),
    ("cct_7_7x2_224_oblong", Classifier, 224), ("vit_tiny_patch16_224_384", Classifier, 384),
    ("swin_tiny_c24_256", Classifier, 256),
])  # fmt: skip
def test_a_record_s_stem_resolves(name, kind, size):
    model = create_model(name, device="meta")
    assert type(model) is kind
    assert model.default_cfg["input_size"] == (3, size, size)


def test_choosing_maps():
    model = create_model("cct_2_3x2_32", features_only=True, out_indices=1)
    assert len(model(torch.zeros(1, 3, 32, 32))) == 1
    model = create_model("vit_tiny_patch16_224", features_only=True, device="meta")
    assert [r["module"] for r in model.feature_info] == [f"backbone.stages.0.blocks.{i}" for i in (2, 5, 8, 11)]
    model = create_model("swin_tiny", features_only=True, out_indices=(1, 3), device="meta")
    assert model.channels == [192, 768]
    assert model.strides == [8, 32]


def test_a_learned_position_is_made_for_the_size_asked_for():
    model = create_model("vit_tiny_patch16_224", img_size=(160, 288), device="meta")
    assert model.backbone.stem.position.table.shape[1] == 1 + 10 * 18


@pytest.mark.parametrize("name", ["swin_tiny", "cct_2_3x2_32", "deit_tiny_distilled_patch16_224", "caformer_s18"])
def test_described_and_rebuilt(name):
    model = create_model(name, num_classes=5, in_chans=1, drop_path_rate=0.1, device="meta")
    again = rebuild(describe(model) | {"arguments": describe(model)["arguments"] | {"device": "meta"}})
    assert again.num_classes == 5
    assert again.in_chans == 1
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_description_cannot_import_what_it_likes():
    with pytest.raises(ValueError, match="import antigravity"):
        rebuild({"class_path": "antigravity.Anything", "init_args": {}})
    with pytest.raises(ValueError, match="no part of a model"):
        rebuild({"class_path": "patchloom.vision.zoo.create_model", "init_args": {}})


def test_a_distilled_model_shows_both_logits_while_it_trains():
    model = create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    model.set_distilled_training()
    a, b = model.train()(torch.zeros(2, 3, 64, 64))
    assert a.shape == b.shape == (2, 3)
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(ValueError, match="no distillation token"):
        create_model("cct_2_3x2_32").set_distilled_training()


def test_the_doc_says_every_argument():
    for name in inspect.signature(create_model).parameters:
        assert name in (create_model.__doc__ or "") or name in ("feature_cls", "options")
