"""A teacher that remembers says what the teacher said: states bit for bit, and the divergences that follow."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.tiny_models import ARCHITECTURES, dtype_of, language_model, pair, ragged

from tutelage.errors import DivergedError, InputError
from tutelage.losses import linear_divergence
from tutelage.models.cached_teacher import CachedTeacher, TopKTeacher, store_head
from tutelage.models.capture import plan_capture
from tutelage.models.kept_scores import HiddenStates, Kind, TopK
from tutelage.models.language_model import LanguageModel
from tutelage.models.score_store import ScoreStore, row_keys
from tutelage.models.teachers import LocalTeacher
from tutelage.rollouts.rollout import Rollout

CPU = torch.device("cpu")
KINDS = ("llama", "gemma2", "t5", "bart")
FLOAT32 = partial(language_model, dtype=torch.float32)


def captured(
    folder: Path, teacher: LocalTeacher, kind: Kind, text: Rollout, tokens: int = 10_000, shard_bytes: int = 10_000
) -> ScoreStore:
    store = ScoreStore(folder, {})
    store_head(store, teacher.head)
    plan_capture(text, store, 100.0, shard_bytes).run(store, teacher, kind, tokens)
    return ScoreStore(folder, {})


class Deaf(LocalTeacher):
    """A teacher that must not be run."""

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        raise AssertionError("the teacher was run")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_states_of_the_same_micro_batch_are_the_same_bits(tmp_path: Path, name: str) -> None:
    teacher = LocalTeacher(language_model(name, 2, dtype=dtype_of(name)))
    text = ragged()
    longest_first = text.select(plan_capture(text, ScoreStore(tmp_path / "none", {}), 1.0).shards[0].rows)
    store = captured(tmp_path, teacher, HiddenStates(), text)
    cached = CachedTeacher(store, CPU)
    found = cached.hidden(longest_first)
    assert found.dtype == dtype_of(name)
    assert torch.equal(found, teacher.hidden(longest_first))
    logits = cached.head.logits(found)
    assert torch.equal(logits, teacher.head.logits(found))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("tokens", "shard_bytes"), [(1, 1), (12, 700), (10_000, 10_000)])
def test_order_subset_and_micro_batches_do_not_matter(tmp_path: Path, name: str, tokens: int, shard_bytes: int) -> None:
    teacher = LocalTeacher(language_model(name, 2, dtype=dtype_of(name)))
    text = ragged()
    cached = CachedTeacher(captured(tmp_path, teacher, HiddenStates(), text, tokens, shard_bytes), CPU)
    for rows in ([4, 0, 3], [2], [1, 1, 2], [0, 1, 2, 3, 4]):
        part = text.select(rows)
        torch.testing.assert_close(cached.hidden(part), teacher.hidden(part), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_that_is_not_there_is_scored_by_the_model_and_the_others_are_not(tmp_path: Path, name: str) -> None:
    teacher = LocalTeacher(language_model(name, 2, dtype=dtype_of(name)))
    text = ragged()
    store = captured(tmp_path, teacher, HiddenStates(), text.select([0, 3, 4]))
    asked: list[int] = []

    class Watched(LocalTeacher):
        def hidden(self, rollout: Rollout) -> torch.Tensor:
            asked.extend(len(prompt) for prompt in rollout.prompts)
            return super().hidden(rollout)

    cached = CachedTeacher(store, CPU, Watched(teacher.model))
    torch.testing.assert_close(cached.hidden(text), teacher.hidden(text), rtol=1e-5, atol=1e-5)
    assert asked == [1, 2]  # lengths of the two other prompts
    with pytest.raises(InputError, match="not in its cache"):
        CachedTeacher(store, CPU).hidden(text)


def test_rows_without_a_token_in_the_loss_cost_nothing(tmp_path: Path) -> None:
    teacher = LocalTeacher(FLOAT32("llama", 2))
    text = Rollout.of([[3], [4, 5]], [[6, 1], [7, 1]], masks=[[False, False], [True, True]])
    store = captured(tmp_path, teacher, HiddenStates(), text)
    assert len(store) == 1
    assert torch.equal(CachedTeacher(store, CPU, Deaf(teacher.model)).hidden(text), teacher.hidden(text.select([1])))


@pytest.mark.parametrize("name", KINDS)
def test_a_rounded_cache_comes_close_and_keeps_the_type_of_the_head(tmp_path: Path, name: str) -> None:
    teacher, text = LocalTeacher(FLOAT32(name, 2)), ragged()
    exact, errors = teacher.hidden(text), []
    for dtype in (torch.bfloat16, torch.float16):
        cached = CachedTeacher(captured(tmp_path / str(dtype), teacher, HiddenStates(dtype), text), CPU)
        found = cached.hidden(text)
        assert found.dtype == torch.float32
        errors.append((found - exact).abs().max().item())
        torch.testing.assert_close(found, exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert 0 < errors[1] < errors[0] / 4


def test_states_that_are_no_numbers_are_never_kept(tmp_path: Path) -> None:
    teacher, text = LocalTeacher(FLOAT32("llama", 2)), ragged()
    with torch.no_grad():
        teacher.model.network.base_model.norm.weight.mul_(1e6)  # pyright: ignore
    with pytest.raises(DivergedError, match="beyond the range"):
        captured(tmp_path / "a", teacher, HiddenStates(torch.float16), text)
    with torch.no_grad():
        teacher.model.network.base_model.norm.weight.mul_(float("nan"))  # pyright: ignore
    for number, kind in enumerate((HiddenStates(), TopK(0.9, 5, 50))):
        with pytest.raises(DivergedError, match="not finite"):
            captured(tmp_path / str(number), teacher, kind, text)
        assert len(ScoreStore(tmp_path / str(number), {})) == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.3)", "total_variation"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_kept_are_the_whole_distribution(
    tmp_path: Path, name: str, divergence: str, temperature: float
) -> None:
    student, text = FLOAT32(name, 1), ragged()
    teacher = LocalTeacher(FLOAT32(name, 2, width=24))
    kind = TopK(1.0, 50, 50, temperature)
    cached = TopKTeacher(captured(tmp_path, teacher, kind, text), CPU, temperature)
    hidden, targets = student.hidden(text).detach(), student.targets(text)
    found = []
    for who in (teacher, cached):
        leaf = hidden.clone().requires_grad_()
        scores = who.compare(leaf, student.head, text, divergence, targets=targets, temperature=temperature)
        scores.total.backward()
        found.append((scores, leaf.grad))
    (exact, gradient), (kept, other) = found
    torch.testing.assert_close(kept.divergence, exact.divergence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept.teacher_logp, exact.teacher_logp, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-5)


def test_fewer_tokens_measure_less_and_more_of_them_come_closer(tmp_path: Path) -> None:
    (student, _), text = pair("llama", dtype=torch.float32), ragged()
    teacher = LocalTeacher(FLOAT32("llama", 2, width=24, spread=0.8))
    hidden, targets = student.hidden(text).detach(), student.targets(text)
    exact = linear_divergence(hidden, student.head, teacher.hidden(text), teacher.head, "forward_kl").divergence
    errors = []
    for mass in (0.3, 0.8, 0.99):
        store = captured(tmp_path / str(mass), teacher, TopK(mass, 50, 50), text)
        scores = TopKTeacher(store, CPU).compare(hidden, student.head, text, "forward_kl", targets=targets)
        assert (scores.divergence <= exact + 1e-4).all()
        errors.append((exact - scores.divergence).mean().item())
    assert errors[0] > errors[1] > errors[2] >= -1e-6


def test_a_top_k_teacher_has_no_states_and_no_scores_of_other_text(tmp_path: Path) -> None:
    student, teacher, text = FLOAT32("llama", 1), LocalTeacher(FLOAT32("llama", 2)), ragged()
    cached = TopKTeacher(captured(tmp_path, teacher, TopK(0.9, 5, 50), text.select([0, 1])), CPU)
    with pytest.raises(InputError, match="not in its cache"):
        cached.hidden(text)
    with pytest.raises(InputError, match="not in its cache"):
        _ = cached.head
    with pytest.raises(InputError, match=r"teacher_cache\.kind: hidden"):
        cached.compare(student.hidden(text), student.head, text, "forward_kl")


@pytest.mark.parametrize("kind", [HiddenStates(), TopK(0.9, 5, 50)])
def test_an_interrupted_capture_ends_with_the_same_bits(tmp_path: Path, kind: Kind) -> None:
    teacher, text = LocalTeacher(FLOAT32("llama", 2)), ragged()
    captured(tmp_path / "whole", teacher, kind, text, tokens=20, shard_bytes=600)
    store = ScoreStore(tmp_path / "parts", {})
    store_head(store, teacher.head)
    plan = plan_capture(text, store, 100.0, 600)
    assert len(plan.shards) > 2

    def killed(tokens: int) -> None:
        raise KeyboardInterrupt

    for _ in plan.shards[1:]:
        with pytest.raises(KeyboardInterrupt):
            plan_capture(text, ScoreStore(tmp_path / "parts", {}), 100.0, 600).run(
                ScoreStore(tmp_path / "parts", {}), teacher, kind, 20, killed
            )
    shuffled = text.select([3, 1, 4, 0, 2, 2])  # order and repetition do not matter
    captured(tmp_path / "parts", teacher, kind, shuffled, tokens=20, shard_bytes=600)
    whole, parts = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.safetensors")} for n in ("whole", "parts"))
    assert whole == parts


def test_shards_follow_from_the_rows_and_not_from_their_order(tmp_path: Path) -> None:
    store, text = ScoreStore(tmp_path, {}), ragged()
    plans = [plan_capture(text.select(rows), store, 100.0, 600) for rows in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2, 2])]
    found = [[tuple(plan.keys[row] for row in shard.rows) for shard in plan.shards] for plan in plans]
    assert found[0] == found[1]
    lengths = [text.lengths[row] for shard in plans[0].shards for row in shard.rows]
    assert lengths == sorted(text.lengths, reverse=True)  # rows of similar length are read together


def test_what_is_captured_already_is_not_scored_again(tmp_path: Path) -> None:
    teacher, text = LocalTeacher(FLOAT32("llama", 2)), ragged()
    captured(tmp_path, teacher, HiddenStates(), text.select([0, 1, 2]), shard_bytes=300)
    store = ScoreStore(tmp_path, {})
    plan = plan_capture(text, store, 100.0, 300)
    assert (plan.rows, plan.tokens) == (5, text.positions)
    assert plan.missing_tokens == text.select([3, 4]).positions
    asked: list[bytes] = []

    class Watched(LocalTeacher):
        def hidden(self, rollout: Rollout) -> torch.Tensor:
            asked.extend(row_keys(rollout))
            return super().hidden(rollout)

    plan.run(store, Watched(teacher.model), HiddenStates(), 10_000)
    assert sorted(asked) == sorted(row_keys(text.select([3, 4])))
    CachedTeacher(store, CPU, Deaf(teacher.model)).hidden(text)
    assert plan_capture(text, store, 100.0, 300).missing_tokens == 0


@pytest.mark.parametrize("name", ["gemma2", "cohere", "phi", "bart"])
def test_the_head_comes_back_with_scale_softcap_and_bias(tmp_path: Path, name: str) -> None:
    head = FLOAT32(name, 2).head
    store = ScoreStore(tmp_path, {})
    store_head(store, head)
    kept = CachedTeacher(ScoreStore(tmp_path, {}), CPU).head
    hidden = torch.randn(7, head.weight.shape[1])
    assert torch.equal(kept.logits(hidden), head.logits(hidden))
    assert not kept.weight.requires_grad


def test_a_store_without_a_head_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no head\.safetensors"):
        CachedTeacher(ScoreStore(tmp_path, {}), CPU)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_head_and_states_are_on_the_students_device(name: str) -> None:
    meta = torch.device("meta")
    teacher = LocalTeacher(FLOAT32(name, 2), meta)
    assert teacher.head.weight.device == meta
    assert teacher.head.bias is None or teacher.head.bias.device == meta
    assert teacher.hidden(ragged()).device == meta
    assert teacher.model.head.weight.device == CPU  # the model stays where it is


def test_the_head_of_a_teacher_beside_its_student_is_its_own() -> None:
    model: LanguageModel = FLOAT32("llama", 2)
    assert LocalTeacher(model).head.weight is model.head.weight
