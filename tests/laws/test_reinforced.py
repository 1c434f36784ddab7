"""Distillation with a reward on policies whose every response can be enumerated."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from tests import definitions
from tests.tiny import mapping
from tests.toy import PROMPT, TabularModel
from torch import Tensor

from tutelage.config import Decoding
from tutelage.data import Example
from tutelage.errors import InputError
from tutelage.methods import reinforced
from tutelage.methods.objective import Context
from tutelage.methods.reinforced import RewardedGKD
from tutelage.recipe import recipe_of
from tutelage.rewards import Reward
from tutelage.rollouts.rollout import Rollout

EXACT = 1e-9


def worth(prompts, responses, references) -> list[float]:
    """A reward with no pattern that a gradient could be right about by chance."""
    return [((7 * sum((place + 2) ** int(word) for place, word in enumerate(r.split()))) % 11) / 5 for r in responses]


def undefined(prompts, responses, references) -> list[float]:
    return [1.0] * (len(responses) - 1) + [float("nan")]


def too_few(prompts, responses, references) -> list[float]:
    return [1.0]


WORTH = Reward(kind="function", function="tests.laws.test_reinforced:worth")


class Digits:
    """A tokenizer whose words are the ids."""

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


@dataclass
class World:
    student: TabularModel
    teacher: TabularModel

    def context(self, count: int, reference: str = "") -> Context:
        examples = [Example(n, f"rows.jsonl:{n + 1}", PROMPT, (), (), "0", reference) for n in range(count)]
        return Context(self.student, self.teacher, None, {}, Digits(), examples, 1000)

    def reward(self, sequence: tuple[int, ...]) -> float:
        return worth([""], [" ".join(map(str, sequence))], [""])[0]

    def divergence(self, text: str, sequence: tuple[int, ...]) -> Tensor:
        """The mean over the tokens of a response."""
        q, p = (model.distributions(sequence).exp() for model in (self.student, self.teacher))
        return definitions.divergence(text, q, p).mean()


def world(kind: str) -> World:
    stop = None if kind == "fixed length" else 3
    size = 3 if stop is None else 4
    return World(TabularModel(size, 3, seed=1, stop=stop), TabularModel(size, 3, seed=2, stop=stop).frozen())


both_worlds = pytest.mark.parametrize("kind", ["fixed length", "with an end token"])


def loss_of(w: World, method: RewardedGKD, sequences) -> dict[str, Tensor]:
    """What the loop makes of the method's terms on a batch."""
    rollout = Rollout.of([PROMPT] * len(sequences), sequences, writer="student")
    rollout = method.prepare(rollout, w.context(len(sequences)))
    terms, units = method.terms(rollout, w.student, w.teacher), method.units(rollout)
    return {name: terms.losses[name] / units[name] for name in units}


def expected_gradient(w: World, method: RewardedGKD, size: int = 1) -> Tensor:
    """Over all batches of a size, each with its probability."""
    total = torch.zeros_like(w.student.table)
    for batch in product(w.student.sequences(), repeat=size):
        probability = sum(w.student.logp(sequence) for sequence in batch).exp().detach()
        loss = sum(loss_of(w, method, list(batch)).values())
        total += probability * torch.autograd.grad(loss, w.student.table)[0]
    return total


def exact_gradient(w: World, alpha: float, divergence: str, through_sampling: bool = False) -> Tensor:
    """−∇[(1 − α) E r − α E D], with the sampling held in the second term unless asked otherwise."""
    objective = torch.zeros((), dtype=torch.float64)
    for y in w.student.sequences():
        probability = w.student.logp(y).exp()
        held = probability if through_sampling else probability.detach()
        objective = objective + (1 - alpha) * probability * w.reward(y) - alpha * held * w.divergence(divergence, y)
    return -torch.autograd.grad(objective, w.student.table)[0]


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@both_worlds
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", ["jsd(0.9)", "reverse_kl"])
def test_the_gradient_is_that_of_reward_less_divergence(kind, alpha, divergence):
    w = world(kind)
    method = RewardedGKD(alpha=alpha, divergence=divergence, reward=WORTH, baseline="none", reduction="sequence")
    assert relative(expected_gradient(w, method), exact_gradient(w, alpha, divergence)) < EXACT


def test_no_gradient_goes_through_the_sampling_of_the_divergence():
    """With it, the gradient would be another one altogether."""
    w = world("with an end token")
    method = RewardedGKD(alpha=0.7, divergence="reverse_kl", reward=WORTH, baseline="none", reduction="sequence")
    found = expected_gradient(w, method)
    assert relative(found, exact_gradient(w, 0.7, "reverse_kl", through_sampling=True)) > 0.1


def small() -> World:
    return World(TabularModel(3, 2, seed=1, stop=2), TabularModel(3, 2, seed=2, stop=2).frozen())


@pytest.mark.parametrize(("baseline", "samples"), [("none", 1), ("batch", 1), ("leave-one-out", 2), ("greedy", 1)])
def test_baselines_change_no_expectation(monkeypatch, baseline, samples):
    """All pairs of responses as batches of two."""
    monkeypatch.setattr(reinforced, "greedy_rewards", lambda method, rollout, context: [0.8] * len(rollout))
    w = small()
    method = RewardedGKD(alpha=0.0, reward=WORTH, baseline=baseline, samples=samples)
    assert relative(expected_gradient(w, method, size=2), exact_gradient(w, 0.0, "jsd(0.9)")) < EXACT


