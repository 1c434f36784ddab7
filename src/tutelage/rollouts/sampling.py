"""Drawing tokens from logits: exact, seeded from outside, and at the cost of a few passes over them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 256


def draw(
    logits: Float[Tensor, "batch vocabulary"], uniforms: Float[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Draw one token a row by inverting the cumulative distribution, in two levels.

    Args:
        logits: any real numbers; −∞ excludes a token.
        uniforms: one number in [0, 1) a row, float64; the draw is a function of it.

    Returns:
        The tokens, and their log-probabilities in nats.

    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(3, 3)
    >>> draw(logits, torch.tensor([0.49, 0.51, 0.99], dtype=torch.float64))[0].tolist()
    [0, 1, 2]
    """
    batch, vocabulary = logits.shape
    probabilities = logits.float().softmax(-1)
    blocks = torch.nn.functional.pad(probabilities, (0, -vocabulary % _BLOCK)).view(batch, -1, _BLOCK)
    edges = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    place = uniforms.to(edges.device) * edges[:, -1]
    block = torch.searchsorted(edges, place[:, None], right=True).clamp(max=edges.shape[1] - 1)
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK)).squeeze(1)
    inner_edges = inner.to(torch.float64).cumsum(-1)
    offset = torch.searchsorted(inner_edges, place[:, None] - before, right=True)
    tokens = (block * _BLOCK + offset.clamp(max=_BLOCK - 1)).squeeze(1).clamp(max=vocabulary - 1)
    # Rounding at the edge of a block may point at an impossible token: take the likeliest of its block then.
    impossible = probabilities.gather(1, tokens[:, None]).squeeze(1) == 0
    tokens = torch.where(impossible, block.squeeze(1) * _BLOCK + inner.argmax(-1), tokens)
    return tokens, logp_of(logits, tokens)


def logp_of(logits: Float[Tensor, "batch vocabulary"], tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the log-probability of one token a row, in nats."""
    logits = logits.float()
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def truncated(logits: Float[Tensor, "batch vocabulary"], top_k: int, top_p: float) -> Float[Tensor, "batch vocabulary"]:
    """Exclude all but the `top_k` most probable tokens, then all but the fewest that hold `top_p` of the mass.

    0 and 1.0 exclude nothing.

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> truncated(logits, 0, 0.6).exp().tolist()[0][2]
    0.0
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return logits
