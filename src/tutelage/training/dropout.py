"""Switching dropout off for good, so that it stays off in training mode."""

from torch import nn


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to 0: those of layers, those that attention
    reads itself, and the dropping of whole layers.

    >>> layer = nn.TransformerEncoderLayer(4, 1, 4, dropout=0.5)
    >>> without_dropout(layer)
    >>> layer.dropout1.p, layer.self_attn.dropout
    (0.0, 0.0)
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
