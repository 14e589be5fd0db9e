"""Every published file of weights by the name of its variant; what `patchloom weights` lists."""

from difflib import get_close_matches
from os import PathLike
from pathlib import Path

from .families import (
    cct_weights,
    convnext_weights,
    cvt_weights,
    efficientformer_weights,
    illama_weights,
    metaformer_weights,
    plainmamba_weights,
    slab_weights,
    sret_weights,
    swin_weights,
    t2t_weights,
    tinyvit_weights,
    tnt_weights,
    vim_weights,
    vit_resnas_weights,
    vit_weights,
    vmamba_weights,
    vssd_weights,
)
from .generation import dimr, dit, lego, micro_dit
from .inception_weights import WEIGHTS as INCEPTION
from .published import Weights

WEIGHTS: dict[str, tuple[Weights, ...]] = {
    **vit_weights.WEIGHTS,
    **swin_weights.WEIGHTS,
    **metaformer_weights.WEIGHTS,
    **convnext_weights.WEIGHTS,
    **cct_weights.WEIGHTS,
    **cvt_weights.WEIGHTS,
    **tinyvit_weights.WEIGHTS,
    **efficientformer_weights.WEIGHTS,
    **illama_weights.WEIGHTS,
    **sret_weights.WEIGHTS,
    **vit_resnas_weights.WEIGHTS,
    **t2t_weights.WEIGHTS,
    **tnt_weights.WEIGHTS,
    **slab_weights.WEIGHTS,
    **vim_weights.WEIGHTS,
    **vmamba_weights.WEIGHTS,
    **vssd_weights.WEIGHTS,
    **plainmamba_weights.WEIGHTS,
    **dit.WEIGHTS,
    **micro_dit.WEIGHTS,
    **dimr.WEIGHTS,
    **lego.WEIGHTS,
}

TOOLS: dict[str, tuple[Weights, ...]] = {"inception": (INCEPTION,)}  # what evaluation looks with: fetched, no model

