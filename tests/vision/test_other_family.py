"""A file of another family's weights is refused, and the family that it fits is named."""

import pytest
import torch
from golden import golden

from patchloom.vision.families import FAMILIES
from patchloom.vision.weights import families_of, load_published
from patchloom.vision.zoo import VARIANTS, create_model, resolve

NOT_MODELS = {"linear_attention/", "tome/", "gmm_mask/mask", "svt/dtcwt", "slab/prepbn", "hst/",
              "lm4visual/llama_layers"}  # fmt: skip


def names(record):
    return {n: torch.empty(e["shape"], device="meta") for n, e in golden.load(record).meta["state"].items()}


def family_of(record):
    folder, name = record.split("/")
    try:
        return resolve(name).network.family
    except ValueError:  # a cut that nobody published
        return folder


RECORDS = [r for r in golden.available() if not any(r.startswith(n) for n in NOT_MODELS) and family_of(r) in FAMILIES]


def test_every_family_with_a_record_is_tried():
    assert {family_of(r) for r in RECORDS} >= {"cvt", "tnt", "slab", "gmm_mask", "vim", "vssd", "swin", "cct"}


@pytest.mark.parametrize("record", RECORDS)
def test_a_checkpoint_tells_its_family(record):
    assert family_of(record) in families_of(names(record))


@pytest.mark.parametrize(("record", "model", "family"), [
    ("cvt/cvt_13", "swin_tiny", "cvt"), ("vim/vim_tiny", "vit_tiny_patch16_224", "vim"),
    ("vmamba/vmamba_tiny_s1l8", "vssd_micro", "vmamba"), ("tinyvit/tiny_vit_5m", "favit_b0", "tinyvit"),
    ("rmt/rmt_tiny", "sret_t", "rmt"),
])  # fmt: skip
def test_it_is_refused_by_name(record, model, family):
    with pytest.raises(ValueError, match=rf"their names are those of .*\b{family}\b"):
        load_published(create_model(model), golden.load(record).state_dict())


def test_every_family_with_rules_has_variants():
    for name, module in FAMILIES.items():
        assert module.VARIANTS, name
        assert all(v.family == name for v in module.VARIANTS.values()), name
    assert len(VARIANTS) == sum(len(m.VARIANTS) for m in FAMILIES.values())
