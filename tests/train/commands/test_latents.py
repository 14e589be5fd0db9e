"""patchloom latents: what is written is what the autoencoder says, whole, resumable, and of no other autoencoder."""

import json
import re

import numpy as np
import pytest
import torch
from generation_parts import save_autoencoder, save_pictures
from PIL import Image
from safetensors.torch import load_file

from patchloom.data.centre_crop import CentreCrop, centre_crop, to_tensor
from patchloom.data.folders import Folder
from patchloom.data.latents import LatentsData, Manifest
from patchloom.train.cli import main
from patchloom.vision.generation.autoencoder import Autoencoder, LatentSpace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(pictures, autoencoder, folder of latents)"""
    root = tmp_path_factory.mktemp("latents")
    pictures = save_pictures(root / "pictures", {"train": 5, "val": 2})
    vae = save_autoencoder(root / "vae")
    assert main(["latents", str(pictures), str(root / "out"), *options(vae)]) == 0
    return pictures, vae, root / "out"


def options(autoencoder: str, **changed: str) -> list[str]:
    given = {
        "vae": autoencoder,
        "size": "16x24",
        "dtype": "float32",
        "shard": "4",
        "batch": "3",
        "device": "cpu",
    } | changed
    return ["--flips", *(word for name, value in given.items() for word in (f"--{name}", value))]


def data(folder, **options) -> LatentsData:
    made = LatentsData(str(folder), batch_size=4, workers=0, **options)
    made.setup("fit")
    return made


def test_what_is_written_is_what_the_autoencoder_says(made):
    pictures, vae, out = made
    source, autoencoder = Folder(pictures / "train"), Autoencoder(vae)
    files = [load_file(out / f"train-{i:05}.safetensors") for i in range(3)]
    assert [len(f["labels"]) for f in files] == [4, 4, 2]
    rows = {name: torch.cat([f[name] for f in files]) for name in files[0]}
    for i in range(len(source)):
        image, label = source.load(i)
        x = to_tensor(centre_crop(image, (16, 24)))[None].float() / 127.5 - 1
        for suffix, seen in (("", x), ("_flipped", x.flip(3))):
            mean, std = autoencoder.encode(seen)
            torch.testing.assert_close(rows["mean" + suffix][i : i + 1], mean, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(rows["std" + suffix][i : i + 1], std, atol=1e-6, rtol=1e-5)
        assert rows["labels"][i] == label
    inner = autoencoder.vae.encode(x).latent_dist
    torch.testing.assert_close(mean, 0.18215 * autoencoder.vae.encode(x.flip(3)).latent_dist.mean)
    assert not torch.equal(inner.mean, mean)


def test_the_data_draws_from_mean_and_deviation(made):
    _, _, out = made
    one = data(out)
    assert one.classes == ["cat", "dog"]
    assert one.preprocessing["input_size"] == (4, 4, 6)
    loader = one.train_dataloader()
    first, second = ([x for x, _ in loader] for _ in range(2))
    assert first[0].shape == (4, 4, 4, 6)
    assert first[0].dtype == torch.float32
    assert not torch.equal(first[0], second[0])  # another epoch, another draw
    again = [x for x, _ in data(out).train_dataloader()]
    assert all(map(torch.equal, first, again))
    val = data(out).val_dataloader()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(val, val, strict=True))  # evaluation has the same in each epoch
    source = data(out).splits.train
    draws = torch.stack([one._read_by("train", source, True)._picture(e, 3)[0] for e in range(400)])
    rows = [source.row(3, flipped) for flipped in (False, True)]
    mean, std = (sum(row[k] for row in rows) / 2 for k in (0, 1))
    spread = (std**2 + ((rows[0][0] - rows[1][0]) / 2) ** 2).sqrt()
    assert ((draws.mean(0) - mean).abs() / spread).max() < 5 / 400**0.5
    means = data(out, sample=False)
    x = means._read_by("val", means.splits.val, False)._picture(0, 1)[0]
    assert torch.equal(x, means.splits.val.row(1)[0])


def test_it_goes_on_where_it_was(made, tmp_path, monkeypatch, capsys):
    pictures, vae, out = made
    whole = {p.name: p.read_bytes() for p in out.iterdir()}
    calls = []
    encode = Autoencoder.encode

    def failing(self, x):
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(Autoencoder, "encode", failing)
    assert main(["latents", str(pictures), str(tmp_path / "out"), *options(vae)]) == 130
    there = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert there == ["latents.json", "train-00000.safetensors"]
    with pytest.raises(ValueError, match="not complete; go on with patchloom latents"):
        data(tmp_path / "out")
    assert main(["latents", str(pictures), str(tmp_path / "out"), *options(vae)]) == 0
    there = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert sorted(name for name in whole if whole[name] != there[name]) == []
    assert sum(calls[5:]) == 2 * (10 - 4 + 4)  # nothing was encoded twice
    (tmp_path / "out" / "train-00001.safetensors").write_bytes(b"damaged")
    assert main(["latents", str(pictures), str(tmp_path / "out"), *options(vae)]) == 0
    assert (tmp_path / "out" / "train-00001.safetensors").read_bytes() == whole["train-00001.safetensors"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vae": "other"}, "are latents of autoencoder"),
        ({"size": "16"}, r"holds latents with size \(4, 4, 6\), asked for is \(4, 4, 4\): take another OUT"),
        ({"size": "18"}, "sides must be multiples of 4"),
        ({"dtype": "float16"}, "with dtype float32, asked for is float16"),
        ({"vae": "/nowhere/vae"}, "no autoencoder /nowhere/vae: there is no such folder"),
        ({"shard": "2"}, "other pictures: DATA or --shard has changed"),
    ],
)
def test_other_settings_are_refused_by_name(made, tmp_path, capsys, changed, says):
    pictures, vae, out = made
    if changed.get("vae") == "other":
        changed = {"vae": save_autoencoder(tmp_path / "other", seed=1)}
    assert main(["latents", str(pictures), str(out), *options(vae, **changed)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(says, said), said


def test_latents_of_another_autoencoder_are_refused(made):
    _, vae, out = made
    assert data(out, autoencoder=vae).classes == ["cat", "dog"]
    assert data(out, autoencoder=Manifest.read(out).latents["digest"][:10]).classes == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"data.autoencoder asks for sd-vae"):
        data(out, autoencoder="sd-vae")


def test_one_encoder_with_two_decoders_is_one_space(made, tmp_path):
    _, vae, _ = made
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        model.decoder.conv_out.bias += 1
    model.save_pretrained(tmp_path / "mse")
    a, b = Autoencoder(vae), Autoencoder(str(tmp_path / "mse"))
    assert a.space.digest == b.space.digest
    assert a.decoder != b.decoder
    LatentSpace.of(json.loads(json.dumps(a.space.plain()))).check(b.space, "a", "b")


def test_images_come_back_through_the_decoder(made):
    _, vae, _ = made
    autoencoder = Autoencoder(vae)
    x = torch.rand(1, 3, 16, 24) * 2 - 1
    mean, _ = autoencoder.encode(x)
    theirs = autoencoder.vae.decode(autoencoder.vae.encode(x).latent_dist.mean).sample
    torch.testing.assert_close(autoencoder.decode(mean), theirs)
    autoencoder.train()
    assert not autoencoder.vae.training
    with pytest.raises(ValueError, match="17 x 24 pixels: sides must be multiples of 4"):
        autoencoder.encode(x.new_zeros(1, 3, 17, 24))


def test_unreadable_pictures_stop_or_are_left_out(made, tmp_path, capsys):
    _, vae, _ = made
    pictures = save_pictures(tmp_path / "pictures", {"train": 2})
    (pictures / "train" / "cat" / "0.png").write_bytes(b"no picture")
    assert main(["latents", str(pictures), str(tmp_path / "out"), *options(vae)]) == 1
    assert "cat/0.png" in capsys.readouterr().err
    skip = [*options(vae), "--on-error", "skip", "--json"]
    assert main(["latents", str(pictures), str(tmp_path / "out"), *skip]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == {"train": 3}
    assert len(data(tmp_path / "out").splits.train) == 3


def test_the_crop_halves_by_boxes():
    image = Image.effect_noise((130, 67), 60)
    ours = centre_crop(image, (16, 16))
    theirs = image.resize((65, 33), Image.Resampling.BOX)
    theirs = theirs.resize((32, 16), Image.Resampling.BOX)  # 65 // 2, 33 // 2
    left = (theirs.width - 16) // 2
    assert ours.size == (16, 16)
    assert ours.tobytes() == theirs.crop((left, 0, left + 16, 16)).tobytes()
    assert centre_crop(image, (90, 40)).size == (40, 90)
    flipping = CentreCrop(hflip=1.0).pipeline({"input_size": (3, 16, 16), "mean": 0.5, "std": 0.5})
    picture = flipping.picture(image.convert("RGB"))
    x = flipping.finish(picture[None], 0, np.zeros(1, np.int64), np.zeros(1, np.int64))
    torch.testing.assert_close(x, picture.flip(2)[None].float() / 127.5 - 1)
