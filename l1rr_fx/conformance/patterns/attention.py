"""Products of activations, tokens and windows."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv

TOKENS = (2, 6, 5)


class Tokens(nn.Module):
    """An embedding of 8 channels before and a head after the pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Linear(8, 3)


@pattern(TOKENS)
class FusedHeads(Tokens):
    """Two heads from one projection, by reshape and permute."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        out = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(self.project(out.transpose(1, 2).reshape(n, length, c)))


@pattern(TOKENS)
class ScaledDotProduct(Tokens):
    """Fused attention: its default scale comes from the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.project = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, c = x.shape
        q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.project(out.transpose(1, 2).reshape(n, length, c)))


@pattern(TOKENS)
class SingleHead(Tokens):
    """One head, by batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = torch.bmm(self.q(x), self.k(x).transpose(1, 2)).softmax(-1)
        return self.head(torch.bmm(weights, self.v(x)))


@pattern(TOKENS)
class EinsumAttention(Tokens):
    """The same written as einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = torch.einsum("bnc,bmc->bnm", self.q(x), self.k(x)).softmax(-1)
        return self.head(torch.einsum("bnm,bmd->bnd", weights, self.v(x)))


@pattern()
class EinsumMap(Between):
    """Channels of a map mixed by an einsum with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bchw,dc->bdhw", self.stem(x), self.weight))


@pattern(TOKENS)
class Encoder(Tokens):
    """`nn.MultiheadAttention` with layer norms and a feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return self.head(x + self.mlp(self.norm2(x)))


@pattern()
class ConvolutionalAttention(Between):
    """YOLO11's attention: keys narrower than values, positions by a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.qkv, self.positions = cbr(8, 16, 1), cb(16, 32, 1), cb(16, 16, groups=16)
        self.project = cb(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.expand(x)
        n, c, h, w = y.shape
        q, k, v = self.qkv(y).view(n, 2, 16, h * w).split([4, 4, 8], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * 0.5).softmax(dim=-1)
        out = (v @ weights.transpose(-2, -1)).view(n, c, h, w) + self.positions(v.reshape(n, c, h, w))
        return self.head(x + self.project(out))


@pattern()
class NonLocal(Between):
    """Attention between all positions of a map, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.w = conv(8, 4, 1), conv(8, 4, 1), conv(8, 4, 1), cb(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        weights = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
        return self.head(x + self.w(torch.bmm(g, weights.transpose(1, 2)).view(-1, 4, 8, 8)))


@pattern(TOKENS)
class LinearAttention(Tokens):
    """Keys meet values before queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = F.relu(self.q(x)), F.relu(self.k(x)), self.v(x)
        return self.head((q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1).unsqueeze(-1) + 1.0))


@pattern(TOKENS)
class TokenMixer(Tokens):
    """Linear layers along the tokens, then along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.space = nn.LayerNorm(8), nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.space(self.norm(x).transpose(1, 2)).transpose(1, 2))


@pattern(TOKENS)
class ClassToken(Tokens):
    """A learned token in front, learned positions on all, the first one read."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 7, 8))
        self.mix = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(F.relu(self.mix(x.transpose(1, 2)).transpose(1, 2))[:, 0])


@pattern()
class ShiftedWindows(Between):
    """Swin's windows: roll, partition, mix, put back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = F.gelu(self.mix(x)).view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.head(torch.roll(x, (2, 2), (1, 2)).permute(0, 3, 1, 2))