# millions of parameters, to tell about how large a download is whose size nobody states (a test counts them)
# fmt: off
MILLIONS: dict[str, float] = {
    "deit_tiny_prepbn": 5.7, "deit_small_prepbn": 22.1, "slab_deit_tiny": 6.2, "slab_deit_small": 23.0,
    "swin_tiny_prepbn": 28.3, "slab_swin_tiny": 29.2, "slab_swin_small": 50.6, "slab_pvt_tiny": 12.2, "vim_tiny": 7.1,
    "vim_tiny_stride8": 7.3, "vim_small": 25.8, "vim_small_stride8": 26.0, "vim_base": 97.6,
    "vmamba_vanilla_tiny": 22.9, "vmamba_vanilla_small": 44.4, "vmamba_vanilla_base": 76.3, "vmamba_tiny_s2l5": 30.7,
    "vmamba_small_s2l15": 50.1, "vmamba_base_s2l15": 88.6, "vmamba_tiny_s1l8": 30.2, "vmamba_small_s1l20": 49.0,
    "vmamba_base_s1l20": 86.6, "vssd_micro": 13.5, "vssd_tiny": 24.3, "vssd_small": 40.1, "vssd_base": 88.8,
    "plainmamba_l1": 7.6, "plainmamba_l2": 26.1, "plainmamba_l3": 51.0,
    "cvt_13": 20.0, "cvt_13_384": 20.0, "cvt_21": 31.6, "cvt_21_384": 31.6, "cvt_w24_384": 277.2,
    "tiny_vit_5m": 5.4, "tiny_vit_11m": 11.0, "tiny_vit_21m": 21.2, "tiny_vit_21m_384": 21.2, "tiny_vit_21m_512": 21.3,
    "tiny_vit_5m_22k": 12.1, "tiny_vit_11m_22k": 20.4, "tiny_vit_21m_22k": 33.2, "efficientformer_l1": 12.3,
    "efficientformer_l3": 31.4, "efficientformer_l7": 82.2, "efficientformerv2_s0": 3.6, "efficientformerv2_s1": 6.2,
    "efficientformerv2_s2": 12.7, "efficientformerv2_l": 26.3,
    "sret_t": 4.8, "sret_t_wo_slice": 4.8, "sret_lt": 5.0, "sret_lt_wo_slice": 5.0, "sret_lt_16_14_1": 5.0,
    "sret_s": 20.9, "sret_s_wo_slice": 20.9, "sret_t_distill": 4.8, "sret_t_wo_slice_distill": 4.8,
    "sret_lt_distill": 5.0, "sret_lt_wo_slice_distill": 5.0, "sret_t_wo_slice_384": 4.9, "sret_s_wo_slice_384": 21.1,
    "sret_s_wo_slice_512": 21.3, "vit_resnas_tiny": 41.5, "vit_resnas_small": 64.6, "vit_resnas_medium": 97.3,
    "vit_resnas_medium_280": 97.4, "vit_resnas_medium_336": 97.5, "vit_resnas_medium_392": 97.6,
    "tnt_s_patch16_224": 23.8, "tnt_b_patch16_224": 65.4,
    "t2t_vit_7": 4.3, "t2t_vit_10": 5.9, "t2t_vit_12": 6.9, "t2t_vit_14": 21.5, "t2t_vit_14_384": 21.7,
    "t2t_vit_19": 39.2,
    "t2t_vit_24": 64.1, "t2t_vit_t_14": 21.5, "t2t_vit_t_19": 39.2, "t2t_vit_t_24": 64.1,
    "illama_tiny": 5.7, "illama_small": 22.0, "illama_base": 86.5, "illama_base_384": 86.8, "illama_large": 310.4,
    "illama_large_384": 310.8,
    "vit_tiny_patch16_224": 5.7, "vit_tiny_patch16_384": 5.8, "vit_small_patch32_224": 22.9,
    "vit_small_patch32_384": 22.9, "vit_small_patch16_224": 22.1, "vit_small_patch16_384": 22.2,
    "vit_base_patch32_224": 88.2, "vit_base_patch32_384": 88.3, "vit_base_patch16_224": 86.6,
    "vit_base_patch16_384": 86.9, "vit_large_patch32_224": 306.5, "vit_large_patch32_384": 306.6,
    "vit_large_patch16_224": 304.3, "vit_large_patch16_384": 304.7, "deit_tiny_patch16_224": 5.7,
    "deit_small_patch16_224": 22.1, "deit_base_patch16_224": 86.6, "deit_base_patch16_384": 86.9,
    "deit_tiny_distilled_patch16_224": 5.9, "deit_small_distilled_patch16_224": 22.4,
    "deit_base_distilled_patch16_224": 87.3, "deit_base_distilled_patch16_384": 87.6, "swin_tiny": 28.3,
    "swin_small": 49.6, "swin_base": 87.8, "swin_base_384": 87.9, "swin_large": 196.5, "swin_large_384": 196.7,
    "swin_tiny_22k": 44.3, "swin_small_22k": 65.6, "swin_base_22k": 109.1, "swin_base_384_22k": 109.3,
    "swin_large_22k": 228.6, "swin_large_384_22k": 228.8, "swin_tiny_c24_256": 28.3, "poolformer_s12": 11.9,
    "poolformer_s24": 21.4, "poolformer_s36": 30.9, "poolformer_m36": 56.2, "poolformer_m48": 73.5,
    "poolformerv2_s12": 11.9, "poolformerv2_s24": 21.3, "poolformerv2_s36": 30.8, "poolformerv2_m36": 56.1,
    "poolformerv2_m48": 73.3, "identityformer_s12": 11.9, "identityformer_s24": 21.3, "identityformer_s36": 30.8,
    "identityformer_m36": 56.1, "identityformer_m48": 73.3, "randformer_s12": 12.1, "randformer_s24": 21.8,
    "randformer_s36": 31.5, "randformer_m36": 56.8, "randformer_m48": 74.3, "convformer_s18": 26.8,
    "convformer_s36": 40.0, "convformer_m36": 57.1, "convformer_b36": 99.9, "caformer_s18": 26.3, "caformer_s36": 39.3,
    "caformer_m36": 56.2, "caformer_b36": 98.8, "convformer_s18_384": 26.8, "convformer_s36_384": 40.0,
    "convformer_m36_384": 57.1, "convformer_b36_384": 99.9, "caformer_s18_384": 26.3, "caformer_s36_384": 39.3,
    "caformer_m36_384": 56.2, "caformer_b36_384": 98.8, "convnext_tiny": 28.6, "convnext_small": 50.2,
    "convnext_base": 88.6, "convnext_large": 197.8, "convnext_xlarge": 350.2, "convnext_isotropic_small": 22.3,
    "convnext_isotropic_base": 87.1, "convnext_isotropic_large": 305.9, "convnext_tiny_384": 28.6,
    "convnext_small_384": 50.2, "convnext_base_384": 88.6, "convnext_large_384": 197.8, "convnext_xlarge_384": 350.2,
    "convnext_tiny_22k": 44.6, "convnext_small_22k": 66.3, "convnext_base_22k": 110.0, "convnext_large_22k": 229.8,
    "convnext_xlarge_22k": 392.9, "cct_7_3x1_32": 3.8, "cct_7_3x1_32_c100": 3.8, "cct_7_3x1_32_sine": 3.8,
    "cct_7_3x1_32_sine_c100": 3.8, "cct_7_7x2_224_sine": 4.6, "cct_14_7x2_224": 22.4, "cct_14_7x2_384": 22.5,
    "vit_lite_7_4_32": 3.7, "vit_lite_7_4_32_c100": 3.7, "cvt_7_4_32": 3.7, "cvt_7_4_32_c100": 3.7,
    "cct_2_3x2_32": 0.3, "cct_4_3x2_32": 0.5, "cct_6_3x2_32": 3.3, "cct_7_3x2_32": 3.9, "cct_6_3x1_32": 3.2,
    "convformer_s18_in21k": 69.5, "convformer_s36_in21k": 82.7, "convformer_m36_in21k": 105.1,
    "dit_xl_2_256": 675.1, "dit_xl_2_512": 676.0, "microdit_xl_2_512": 1165.4, "microdit_xl_2_512_16ch": 1165.5,
    "dimr_xl_2r": 505.0, "dimr_g_2r": 1056.4, "lego_l_pg_64_old": 462.8, "lego_l_pr_64_old": 462.8,
    "lego_xl_u_32": 1261.4,
    "convformer_b36_in21k": 163.9, "caformer_s18_in21k": 69.0, "caformer_s36_in21k": 82.0, "caformer_m36_in21k": 104.2,
    "caformer_b36_in21k": 162.8, "cct_14_7x2_384_fl": 22.2,
}
# fmt: on


