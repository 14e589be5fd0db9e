"""SVT written plainly (https://arxiv.org/abs/2311.01310), under the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANT = "svt_s"
SIZES = {"svt_s": (32, (64, 128, 320, 448), (2, 4, 10, 14), (3, 4, 6, 3))}
# fmt: off
H0 = (-0.0017578125, 0, 0.022265625, -0.046875, -0.0482421875, 0.296875, 0.55546875)
H1 = (-7.062639508928571e-05, 0, 0.0013419015066964285, -0.0018833705357142855, -0.007156808035714285,
      0.023856026785714284, 0.05564313616071428, -0.05168805803571428, -0.29975760323660716, 0.5594308035714286)
G0 = (7.062639508928571e-05, 0, -0.0013419015066964285, -0.0018833705357142855, 0.007156808035714285,
      0.023856026785714284, -0.05564313616071428, -0.05168805803571428, 0.29975760323660716, 0.5594308035714286)
G1 = (-0.0017578125, 0, 0.022265625, 0.046875, -0.0482421875, -0.296875, 0.55546875)
# fmt: on


class Filters(nn.Module):
    def __init__(self, **halves: tuple[float, ...]):
        super().__init__()
        for name, half in halves.items():
            self.register_buffer(name, torch.tensor((*half, *half[-2::-1])).view(1, 1, -1, 1))

    def down(self, x: Tensor, name: str) -> Tensor:  # B C H W, along H
        taps = getattr(self, name)
        pad = taps.shape[2] // 2
        x = torch.cat([x[:, :, :pad].flip(2), x, x[:, :, -pad:].flip(2)], 2)
        return F.conv2d(x, taps.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])

    def across(self, x: Tensor, name: str) -> Tensor:
        taps = getattr(self, name).transpose(2, 3)
        pad = taps.shape[3] // 2
        x = torch.cat([x[..., :pad].flip(3), x, x[..., -pad:].flip(3)], 3)
        return F.conv2d(x, taps.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])


class Scattering(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        b = dim // 4
        self.complex_weight_ll = nn.Parameter(torch.randn(dim, 56, 56) * 0.02)
        for i in (1, 2):
            setattr(self, f"complex_weight_lh_{i}", nn.Parameter(torch.randn(2, 4, b, b) * 0.02))
            setattr(self, f"complex_weight_lh_b{i}", nn.Parameter(torch.randn(2, 4, b) * 0.02))
        self.xfm, self.ifm = Filters(h0o=H0, h1o=H1), Filters(g0o=G0, g1o=G1)

    def layer(self, r: Tensor, i: Tensor, index: int) -> tuple[Tensor, Tensor]:
        (wr, wi), (br, bi) = getattr(self, f"complex_weight_lh_{index}"), getattr(self, f"complex_weight_lh_b{index}")
        product = "...nb,nbc->...nc"
        return (
            torch.einsum(product, r, wr) - torch.einsum(product, i, wi) + br,
            torch.einsum(product, r, wi) + torch.einsum(product, i, wr) + bi,
        )

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, _, c = x.shape
        x = x.transpose(1, 2).reshape(b, c, h, w)
        lo, hi = self.xfm.across(x, "h0o"), self.xfm.across(x, "h1o")
        low = self.xfm.down(lo, "h0o") * self.complex_weight_ll
        bands = torch.stack([self.xfm.down(lo, "h1o"), self.xfm.down(hi, "h1o"), self.xfm.down(hi, "h0o")]) / 2**0.5
        p, q, r, s = (bands[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        real, imaginary = torch.stack([p - s, p + s]), torch.stack([q + r, q - r])  # 2 3 B C H/2 W/2
        real, imaginary = (t.movedim(3, -1).unflatten(-1, (4, -1)) for t in (real, imaginary))
        real, imaginary = self.layer(real, imaginary, 1)
        real, imaginary = self.layer(F.relu(real), F.relu(imaginary), 2)
        (r1, r2), (i1, i2) = (t.flatten(-2).movedim(-1, 3) for t in (real, imaginary))
        upper, lower = torch.stack([r1 + r2, i1 + i2], -1).flatten(-2), torch.stack([i1 - i2, r2 - r1], -1).flatten(-2)
        lh, hh, hl = torch.stack([upper, lower], -2).flatten(-3, -2) / 2**0.5
        hi = self.ifm.down(hh, "g1o") + self.ifm.down(hl, "g0o")
        lo = self.ifm.down(lh, "g1o") + self.ifm.down(low, "g0o")
        return (self.ifm.across(hi, "g1o") + self.ifm.across(lo, "g0o")).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class ClassAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x[:, :1]).view(b, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, c))


class Depthwise(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.dwconv(x.transpose(1, 2).view(x.shape[0], -1, h, w)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, conv: bool = True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        if conv:
            self.dwconv = Depthwise(hidden)

    def forward(self, x: Tensor, *grid: int) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.gelu(self.dwconv(x, *grid) if grid else x))


class Block(nn.Module):
    def __init__(self, dim: int, mixer: nn.Module, ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = mixer, Mlp(dim, dim * ratio)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x), h, w)


class ClassBlock(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = ClassAttention(dim, heads), Mlp(dim, 4 * dim, False)

    def forward(self, x: Tensor) -> Tensor:
        token = x.mean(1, keepdim=True)
        token = token + self.attn(self.norm1(torch.cat([token, x], 1)))
        return torch.cat([token + self.mlp(self.norm2(token)), x], 1)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, out: int, stem: int = 0):
        super().__init__()
        widths = (3, stem, stem, stem)
        layers = [
            layer
            for i in range(3 if stem else 0)
            for layer in (
                nn.Conv2d(widths[i], stem, *((3, 1, 1) if i else (7, 2, 3)), bias=False),
                nn.BatchNorm2d(stem),
                nn.ReLU(),
            )
        ]
        self.conv, self.proj, self.norm = nn.Sequential(*layers), nn.Conv2d(dim, out, 3, 2, 1), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(self.conv(x))
        return self.norm(x.flatten(2).transpose(1, 2)), *x.shape[2:]


class SVT(nn.Module):
    def __init__(self, stem: int, dims: tuple[int, ...], heads: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        for i, (dim, n, depth, ratio) in enumerate(zip(dims, heads, depths, (8, 8, 4, 4), strict=True), 1):
            setattr(self, f"patch_embed{i}", PatchEmbed(stem if i == 1 else dims[i - 2], dim, stem if i == 1 else 0))
            mixers = [Scattering(dim) if i == 1 else Attention(dim, n) for _ in range(depth)]
            setattr(self, f"block{i}", nn.ModuleList(Block(dim, m, ratio) for m in mixers))
            setattr(self, f"norm{i}", nn.LayerNorm(dim, eps=1e-6))
        self.post_network = nn.ModuleList([ClassBlock(dims[-1], heads[-1])])
        self.head, self.aux_head = nn.Linear(dims[-1], 1000), nn.Linear(dims[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3, 4):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, h, w)
            if i < 4:
                x = getattr(self, f"norm{i}")(x).transpose(1, 2).reshape(x.shape[0], -1, h, w)
        x = self.norm4(self.post_network[0](x))
        y, each = self.head(x[:, 0]), self.aux_head(x[:, 1:])
        return y + 0.5 * each.amax(1)


def build(variant: str = VARIANT) -> nn.Module:
    return SVT(*SIZES[variant])
