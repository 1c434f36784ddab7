"""A teacher that reads the student's text with its own tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tutelage.data.alignment import Span, TokenBytes, spans, whole_text
from tutelage.errors import InputError
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Ids, Rollout


@dataclass(frozen=True)
class Bridge:
    """Two tokenizers, and what the one's ids are for the other."""

    student: TokenBytes
    teacher: TokenBytes
    prompts: Mapping[Ids, Ids]
    """Each prompt as the student has it, and as the teacher has it: rendered by its own template, in its own ids."""
    student_stops: frozenset[int]
    """The tokens that end a response of the student."""
    teacher_end: int
    """The token that ends the teacher's."""
    shared: Mapping[int, int]
    """The teacher's id for each id of the student that is the same string, and for the student's usual end."""


@dataclass(frozen=True)
class Reading:
    """A rollout as the teacher reads it."""

    rollout: Rollout
    """The teacher's ids; a response of nothing stands outside the mask."""
    spans: tuple[Span, ...]
    """Which positions cover the same bytes: of the student's rollout, and of the teacher's, both from 0."""


class BridgedTeacher(LocalTeacher):
    """A teacher in this process with another tokenizer than the student's.

    `hidden` takes rollouts in the teacher's own ids, which `read` makes of the student's.

    Args:
        model: the teacher.
        bridge: how the student's ids become the teacher's.
        device: as `LocalTeacher` takes it.
    """

    def __init__(self, model: LanguageModel, bridge: Bridge, device: torch.device | None = None) -> None:
        super().__init__(model, device)
        self.bridge = bridge

    def read(self, rollout: Rollout) -> Reading:
        """Tokenise the text of a rollout anew, and align the two.

        The ends of both responses are aligned with each other. What a student writes that is no text (a stray special
        token, bytes that are no character), and what comes after it, is not aligned with anything.

        Args:
            rollout: of the student, every token of its responses in the mask.

        Raises:
            InputError: a prompt is not among those that the bridge was built with.
        """
        read = [self._response(response) for response in rollout.responses]
        found: list[Span] = []
        start = teacher_start = 0
        for response, (ids, aligned) in zip(rollout.responses, read, strict=True):
            found += [
                Span(a + start, b + start, c + teacher_start, d + teacher_start) for a, b, c, d in aligned
            ]  # fmt: skip
            start, teacher_start = start + len(response), teacher_start + len(ids)
        theirs = Rollout.of(
            [self._prompt(prompt) for prompt in rollout.prompts],
            [ids or (self.bridge.teacher_end,) for ids, _ in read],
            masks=[(True,) * len(ids) or (False,) for ids, _ in read],
            items=rollout.items,
        )
        return Reading(theirs, tuple(found))

    def _prompt(self, prompt: Ids) -> Ids:
        if prompt not in self.bridge.prompts:
            raise InputError(
                "a prompt is not among the rows that the teacher's prompts were made of; give the bridge all prompts"
            )
        return self.bridge.prompts[prompt]

    def _response(self, response: Ids) -> tuple[Ids, list[Span]]:
        bridge = self.bridge
        stop = next((place for place, index in enumerate(response) if index in bridge.student_stops), len(response))
        pieces = bridge.student.of_ids(response[:stop])
        count, text = whole_text(pieces)
        ids, ends = bridge.teacher.read(text)
        student_ends, at = [], 0
        for piece in pieces[:count]:
            at += len(piece)
            student_ends.append(at)
        aligned = spans(student_ends, ends)
        if count == stop < len(response):
            aligned.append(Span(count, count + 1, len(ids), len(ids) + 1))
            ids = [*ids, bridge.teacher_end]
        return tuple(ids), aligned