def find_weights(name: str) -> tuple[str, Weights]:
    """`variant` or `variant.tag` -> the variant and its weights, the default ones where no tag is given."""
    variant, dot, tag = name.partition(".")
    if variant in TOOLS:
        return variant, TOOLS[variant][0]
    if variant not in WEIGHTS:
        raise ValueError(
            f"no weights are published for {variant!r}; {near(variant, [*WEIGHTS, *TOOLS])}"
            "`patchloom weights list` has all"
        )
    rows = {w.tag: w for w in WEIGHTS[variant]}
    if not dot:
        return variant, WEIGHTS[variant][0]
    if tag not in rows:
        raise ValueError(f"{variant} has no weights {tag!r}; {near(tag, list(rows))}it has {', '.join(rows)}")
    return variant, rows[tag]


def near(word: str, words: list[str]) -> str:
    """'did you mean a or b? ' or nothing."""
    names = get_close_matches(word, words, 3)
    return f"did you mean {' or '.join(names)}? " if names else ""


def name_of(weights: Weights) -> str:
    """`variant.tag` of a table's weights; the tag alone of others."""
    every = (*WEIGHTS.items(), *TOOLS.items())
    return next((f"{variant}.{w.tag}" for variant, rows in every for w in rows if w == weights), weights.tag)


def find_file(path: str | PathLike[str]) -> tuple[str, Weights] | None:
    """The variant and weights whose published file has this file's name, if the name is of one only."""
    name = Path(path).name
    ends = (f"/{name}", f"#{name}")
    found = [(variant, w) for variant, rows in WEIGHTS.items() for w in rows if w.url.endswith(ends)]
    return found[0] if found and name not in ("model.safetensors", "pytorch_model.bin") else None


def megabytes(variant: str, weights: Weights) -> float | None:
    """About the size of a classifier's file: four bytes a parameter. None where it holds more than the network."""
    if weights.bytes is not None:
        return weights.bytes / 1e6
    if weights.form == "dense":
        return None
    names = [f"{variant}{end}" for end in ("_22k", "_in21k")] if weights.num_classes == 21841 else []
    return 4 * next(MILLIONS[name] for name in (*names, variant) if name in MILLIONS)
