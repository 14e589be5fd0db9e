"""Dual-path routing and truncated depth against the same written out layer by layer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from multimodal_parts import images_in, small_decoder
from torch import Tensor, nn

from patchloom.multimodal.attention import Look
from patchloom.multimodal.decoder import Decoder, run
from patchloom.multimodal.plugins import attach, attached
from patchloom.multimodal.plugins.dpvr import Branch, DualPath
from patchloom.multimodal.plugins.visual_depth import VisualDepth
from patchloom.multimodal.stream import Stream

N, IMAGES = 15, [(2, 6), (8, 11)]


def layer_of(decoder: Decoder, layer: nn.Module, stream: Stream) -> Stream:
    return replace(stream, x=run(layer, stream.x, Look(stream)))


def entered(decoder: Decoder) -> Stream:
    return decoder.entered(images_in(torch.randn(1, N, 32), IMAGES))


def norm(decoder: Decoder, x: Tensor) -> Tensor:
    return decoder.left(x)


@torch.inference_mode()
def test_two_paths_meet_before_the_last_layer() -> None:
    decoder = small_decoder(layers=5)
    start = entered(decoder)
    at = torch.arange(N)[None]
    text, image = at[start.image == 0][None], at[start.image > 0][None]
    stream = layer_of(decoder, decoder.layers[0], start)
    side = layer_of(decoder, decoder.layers[1], stream.at(image))
    words = stream.at(text)
    for layer in decoder.layers[1:4]:
        words = layer_of(decoder, layer, words)
    x = torch.empty_like(start.x)
    x[:, text[0]], x[:, image[0]] = words.x, side.x
    want = layer_of(decoder, decoder.layers[4], replace(stream, x=x))
    with attached(decoder, DualPath(k=1)):
        out = decoder(images_in(start.x, IMAGES))
    assert torch.equal(out.place, start.place)
    assert torch.equal(out.image, start.image)
    assert out.real is None
    torch.testing.assert_close(out.x, norm(decoder, want.x), rtol=1e-5, atol=1e-5)


def test_only_the_branch_learns_where_the_decoder_is_frozen() -> None:
    """One of 32 layers is about 3%, as published."""
    decoder = small_decoder(layers=4).requires_grad_(False)
    attach(decoder, DualPath(k=1))
    branch = decoder.seams[1].before_block
    assert isinstance(branch, Branch)
    before = deepcopy(branch.layer.state_dict())
    assert all(torch.equal(p, before[n]) for n, p in decoder.layers[1].named_parameters())
    learning = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
    assert all(name.startswith("seams.1.before_block.layer.") for name in learning)
    assert sum(p.numel() for p in learning.values()) == sum(p.numel() for p in decoder.layers[0].parameters())
    optimizer = torch.optim.SGD(learning.values(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        decoder(images_in(torch.randn(2, N, 32), IMAGES)).x[:, -1].square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in learning.values())
        optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in decoder.layers[1].named_parameters())
    assert not any(torch.equal(p, before[n]) for n, p in branch.layer.named_parameters())


@torch.inference_mode()
def test_image_tokens_leave_for_good() -> None:
    decoder = small_decoder(layers=4)
    start = entered(decoder)
    stream = layer_of(decoder, decoder.layers[0], start)
    stream = stream.where(start.image == 0)
    for layer in decoder.layers[1:]:
        stream = layer_of(decoder, layer, stream)
    with attached(decoder, VisualDepth(1)):
        out = decoder(images_in(start.x, IMAGES))
    assert out.place[0].tolist() == [0, 1, 6, 7, 11, 12, 13, 14]
    torch.testing.assert_close(out.x, norm(decoder, stream.x), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_frozen_image_tokens_are_read_but_do_not_change() -> None:
    decoder = small_decoder(layers=4)
    start = entered(decoder)
    stream = layer_of(decoder, decoder.layers[0], start)
    still = stream.x
    for layer in decoder.layers[1:]:
        stream = layer_of(decoder, layer, replace(stream, x=still.where(start.image[..., None] > 0, stream.x)))
    with attached(decoder, VisualDepth(1, frozen=True)):
        out = decoder(images_in(start.x, IMAGES))
    text = start.image == 0
    torch.testing.assert_close(out.x[text], norm(decoder, stream.x)[text], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_blind_decoder_reads_text_alone_and_the_end() -> None:
    decoder = small_decoder()
    x = torch.randn(1, 8, 32)
    with attached(decoder, VisualDepth(0)):
        ends = decoder(images_in(x, [(1, 4), (6, 8)]))
        assert ends.place[0].tolist() == [0, 4, 5, 7]
        other = x.clone()
        other[:, 1:4] += 1
        assert torch.equal(decoder(images_in(other, [(1, 4), (6, 8)])).x, ends.x)


@pytest.mark.parametrize("plugin", [VisualDepth(1), DualPath(1), VisualDepth(1, frozen=True)])
@torch.inference_mode()
def test_text_alone_is_untouched(plugin: VisualDepth | DualPath) -> None:
    decoder = small_decoder()
    text = images_in(torch.randn(2, 12, 32), [])
    want = decoder(text).x
    with attached(decoder, plugin):
        assert torch.equal(decoder(text).x, want)


@pytest.mark.parametrize("plugin", [VisualDepth(1), DualPath(1), VisualDepth(1, frozen=True)])
@torch.inference_mode()
def test_what_is_learned_goes_along(plugin: VisualDepth | DualPath) -> None:
    """Each token keeps its target, whatever stands where."""
    decoder = small_decoder()
    stream = images_in(torch.randn(2, 12, 32), [(2, 7)])
    target = torch.arange(12).expand(2, -1) + 100
    with attached(decoder, plugin):
        out = decoder(replace(stream, target=target))
    assert out.target is not None
    assert torch.equal(out.target, out.place + 100)
