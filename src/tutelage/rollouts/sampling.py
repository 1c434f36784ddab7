"""Drawing tokens from logits: exact, seeded from outside, and at the cost of a few passes over them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 256


def draw(
    logits: Float[Tensor, "batch vocabulary"], uniforms: Float[Tensor, " batch"], *, overwrite: bool = False
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Draw one token a row by inverting the cumulative distribution, in two levels.

    Args:
        logits: any real numbers; −∞ excludes a token.
        uniforms: one number in [0, 1) a row, float64; the draw is a function of it.
        overwrite: work in the memory of the logits, which are lost; fresh memory costs as much as the work.

    Returns:
        The tokens, and their log-probabilities in nats.

    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(3, 3)
    >>> draw(logits, torch.tensor([0.49, 0.51, 0.99], dtype=torch.float64))[0].tolist()
    [0, 1, 2]
    """
    vocabulary, device = logits.shape[1], logits.device
    highest = logits.amax(-1, keepdim=True)
    weights = (logits.sub_(highest) if overwrite else logits - highest).exp_()
    edges = _block_sums(weights).double().cumsum(-1)
    place = uniforms.to(device)[:, None] * edges[:, -1:]
    block = torch.searchsorted(edges, place, right=True).clamp(max=edges.shape[1] - 1)
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    ids = block * _BLOCK + torch.arange(_BLOCK, device=device)
    inner = torch.where(ids < vocabulary, weights.gather(1, ids.clamp(max=vocabulary - 1)), 0.0)
    offset = torch.searchsorted(inner.double().cumsum(-1), place - before, right=True).clamp(max=_BLOCK - 1)
    # Rounding at the edge of a block may point at an impossible token: take the likeliest of its block then.
    offset = torch.where(inner.gather(1, offset) == 0, inner.argmax(-1, keepdim=True), offset)
    logp = inner.gather(1, offset).double().log() - edges[:, -1:].log()
    return ids.gather(1, offset).squeeze(1), logp.squeeze(1).to(logits.dtype)


def _block_sums(weights: Tensor) -> Tensor:
    """Sums of so many neighbours; the last block may be shorter."""
    whole = weights.shape[1] // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    rest = weights[:, whole:].sum(-1, keepdim=True)
    return sums if whole == weights.shape[1] else torch.cat([sums, rest], dim=1)


def softmax_(logits: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
    """Turn logits into probabilities, in the memory of the logits.

    >>> softmax_(torch.tensor([[2.0, 2.0]])).tolist()
    [[0.5, 0.5]]
    """
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


def logp_of(logits: Float[Tensor, "batch vocabulary"], tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the log-probability of one token a row, in nats."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
