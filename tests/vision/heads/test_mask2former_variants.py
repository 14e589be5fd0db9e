"""The published Mask2Formers: their sizes, a record through a file as detectron2 writes it, and files that are none."""

import pickle

import pytest
import torch
from golden import golden

from patchloom.vision.heads.mask2former_variants import WEIGHTS, mask2former, read_detectron2

MILLIONS = {"coco_instance_r50": 44, "coco_instance_swin_tiny": 47.42, "coco_instance_swin_small": 69,
            "coco_panoptic_swin_base_384_22k": 107, "coco_instance_swin_large_384_22k": 216}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_file_has_its_network(name):
    with torch.device("meta"):
        model = mask2former(name).model
    assert model.classes == WEIGHTS[name].num_classes
    if name in MILLIONS:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.012)


def test_addresses_are_the_authors_s():
    root = "https://dl.fbaipublicfiles.com/maskformer/mask2former/"
    assert WEIGHTS["coco_panoptic_swin_large_384_22k"].url == (
        root + "coco/panoptic/maskformer2_swin_large_IN21k_384_bs16_100ep/model_final_f07440.pkl"
    )
    assert WEIGHTS["ade20k_semantic_swin_tiny"].url == (
        root + "ade20k/semantic/maskformer2_swin_tiny_bs16_160k/model_final_5274a6.pkl"
    )
    assert len({w.url for w in WEIGHTS.values()}) == len(WEIGHTS) == 11


def test_a_file_of_detectron2_s_is_read_and_fits(tmp_path):
    record = golden.load("mask2former/swin_tiny_instance")
    arrays = {n: v.numpy() for n, v in record.state_dict().items()}
    path = tmp_path / "model_final_86143f.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=2))
    found = mask2former("coco_instance_swin_tiny")
    report = found.load(read_detectron2(path))
    assert not report.fresh
    with torch.inference_mode():
        record.compare("logits", found.model.eval()(record.input()).last.classes, 1e-5)


def test_other_files_are_refused(tmp_path):
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(ValueError, match=r"names builtins\.print; only arrays"):
        read_detectron2(bad)
    bad.write_bytes(pickle.dumps({"weights": {}}))
    with pytest.raises(ValueError, match='under the key "model"'):
        read_detectron2(bad)
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.pkl"):
        read_detectron2(bad)
    with pytest.raises(ValueError, match="no Mask2Former 'coco_swin_tiny'"):
        mask2former("coco_swin_tiny")
