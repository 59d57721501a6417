"""The network in PyTorch: Llama's layers at a small size, and the optimiser for its matrices.

RoPE turns neighbouring pairs (2i, 2i+1), which is the layout that GGUF keeps for `llama`:
the weights need no permutation on export.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; defaults are the shipped model's."""

    vocab: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 768
    context: int = 640
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Past:
    """Keys and values of the positions so far, by block."""

    def __init__(self) -> None:
        self.stored: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return next(iter(self.stored.values()))[0].shape[2] if self.stored else 0

    def extend(self, block: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if block in self.stored:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.stored[block], (k, v), strict=True))
        self.stored[block] = k, v
        return k, v


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        kv = s.kv_heads * s.head_dim
        self.attn_norm = RMSNorm(s.width, s.eps)
        self.attn_q = nn.Linear(s.width, s.width, bias=False)
        self.attn_k = nn.Linear(s.width, kv, bias=False)
        self.attn_v = nn.Linear(s.width, kv, bias=False)
        self.attn_output = nn.Linear(s.width, s.width, bias=False)
        self.ffn_norm = RMSNorm(s.width, s.eps)
        self.ffn_gate = nn.Linear(s.width, s.hidden, bias=False)
        self.ffn_up = nn.Linear(s.width, s.hidden, bias=False)
        self.ffn_down = nn.Linear(s.hidden, s.width, bias=False)

    @torch.no_grad()
    def copy_what_it_sees(self, strength: float = 0.2) -> None:
        """Starts with output times v as a multiple of a projection: what a head looks at becomes a likelier next token.

        The tales need names and things copied over long distances; from small random weights that skill comes late.
        """
        s = self.shape
        nn.init.orthogonal_(self.attn_v.weight)
        v = self.attn_v.weight.view(s.kv_heads, s.head_dim, s.width)
        back = v.repeat_interleave(s.heads // s.kv_heads, 0).reshape(s.width, s.width)
        self.attn_output.weight.copy_(strength * back.T)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> Tensor:
        s = self.shape
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        q = self.attn_q(h).view(batch, length, s.heads, s.head_dim).transpose(1, 2)
        k = self.attn_k(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.attn_v(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = past.extend(self, k, v)
        repeat = s.heads // s.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.attn_output(y.transpose(1, 2).reshape(batch, length, s.width))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over neighbouring pairs; x is (batch, heads, length, head_dim), cos and sin are (length, head_dim / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Net(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.token_embd = nn.Embedding(s.vocab, s.width)
        self.blk = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.output_norm = RMSNorm(s.width, s.eps)
        freq = s.rope_base ** (-torch.arange(0, s.head_dim, 2, dtype=torch.float64) / s.head_dim)
        angle = torch.outer(torch.arange(s.context, dtype=torch.float64), freq)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * s.layers) ** 0.5 if last else 0.02)
        nn.init.normal_(self.token_embd.weight, std=0.05)
        for block in self.blk[s.layers // 2 :]:
            block.copy_what_it_sees()

    def forward(self, ids: Tensor, past: Past | None = None) -> Tensor:
        """ids (batch, length) to logits (batch, length, vocab). With a past, ids follow it, one a row."""
        first = 0 if past is None else past.length
        part = slice(first, first + ids.shape[1])
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[part], self.sin[part], past)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def matrices(self) -> list[nn.Parameter]:
        return [p for p in self.blk.parameters() if p.ndim == 2]

    def others(self) -> list[nn.Parameter]:
        return [self.token_embd.weight, *(p for p in self.parameters() if p.ndim == 1)]


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal by five Newton-Schulz rounds (K. Jordan, 2024); for matrices only."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(state["momentum"], group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g: Tensor) -> Tensor:
    """g with its singular values moved near 1, in bfloat16."""
    x = (g if g.shape[0] <= g.shape[1] else g.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if g.shape[0] <= g.shape[1] else x.T).to(g.dtype)
