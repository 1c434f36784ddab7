"""Text that metrics ask for beyond the task's own answers."""

import pytest
from tests.evaluation.metrics.subjects import subject

from tutelage.config import Decoding
from tutelage.evaluation import subject as room
from tutelage.evaluation.metrics.divergences import Divergences
from tutelage.evaluation.metrics.moments import Moments
from tutelage.evaluation.metrics.risks import Risks


def test_text_is_written_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    writers = []
    decode = room.decode

    def noted(model, *arguments, **options):
        writers.append(options["writer"])
        return decode(model, *arguments, **options)

    looked_at = subject(Risks(), "gpt2")
    alone = [metric.measure(subject(metric, "gpt2")) for metric in (Risks(), Moments(critic_steps=0))]
    monkeypatch.setattr(room, "decode", noted)
    together = [metric.measure(looked_at) for metric in (Risks(), Moments(critic_steps=0))]
    Divergences(texts=("student_text", "teacher_text")).measure(looked_at)
    assert sorted(writers) == ["student", "teacher"]
    for one, other in zip(alone, together, strict=True):
        assert {n: s.measurement() for n, s in one.scores.items()} == {
            n: s.measurement() for n, s in other.scores.items()
        }


def test_other_text_is_written_for_another_seed_length_writer_or_rows() -> None:
    looked_at = subject(Risks(), "gpt2")
    first = looked_at.write("", Decoding(max_new_tokens=5), seed=0)
    assert looked_at.write("", Decoding(max_new_tokens=5, batch_size=2), seed=0) is first
    others = [
        looked_at.write("", Decoding(max_new_tokens=5), seed=1),
        looked_at.write("", Decoding(max_new_tokens=4), seed=0),
        looked_at.write("", Decoding(max_new_tokens=5), seed=0, by=looked_at.teacher.model),  # pyright: ignore
        looked_at.write("", Decoding(max_new_tokens=5), seed=0, rows=[0, 1]),
    ]
    assert all(other is not first and other != first for other in others)
