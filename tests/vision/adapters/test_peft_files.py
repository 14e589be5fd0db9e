"""peft's own format: what is saved here loads in peft, and what peft saved loads here."""

import json
import warnings
from copy import deepcopy

import peft
import pytest
import torch
from peft_parts import bare, stirred
from safetensors.torch import load_file, save_file

from patchloom.vision.adapters import AdapterError, adapt, adapter, adapter_of, in_words, own_state, switch
from patchloom.vision.adapters.lora import Lora
from patchloom.vision.adapters.peft_names import from_peft, to_peft
from patchloom.vision.adapters.peft_raw import Peft
from patchloom.vision.plugins import attach
from patchloom.vision.plugins.merge import Merge

SPECS = (
    "lora:r=4", "lora:r=3,bias=true,targets=all", "rslora:r=4,targets=mlps", "dora:r=4", "pissa:r=4", "olora:r=3",
    "rslora:r=2,init=pissa", "lora:r=2,targets=q+v+fc1", "dora:r=2,targets=q", "pissa:r=2,targets=k+v",
    "lora:r=4,targets=convolution", "adalora:r=2,start=4", "vera:r=16", "ia3", "ia3:targets=q+fc2", "oft:block=8",
    "oft:block=8,exact=true,shared=true", "boft", "loha:r=4", "lokr:r=4", "lokr:r=2,factor=4,both=true", "hra:r=4",
    "ln_tuning", "fourierft:n=64", "delora:r=4", "road:form=road_4,group=16", "miss:r=8",
)  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))


def written(folder, config, state):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, folder / "adapter_model.safetensors")


def read(folder):
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_saved_here_loads_in_peft_and_here(spec, x, tmp_path):
    model = bare()
    adapt(model, adapter(spec))
    stirred(model)
    want = model(x)
    config, state = to_peft(model)
    written(tmp_path, config, state)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="peft")
        warnings.filterwarnings("ignore", "Unsupported layer type|Specified to not (save|load) vera_A")
        theirs = peft.PeftModel.from_pretrained(bare(), tmp_path).eval()
    torch.testing.assert_close(theirs(x), want, atol=2e-5, rtol=1e-5)
    ours = bare()
    from_peft(ours, *read(tmp_path), adapter=adapter(spec))
    torch.testing.assert_close(ours(x), want, atol=2e-5, rtol=1e-5)
    for name, value in own_state(model).items():
        torch.testing.assert_close(own_state(ours)[name], value)
    from_peft(ours, *read(tmp_path), "without our words")
    torch.testing.assert_close(ours(x), want, atol=2e-5, rtol=1e-5)
    switch(ours, None)
    assert torch.equal(ours(x), bare()(x))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            peft.LoraConfig(r=4, lora_alpha=16, target_modules=["qkv", "proj"], modules_to_save=["head"]),
            "lora:r=4,alpha=16",
        ),
        (peft.LoraConfig(r=2, use_dora=True, target_modules=["fc1", "fc2"]), "lora:targets=mlps,r=2,dora=true"),
        (peft.LoraConfig(target_modules=["qkv"], use_rslora=True), "lora:targets=qkv,rslora=true"),
        (peft.LoraConfig(r=2, target_modules=r".*\.1\.mixer\.qkv", rank_pattern={"qkv": 3}), None),
        (peft.VeraConfig(r=8, target_modules=["qkv"]), "vera:targets=qkv,r=8"),
        (peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]), "ia3:targets=fc2+qkv"),
        (peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["qkv"]), None),
        (peft.OFTConfig(oft_block_size=16, target_modules=["fc1"]), "oft:targets=fc1,block=16"),
        (peft.VBLoRAConfig(num_vectors=8, vector_length=16, topk=2, target_modules=["fc1"]), None),
        (peft.LoHaConfig(r=3, alpha=6, target_modules=["fc1"]), "loha:targets=fc1,r=3,alpha=6"),
        (peft.LNTuningConfig(target_modules=["norm1"]), "ln_tuning:targets=norm1"),
    ],
)
def test_what_peft_saved_loads_here(config, words, x, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = stirred(peft.get_peft_model(bare(), config)).eval()
        theirs.save_pretrained(tmp_path)
    model = bare()
    if isinstance(config, peft.VBLoRAConfig):
        with pytest.raises(AdapterError, match="VBLORA"):
            from_peft(model, *read(tmp_path))
        assert adapter_of(model) is None
        return
    from_peft(model, *read(tmp_path))
    torch.testing.assert_close(model(x), theirs(x), atol=1e-5, rtol=1e-5)
    if words is None:
        assert isinstance(adapter_of(model), Peft)
    else:
        assert in_words(adapter_of(model)).replace(".0", "") == words
    again = bare()
    from_peft(again, *to_peft(model))
    torch.testing.assert_close(again(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_a_head_of_other_classes_comes_with_the_file(x):
    model = bare()
    adapt(model, Lora(2))
    model.reset_classifier(3)
    stirred(model)
    other = bare()
    from_peft(other, *to_peft(model))
    assert other.num_classes == 3
    torch.testing.assert_close(other(x), model(x))
    switch(other, None)
    assert other.num_classes == 10


def test_it_stacks_with_token_plugins(x):
    model = bare()
    attach(model, Merge(2))
    adapt(model, Lora(2, targets=("q", "v")))
    stirred(model)
    other = bare()
    from_peft(other, *to_peft(model))
    attach(other, Merge(2))
    torch.testing.assert_close(other(x), model(x))


def broken(kind):
    model = bare()
    adapt(model, Lora(2))
    config, state = to_peft(model)
    first = next(n for n in state if "lora_A" in n)
    match kind:
        case "lacks":
            del state[first]
        case "no place":
            state[f"{first}.more"] = state[first]
        case "shape|size mismatch":
            state[first] = state[first][:, 1:]
        case "knows no method":
            config["peft_type"] = "LORE"
        case "refuses these settings":
            config["rank"] = 3
        case "no layer is called":
            config["target_modules"] = ["query"]
    return config, state


@pytest.mark.parametrize(
    "words",
    ["lacks", "no place", "shape|size mismatch", "knows no method", "refuses these settings", "no layer is called"],
)
def test_a_file_that_does_not_fit_changes_nothing(words):
    model = bare()
    before = deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=words):
        from_peft(model, *broken(words))
    assert model.adapters is None
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_what_peft_has_no_layer_for_is_said(x):
    model = bare()
    adapt(model, adapter("oft:block=8,targets=q"))
    with pytest.raises(AdapterError, match=r"mixer\.qkv: peft's format has no q of it for oft"):
        to_peft(model)
    with pytest.raises(AdapterError, match="no format for the adapter that is on"):
        to_peft(bare())
