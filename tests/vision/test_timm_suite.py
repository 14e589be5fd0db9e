"""timm's own tests of models over ours: create_model, list_models and get_pretrained_cfg_value are the zoo's."""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

from patchloom.train.catalogue.figures import FIGURES
from patchloom.vision import zoo

# parameters of what counts as tiny to base; a 22k head on top is another head, not another network
LARGEST = 100_000_000
SMALLEST = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny",
    "poolformer_s12",
    "poolformerv2_s12",
    "identityformer_s12",
    "randformer_s12",
    "convformer_s18",
    "caformer_s18",
    "convnext_tiny",
    "convnext_isotropic_small",
    "cvt_13",
    "astroformer_0",
    "fmvit_own",
    "vim_tiny",
    "vmamba_vanilla_tiny",
    "vmamba_tiny_s1l8",
    "vssd_micro",
    "plainmamba_l1",
    "vir_small_patch16_224",
    "resformer_tiny_patch16",
    "illama_tiny",
    "vit_lite_7_4_32",
    "cvt_7_4_32",
    "cct_2_3x2_32",
    "tiny_vit_5m",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "t2t_vit_7",
    "tnt_ti_patch16_224",
    "pyramid_tnt_ti",
    "sret_t",
    "vit_resnas_tiny",
    "gmm_vit",
    "favit_b0",
    "svt_s",
    "rmt_tiny",
    "slab_deit_tiny",
    "sam_vit_b",
    "vit_comer_seg_tiny",
    "mamba_yolo_tiny",
    "vit_llama_tiny_patch16_224",
)


class Marks:
    """Stands for pytest.mark while the file is read: keeps what a test is parametrized with, knows any marker."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def mark(*arguments: Any, **_: Any) -> Any:
            if inspect.isfunction(arguments[0]):  # a marker without arguments
                return arguments[0]

            def decorate(test: Any) -> Any:
                if name == "parametrize":
                    test.cases = {**getattr(test, "cases", {}), arguments[0]: arguments[1]}
                return test

            return decorate

        return mark


def create_whole(name: str, **options: Any) -> Any:
    """The zoo's, in training with the head that only token labels train: its logits of all patches join the batch."""

    def joined(_: Any, __: Any, out: Any) -> Any:
        return tuple(y.flatten(0, -2) for y in out) if isinstance(out, tuple) else out

    model = zoo.create_model(name, **options)
    if getattr(model, "head_patches", None) is not None:
        model.set_patch_training()
        model.register_forward_hook(joined)
    return model


def read_suite() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timm_test_models", Path(__file__).with_name("timm_test_models.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_whole)
        for name in ("list_models", "get_pretrained_cfg_value"):
            patch.setattr(timm, name, getattr(zoo, name))
        patch.setattr(pytest, "mark", Marks())
        patch.setattr(
            torch._C, "_jit_set_profiling_executor", lambda _: None
        )  # a process-wide switch, for scripting only
        patch.setattr(torch._C, "_jit_set_profiling_mode", lambda _: None)
        spec.loader.exec_module(module)
    return module


SUITE = read_suite()
PARTS = {
    "forward": SUITE.test_model_forward,
    "backward": SUITE.test_model_backward,
    "features": SUITE.test_model_forward_features,
    "features by intermediates": SUITE.test_model_forward_intermediates_features,
    "intermediates": SUITE.test_model_forward_intermediates,
    "default_cfg": SUITE.test_model_default_cfgs,
    "default_cfg, tokens": SUITE.test_model_default_cfgs_non_std,
}
# sequences, not maps: timm judges such by its test for tokens
GIVE_TOKENS = (
    "vit_", "deit_", "cct_", "cvt_", "t2t_", "tnt_", "illama_", "resformer_", "gmm_vit_plain", "gmm_cait",
    "gmm_pit", "svt_", "vim_", "vir_")  # fmt: skip

FROZEN = ("vit_llama_",)  # a language model's layers have no gradient: tests/vision/test_other_family.py
GIVE_MAPS = ("vit_comer_",)  # four, and a classifier sees the last alone: tests/vision/families asks for all gradients


def tiny_to_base() -> list[str]:
    return [
        name
        for name in zoo.list_models()
        if FIGURES[name][1] <= LARGEST and not name.endswith(("_22k", "_in21k", "_in22k"))
    ]


def applies(part: str, name: str) -> bool:
    """timm's choice where it is by names; where it is by timm's modules, which lack some of ours, all take part."""
    if part.startswith("default_cfg"):
        return name.startswith(GIVE_TOKENS) == (part == "default_cfg, tokens")
    return part != "backward" or not name.startswith((*GIVE_MAPS, *FROZEN))


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(part, name) for part in PARTS for name in names if applies(part, name)]


def check(part: str, name: str) -> None:
    test = PARTS[part]
    given = {"model_name": name, "batch_size": test.cases["batch_size"][0], "cfg_device": "meta"}
    test(**{key: given[key] for key in inspect.signature(test).parameters})


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), cases(SMALLEST))
def test_smallest_of_each_kind(part: str, name: str) -> None:
    check(part, name)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), cases([name for name in tiny_to_base() if name not in SMALLEST]))
def test_tiny_to_base(part: str, name: str) -> None:
    check(part, name)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_timm_would_choose_them_itself(part: str) -> None:
    chosen = set(PARTS[part].cases["model_name"])
    assert set(tiny_to_base()) <= chosen, "with list_models pointed at the zoo, timm's filters must leave ours in"


def test_every_kind_is_among_the_smallest() -> None:
    """A family that is added later must be put into SMALLEST."""
    kinds = {zoo.VARIANTS[name].family for name in zoo.list_models()}
    assert kinds == {zoo.VARIANTS[name].family for name in SMALLEST}
