"""FastV against what its authors' code computes, and its laws."""

import pytest
import torch
from golden import golden
from multimodal_parts import attend_last, decoder_of_record, images_in, small_decoder
from torch import Tensor

from patchloom.multimodal.plugins import attach, attached, plugin
from patchloom.multimodal.plugins.fastv import FastV, staying
from patchloom.multimodal.stream import Stream
from patchloom.vision.plugins import SeamError

RECORD = "fastv/llama_tiny_k2"


def recorded() -> tuple[golden.Record, Stream]:
    record = golden.load(RECORD)
    x, config = record.input(), record.meta["config"]
    n, first = config["fast_v_image_token_length"], config["fast_v_sys_length"]
    return record, images_in(x, [(first, first + n)])


@torch.inference_mode()
def test_record() -> None:
    record, stream = recorded()
    decoder = decoder_of_record(record)
    record.compare("plain.hidden", decoder(stream).x, 1e-5)
    with attached(decoder, FastV(k=2, r=0.5)):
        out = decoder(stream)
        record.compare("kept_positions", out.place, 0)
        record.compare("dropped.hidden", out.x, 1e-5)
    with attached(decoder, FastV(k=2, r=0.5, masked=True)):
        record.compare("masked.hidden", decoder(stream).x, 1e-5)
    record.compare("plain.hidden", decoder(stream).x, 1e-5)


@torch.inference_mode()
def test_rows_of_a_batch_are_reduced_as_if_alone() -> None:
    decoder = small_decoder()
    long, short = torch.randn(1, 20, 32), torch.randn(1, 14, 32)
    first, second = images_in(long, [(3, 13)]), images_in(short, [(2, 6), (8, 11)])
    both = attend_last([first, second])
    with attached(decoder, plugin("fastv:k=1,r=0.5")):
        out = decoder(both)
        assert out.real is not None
        for i, alone in enumerate((decoder(first), decoder(second))):
            assert torch.equal(out.place[i][out.real[i]], alone.place[0])
            assert torch.equal(out.image[i][out.real[i]], alone.image[0])
            torch.testing.assert_close(out.x[i][out.real[i]], alone.x[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True])
def test_a_cache_holds_what_was_chosen_once(masked: bool) -> None:
    """A later step reads, from layer k on, exactly what a whole run with the same choice reads."""
    decoder = small_decoder(layers=4)
    x = torch.randn(1, 24, 32)
    stream = images_in(x[:, :23], [(3, 17)])
    step = Stream(x[:, 23:], torch.full((1, 1), 23), torch.zeros(1, 1, dtype=torch.long), past=23)
    with attached(decoder, FastV(k=2, r=0.5, masked=masked)):
        cache = decoder.cache(1)
        kept = decoder(stream, cache).place
        got = decoder(step, cache).x[:, -1]
    assert cache.lengths() == [24, 24, *([24, 24] if masked else [17, 17])]

    def again(stays: Tensor) -> Tensor:  # the choice that was made, forced on one more token
        whole = images_in(x, [(3, 17)])
        with attached(decoder, Forced(stays)):
            return decoder(whole).x[:, -1]

    if not masked:
        stays = torch.zeros(1, 24, dtype=torch.bool)
        stays[0, kept[0]] = stays[0, 23] = True
        torch.testing.assert_close(got, again(stays), rtol=1e-4, atol=1e-5)


class Forced(FastV):
    def __init__(self, stays: Tensor):
        object.__setattr__(self, "stays", stays)

    def place(self, hosts):  # type: ignore[no-untyped-def]
        from patchloom.multimodal.plugins import Placed

        stays: Tensor = self.stays  # type: ignore[attr-defined]

        class Fixed(torch.nn.Module):
            def forward(self, stream: Stream) -> Stream:
                return stream.where(stays)

        return [Placed(hosts[2], "before_block", Fixed())]


@torch.inference_mode()
def test_nothing_leaves_at_zero_nor_without_images() -> None:
    decoder = small_decoder()
    stream = images_in(torch.randn(2, 12, 32), [(2, 8)])
    want = decoder(stream).x
    with attached(decoder, FastV(k=1, r=0)):
        assert torch.equal(decoder(stream).x, want)
    text = images_in(torch.randn(2, 12, 32), [])
    want = decoder(text).x
    with attached(decoder, FastV(k=1, r=0.5)):
        assert torch.equal(decoder(text).x, want)


def test_taken_off_it_leaves_the_model_as_it_was() -> None:
    decoder = small_decoder()
    names = list(decoder.state_dict())
    detach = attach(decoder, FastV(k=1))
    assert decoder.plugins == (FastV(k=1),)
    with pytest.raises(SeamError, match="taken by Rank"):
        attach(decoder, FastV(k=1, r=0.25))
    detach()
    assert list(decoder.state_dict()) == names
    assert decoder.plugins == ()
    assert decoder.seams[0].after_block is None


def test_gradients_flow_with_checkpointing_too() -> None:
    decoder = small_decoder().train()
    found = []
    for saved in (False, True):
        decoder.grad_checkpointing = saved
        decoder.zero_grad()
        with attached(decoder, FastV(k=1, r=0.5)):
            torch.manual_seed(1)
            x = torch.randn(1, 16, 32, requires_grad=True)
            decoder(images_in(x, [(2, 12)])).x.square().mean().backward()
        grad = decoder.layers[2].self_attn.q_proj.weight.grad
        assert x.grad is not None
        assert float(grad.abs().sum()) > 0
        found.append((grad.clone(), x.grad.clone()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision() -> None:
    decoder = small_decoder().bfloat16()
    stream = images_in(torch.randn(1, 17, 32, dtype=torch.bfloat16), [(1, 12)])
    with torch.inference_mode(), attached(decoder, FastV(k=1, r=0.3)):
        out = decoder(stream)
    assert out.x.dtype == torch.bfloat16
    assert out.x.shape[1] == 17 - 11 + 7
    assert out.x.isfinite().all()


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="k=0"):
        FastV(k=0)
    with pytest.raises(ValueError, match=r"r=1\.0"):
        FastV(r=1.0)
    with pytest.raises(ValueError, match="3 layers"):
        attach(small_decoder(), FastV(k=3))
    with pytest.raises(ValueError, match="did you mean fastv"):
        plugin("fast_v:k=2")


@pytest.mark.parametrize(
    ("n", "r", "stay"), [(576, 0.5, 288), (10, 0.9, 1), (36, 0.5, 18), (7, 0.5, 3), (576, 0.75, 144)]
)
def test_how_many_stay(n: int, r: float, stay: int) -> None:
    assert staying(n, r) == stay
