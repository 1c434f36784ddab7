"""A language model as the methods see it: a rollout goes in, hidden states at response positions come out.

This is the one place of the next-token shift and of padding. Decoder-only and encoder-decoder models look
the same from outside.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.errors import InputError
from tutelage.losses.head import Head
from tutelage.models.head import output_head, verify_head
from tutelage.models.sharding import is_sharded
from tutelage.models.shell import without_adapter_shell
from tutelage.rollouts.rollout import Ids, Rollout

_PAD = 0  # the id under padding is never attended to and never predicted, so any valid id will do


class LanguageModel:
    """A transformers model behind one interface: hidden states of a rollout, and the head that reads them.

    Args:
        model: any causal or encoder-decoder language model of transformers, or a PEFT model around one.
        stop_ids: ids that end a response; needed for sampling only.
        padding_side: where padding goes in a decoder-only model's forward pass. The result does not depend
            on it; `right` needs no attention mask and is faster. Encoder-decoder models are padded right.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LanguageModel(LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes)))
    >>> rollout = Rollout.of([[3, 4]], [[5, 6, 1]])
    >>> model.hidden(rollout).shape, model.head.weight.shape
    (torch.Size([3, 8]), torch.Size([10, 8]))
    """

    def __init__(
        self,
        model: nn.Module,
        stop_ids: tuple[int, ...] = (),
        padding_side: Literal["right", "left"] = "right",
    ) -> None:
        self.model = cast(PreTrainedModel, model)  # a PEFT model answers to the same calls
        self.stop_ids = stop_ids
        self.padding_side = padding_side
        self.network: PreTrainedModel = without_adapter_shell(self.model)
        self.is_encoder_decoder = bool(self.network.config.is_encoder_decoder)
        if not is_sharded(self.network):  # it was looked at before it was cut
            self._verify()

    @property
    def head(self) -> Head:
        """The output head, sharing the model's parameters."""
        return output_head(self.network)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.network.parameters()).device

    @property
    def layers(self) -> int:
        """Number of the decoder's layers."""
        config = self.network.config.get_text_config(decoder=True)
        return getattr(config, "num_decoder_layers", None) or config.num_hidden_layers  # the first is T5's

    @property
    def start_id(self) -> int:
        """The id that an encoder-decoder model's decoder starts from."""
        start = self.network.generation_config.decoder_start_token_id
        return self.network.config.decoder_start_token_id if start is None else start

    def hidden(self, rollout: Rollout) -> Float[Tensor, "positions width"]:
        """Return the final hidden states that predict the masked response tokens.

        Args:
            rollout: sequences with at least one masked token among them; padded here, together.

        Returns:
            One row for each id of `rollout.targets`, in that order.

        Raises:
            ValueError: a prompt is empty, and the model has no encoder.
        """
        states = self._decoder_output(rollout).last_hidden_state
        return states.flatten(0, 1)[self._where(rollout, states.shape[1])]

    def layer_states(
        self, rollout: Rollout, layers: Sequence[int]
    ) -> tuple[Float[Tensor, "positions width"], Float[Tensor, "layers positions width"]]:
        """Return what `hidden` returns, and the states after some of the decoder's layers at the same positions.

        Args:
            rollout: as `hidden` takes it.
            layers: counted from 0; the last one's states have passed the final norm.
        """
        output = self._decoder_output(rollout, output_hidden_states=True)
        where = self._where(rollout, output.last_hidden_state.shape[1])
        chosen = [output.hidden_states[layer + 1].flatten(0, 1)[where] for layer in layers]
        return output.last_hidden_state.flatten(0, 1)[where], torch.stack(chosen)

    def targets(self, rollout: Rollout, vocabulary: int | None = None) -> Tensor:
        """Return `rollout.targets` as a tensor on the model's device.

        Raises:
            InputError: an id is not among the first `vocabulary` ids.
        """
        ids = rollout.targets
        if ids and vocabulary is not None and max(ids) >= vocabulary:
            raise InputError(
                f"id {max(ids)} is in a response, but student and teacher share the ids below {vocabulary} only; "
                "leave out the rows with tokens that only one of them knows, or distil on text (sft)"
            )
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _decoder_output(self, rollout: Rollout, **options: bool) -> Any:
        if self.is_encoder_decoder:
            ids, mask = pad(rollout.prompts, "right", self.device)
            encoded = self.network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            inputs = [(self.start_id, *response[:-1]) for response in rollout.responses]
            return self.network.get_decoder()(
                input_ids=pad(inputs, "right", self.device)[0],
                encoder_hidden_states=encoded,
                encoder_attention_mask=mask,
                use_cache=False,
                **options,
            )
        for row, prompt in enumerate(rollout.prompts):
            if not prompt:
                raise ValueError(
                    f"prompt {row} is empty: a decoder-only model needs a token to start from, such as BOS"
                )
        sequences = [(p + r)[:-1] for p, r in zip(rollout.prompts, rollout.responses, strict=True)]
        ids, mask = pad(sequences, self.padding_side, self.device)
        if self.padding_side == "right":  # causal attention never looks at what follows
            return self.network.base_model(input_ids=ids, use_cache=False, **options)
        return self.network.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, **options
        )

    def _where(self, rollout: Rollout, length: int) -> Tensor:
        """Flat indices of the states that predict the masked tokens: one before each token itself."""
        indices = []
        for row, (prompt, response, mask) in enumerate(
            zip(rollout.prompts, rollout.responses, rollout.masks, strict=True)
        ):
            first = 0 if self.is_encoder_decoder else len(prompt) - 1
            if self.padding_side == "left" and not self.is_encoder_decoder:
                first += length - (first + len(response))
            start = row * length + first
            indices += [start + offset for offset, seen in enumerate(mask) if seen]
        return torch.tensor(indices, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def _verify(self) -> None:
        """Check the head against the model's own logits on a probe of three tokens."""
        was_training = self.network.training
        self.network.eval()
        probe = torch.tensor([[1, 2, 3]], device=self.device) % self.head.vocabulary
        if self.is_encoder_decoder:
            output = self.network(input_ids=probe, decoder_input_ids=probe, use_cache=False)
            hidden = self.network.get_decoder()(
                input_ids=probe, encoder_hidden_states=output.encoder_last_hidden_state, use_cache=False
            ).last_hidden_state
        else:
            output = self.network(input_ids=probe, use_cache=False)
            hidden = self.network.base_model(input_ids=probe, use_cache=False).last_hidden_state
        verify_head(self.network, self.head, hidden, output.logits)
        self.network.train(was_training)


def pad(sequences: list[Ids] | tuple[Ids, ...], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad sequences to the longest of them; return ids and attention mask, `[batch, longest]`.

    >>> ids, mask = pad([(5, 6), (7,)], "left", torch.device("cpu"))
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    columns, longest = np.arange(lengths.max()), lengths.max()
    present = columns >= (longest - lengths)[:, None] if side == "left" else columns < lengths[:, None]
    ids = np.full(present.shape, _PAD)
    ids[present] = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
    return torch.tensor(ids, device=device), torch.tensor(present, dtype=torch.long, device=device)


def positions(mask: Tensor) -> Tensor:
    """Position of each token counted from its sequence's first real one, for left-padded batches."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