def test_baselines_are_what_they_say():
    w = small()
    batch = [(0, 0), (0, 1), (1, 2), (2,)]
    rewards = [w.reward(y) for y in batch]
    rollout = Rollout.of([PROMPT] * 4, batch, writer="student")

    def advantages(**settings) -> list[float]:
        method = RewardedGKD(reward=WORTH, **settings)
        prepared = method.prepare(rollout, w.context(4))
        assert prepared.values["reward"] == tuple((r,) * len(y) for r, y in zip(rewards, batch, strict=True))
        return [row[0] for row in prepared.values["advantage"]]

    total = sum(rewards)
    assert advantages(baseline="none") == rewards
    assert advantages(baseline="batch") == pytest.approx([r - (total - r) / 3 for r in rewards])
    a, b, c, d = rewards
    assert advantages(baseline="leave-one-out", samples=2) == pytest.approx([a - b, b - a, c - d, d - c])


def test_the_greedy_baseline_is_the_reward_of_the_greedy_text(tmp_path):
    """With a real model, whose greedy text depends on the prompt."""
    from tests.tiny import tokenizer
    from tests.tiny_models import language_model

    from tutelage.rollouts.decoding import decode

    student = language_model("gpt2", 1, vocabulary=22)
    prompts = [(3,), (3,), (9, 4), (9, 4)]
    examples = [Example(n // 2, "", p, (), (), "", "a b c d e f g h") for n, p in enumerate(prompts)]
    method = RewardedGKD(
        alpha=0.0, baseline="greedy", samples=2, student_decoding=Decoding(max_new_tokens=6), reward=Reward()
    )
    rollout = decode(student, prompts, method.student_decoding, seed=3)
    context = Context(student, None, None, {}, tokenizer(), examples, 1000)
    prepared = method.prepare(rollout, context)
    greedy = decode(student, prompts, Decoding(strategy="greedy", max_new_tokens=6), seed=0)
    texts = [tokenizer().decode(r, skip_special_tokens=True).strip() for r in greedy.responses]
    expected = Reward().scorer()(["", ""], texts, ["a b c d e f g h"] * 4)
    for row, value in enumerate(expected):
        assert prepared.values["reward"][row][0] - prepared.values["advantage"][row][0] == pytest.approx(value)


def test_the_terms_are_logged_and_the_loss_is_the_objective():
    w = world("with an end token")
    method = RewardedGKD(alpha=0.4, reward=WORTH)
    rollout = Rollout.of([PROMPT] * 3, [(0, 1, 2), (3,), (1, 3)], writer="student")
    rollout = method.prepare(rollout, w.context(3))
    terms = method.terms(rollout, w.student, w.teacher)
    rewards = [w.reward(y) for y in rollout.responses]
    assert terms.metrics["reward"].item() == pytest.approx(sum(rewards))
    assert terms.counts["reward"] == 3
    assert terms.losses["reward"].item() == pytest.approx(-0.6 * sum(rewards))
    assert terms.losses["divergence"].item() == pytest.approx(0.4 * terms.metrics["divergence"].item())
    assert method.units(rollout) == {"reward": 3, "divergence": 6}
    assert RewardedGKD(alpha=0.0).units(rollout) == {"reward": 3}


def test_no_gradient_reaches_the_teacher():
    w = world("fixed length")
    w.teacher.model.requires_grad_(True)
    loss = sum(loss_of(w, RewardedGKD(reward=WORTH), [(0, 1, 2), (1, 1, 1)]).values())
    loss.backward()
    assert w.teacher.table.grad is None
    assert w.student.table.grad is not None


@pytest.mark.parametrize(
    ("function", "message"),
    [("undefined", r"is nan for rows\.jsonl:2, where the student wrote '1 1'"), ("too_few", "gave 1 numbers for 2")],
)
def test_rewards_that_are_no_numbers_are_refused_with_the_row(function, message):
    w = small()
    method = RewardedGKD(reward=Reward(kind="function", function=f"tests.laws.test_reinforced:{function}"))
    with pytest.raises(InputError, match=message):
        method.prepare(Rollout.of([PROMPT] * 2, [(0, 0), (1, 1)], writer="student"), w.context(2))


def test_a_reference_is_asked_for_where_it_is_needed():
    w = small()
    with pytest.raises(InputError, match=r"rows\.jsonl:1 has a prompt only, but reward 'rouge_l'"):
        RewardedGKD().prepare(Rollout.of([PROMPT], [(0, 0)], writer="student"), w.context(1))


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="set samples to 2"):
        RewardedGKD(baseline="leave-one-out")
    with pytest.raises(ValueError, match="must sample from the student itself"):
        RewardedGKD(student_decoding=Decoding(temperature=0.5))
    with pytest.raises(InputError, match=r"method\.reward: kind 'classifier' needs model"):
        recipe_of(mapping(tmp_path, "gkd-reward"), ["--method.reward.kind", "classifier"])
    with pytest.raises(InputError, match=r"unknown key 'method\.reward\.modle'; did you mean 'method\.reward\.model'"):
        recipe_of(mapping(tmp_path, "gkd-reward"), ["--method.reward.modle", "x"])
    RewardedGKD(alpha=1.0, student_decoding=Decoding(temperature=0.5))


def test_without_distillation_no_teacher_is_needed(tmp_path):
    whole = {**mapping(tmp_path, "gkd-reward"), "teacher": None, "evaluation": {}}
    recipe = recipe_of(whole, ["--method.alpha", "0"])
    assert not recipe.method.needs_teacher
