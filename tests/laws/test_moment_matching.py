"""Moment matching on policies whose every response can be enumerated: gradients, identities and bounds, exactly.

Everything comes out of the methods' own `terms` and `prepare`; the expectations over responses are sums.
"""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from tests.toy import PROMPT, TabularModel, every_response
from torch import Tensor

from tutelage.data import Example
from tutelage.evaluation.distances import critic_distance, moment_distances
from tutelage.losses import Head, linear_divergence, map_vocabulary
from tutelage.methods.critics import Critic
from tutelage.methods.moment_matching import DistributionMatching, MomentMatching
from tutelage.methods.objective import Context
from tutelage.rollouts.rollout import Rollout, joined

EXACT = 1e-9


def powers(discount: float, length: int) -> Tensor:
    return discount ** torch.arange(length, dtype=torch.float64)


@dataclass
class World:
    """A student and a teacher with free logits for every prefix."""

    student: TabularModel
    teacher: TabularModel

    def modules(self, method: MomentMatching, scale: float = 1.0) -> dict[str, Critic]:
        """The method's critics with random weights."""
        modules = method.modules(self.student, self.teacher, 0)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for critic in modules.values():
                noise = torch.randn(critic.weight.shape, generator=generator, dtype=torch.float64)
                critic.weight.copy_(3 * scale * noise)
        return modules

    def values(self, critic: Critic, sequence: tuple[int, ...]) -> Tensor:
        """f at each position of a response, for all tokens, from the definition B · tanh(W h / √H)."""
        h = self.teacher.hidden(Rollout.of([PROMPT], [sequence]))
        return critic.bound * torch.tanh(h @ critic.weight.T / h.shape[1] ** 0.5)

    def gap(self, critic: Critic, sequence: tuple[int, ...], discount: float) -> Tensor:
        """Σ_t γ^t (E_p f − E_q f) along one response."""
        p, q = self.teacher.distributions(sequence).exp(), self.student.distributions(sequence).exp()
        gaps = ((p - q) * self.values(critic, sequence)).sum(-1)
        return (gaps * powers(discount, len(sequence))).sum()

    def distance(self, critic: Critic, writer: TabularModel, discount: float) -> Tensor:
        """The expectation of `gap` over all responses of a writer; differentiable."""
        return sum(writer.logp(y).exp() * self.gap(critic, y, discount) for y in writer.sequences())


def world(kind: str) -> World:
    stop = None if kind == "fixed length" else 3
    size = 3 if stop is None else 4
    return World(TabularModel(size, 3, seed=1, stop=stop), TabularModel(size, 3, seed=2, stop=stop).frozen())


both_worlds = pytest.mark.parametrize("kind", ["fixed length", "with an end token"])
discounted = pytest.mark.parametrize("discount", [1.0, 0.7])


def expected_gradient(w: World, method, modules, side: str, sequences=None, prepare=None) -> Tensor:
    """Σ over all responses of probability × the gradient that the method gives for it."""
    writer = w.student if side == "on" else w.teacher
    total = torch.zeros_like(w.student.table)
    for sequence in sequences or writer.sequences():
        rollout = Rollout.of([PROMPT], [sequence], writer="student" if side == "on" else "teacher")
        loss = method.terms(rollout, w.student, w.teacher, modules=modules).losses[side]
        (gradient,) = torch.autograd.grad(loss, w.student.table)
        total += writer.logp(sequence).exp().detach() * gradient
    return total


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


# The student's gradient


@both_worlds
@discounted
def test_off_policy_gradient_is_exact(kind, discount):
    w = world(kind)
    method = MomentMatching(on_policy_weight=0.0, discount=discount)
    modules = w.modules(method)
    exact = w.distance(modules["critic_off"], w.teacher, discount)
    (gradient,) = torch.autograd.grad(exact, w.student.table)
    assert relative(expected_gradient(w, method, modules, "off"), gradient) < EXACT


@both_worlds
@discounted
@pytest.mark.parametrize("estimator", ["expected", "sampled"])
def test_on_policy_gradient_is_exact_in_both_forms(kind, discount, estimator):
    w = world(kind)
    method = MomentMatching(on_policy_weight=1.0, discount=discount, estimator=estimator)
    modules = w.modules(method)
    exact = w.distance(modules["critic_on"], w.student, discount)
    (gradient,) = torch.autograd.grad(exact, w.student.table)
    assert relative(expected_gradient(w, method, modules, "on"), gradient) < EXACT


def test_the_weights_of_both_terms_are_the_two_shares():
    w = world("with an end token")
    method = MomentMatching(on_policy_weight=0.25)
    modules = w.modules(method)
    for side, share, writer in (("off", 0.75, w.teacher), ("on", 0.25, w.student)):
        exact = share * w.distance(modules[f"critic_{side}"], writer, 1.0)
        (gradient,) = torch.autograd.grad(exact, w.student.table)
        assert relative(expected_gradient(w, method, modules, side), gradient) < EXACT


@pytest.mark.parametrize(("kind", "error"), [("fixed length", 0.895), ("with an end token", 1.089)])
def test_greedy_is_not_the_gradient(kind, error):
    w = world(kind)
    method = MomentMatching(on_policy_weight=1.0, greedy=True)
    modules = w.modules(method)
    (gradient,) = torch.autograd.grad(w.distance(modules["critic_on"], w.student, 1.0), w.student.table)
    assert relative(expected_gradient(w, method, modules, "on"), gradient) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("estimator", ["expected", "sampled"])
def test_the_baseline_leaves_the_expected_gradient_as_it_is(estimator):
    """All pairs of responses as batches of two; each is the other's baseline."""
    w = World(TabularModel(3, 2, seed=1, stop=2), TabularModel(3, 2, seed=2, stop=2).frozen())
    method = MomentMatching(on_policy_weight=1.0, estimator=estimator)
    modules = w.modules(method)
    (gradient,) = torch.autograd.grad(w.distance(modules["critic_on"], w.student, 1.0), w.student.table)
    total, moved = torch.zeros_like(gradient), 0.0
    for pair in product(w.student.sequences(), repeat=2):
        rollout = method.prepare(Rollout.of([PROMPT] * 2, pair, writer="student"), context(w, modules))
        moved = max(moved, *(abs(v) for row in rollout.values["baseline"] for v in row))
        loss = method.terms(rollout, w.student, w.teacher, modules=modules).losses["on"] / 2
        probability = sum(w.student.logp(sequence) for sequence in pair).exp().detach()
        total += probability * torch.autograd.grad(loss, w.student.table)[0]
    assert moved > 0.02
    assert relative(total, gradient) < EXACT


def context(w: World, modules) -> Context:
    return Context(w.student, w.teacher, None, modules, None, [], micro_batch_tokens=4)


def test_the_baseline_is_put_where_it_belongs():
    """Fixed text gets none, unmasked tokens get none, and micro-batches do not matter."""
    w = world("fixed length")
    method = MomentMatching()
    modules = w.modules(method)
    own = Rollout.of([PROMPT] * 3, [(0, 1, 2), (1, 1), (2, 0, 0)], writer="student")
    own = replace(own, masks=((True, False, True), (True, True), (True, True, True)))
    rollout = joined([Rollout.of([PROMPT], [(2, 2)], writer="teacher"), own])
    first = method.prepare(rollout, context(w, modules)).values["baseline"]
    second = method.prepare(rollout, replace(context(w, modules), micro_batch_tokens=1000)).values["baseline"]
    assert first[0] == (0.0, 0.0)
    assert first[1][1] == 0.0
    assert first[1][0] != 0.0
    assert [v for row in first for v in row] == pytest.approx([v for row in second for v in row])


# The critics' gradient


@both_worlds
@discounted
@pytest.mark.parametrize("side", ["off", "on"])
def test_the_critic_climbs_the_exact_gradient(kind, discount, side):
    w = world(kind)
    method = MomentMatching(on_policy_weight=float(side == "on"), discount=discount)
    modules = w.modules(method)
    critic, writer = modules[f"critic_{side}"], w.student if side == "on" else w.teacher
    (exact,) = torch.autograd.grad(w.distance(critic, writer, discount), critic.weight)
    total = torch.zeros_like(exact)
    for sequence in writer.sequences():
        rollout = Rollout.of([PROMPT], [sequence], writer="student" if side == "on" else "teacher")
        loss = method.terms(rollout, w.student, w.teacher, modules=modules, training=(f"critic_{side}",)).losses[side]
        total -= writer.logp(sequence).exp().detach() * torch.autograd.grad(loss, critic.weight)[0]
    assert relative(total, exact) < EXACT


def both_texts(w: World) -> Rollout:
    return joined([every_response(w.teacher, "teacher"), every_response(w.student, "student")])


@pytest.mark.parametrize("source", ["student", "teacher", "both"])
@pytest.mark.parametrize("rank", [None, 2])
def test_each_player_moves_only_itself(source, rank):
    w = world("fixed length")
    w.teacher.model.requires_grad_(True)  # so that a gradient that reaches it would be seen
    method = MomentMatching(critic_source=source, critic_rank=rank, gradient_penalty=10.0, orthogonality=1e-4)
    modules = w.modules(method)
    everything = {"student": w.student.model, "teacher": w.teacher.model, **modules}

    def moved(training: tuple[str, ...]) -> set[str]:
        for module in everything.values():
            module.zero_grad(set_to_none=True)
        terms = method.terms(both_texts(w), w.student, w.teacher, modules=modules, training=training)
        sum(terms.losses.values()).backward()
        return {name for name, m in everything.items() if any(p.grad is not None for p in m.parameters())}

    assert moved(("student",)) == {"student"}
    assert moved(("critic_off", "critic_on")) == {"critic_off", "critic_on"}
    assert all(parameter.grad is not None for critic in modules.values() for parameter in critic.parameters())


def test_critics_start_at_zero_and_stay_in_their_bound():
    w = world("fixed length")
    method = MomentMatching(bound=2.0)
    metrics = method.terms(both_texts(w), w.student, w.teacher, modules=method.modules(w.student, w.teacher, 0)).metrics
    assert metrics["moment_off"] == metrics["moment_on"] == 0
    critic = w.modules(method, scale=100.0)["critic_on"]
    rollout = every_response(w.student)
    states = critic.states(w.student.hidden(rollout), w.teacher.hidden(rollout))
    assert 1.99 < critic.at(states, w.student.targets(rollout)).abs().max() <= 2.0


@pytest.mark.parametrize("rank", [None, 2])
def test_values_and_steepness_of_single_tokens(rank):
    """Against autograd through the whole vocabulary."""
    w = world("fixed length")
    critic = w.modules(MomentMatching(critic_rank=rank))["critic_on"]
    rollout = every_response(w.student)
    tokens = w.student.targets(rollout)
    states = critic.states(w.student.hidden(rollout), w.teacher.hidden(rollout)).requires_grad_()
    values = critic.head.logits(critic.hidden(states)).gather(1, tokens[:, None]).squeeze(1)
    (slope,) = torch.autograd.grad(values.sum(), states)
    torch.testing.assert_close(critic.at(states, tokens), values)
    torch.testing.assert_close(critic.steepness(states, tokens), slope.norm(dim=-1), rtol=1e-6, atol=1e-8)


def test_the_penalties_are_what_they_say():
    w = world("fixed length")
    plain, steadied = MomentMatching(), MomentMatching(gradient_penalty=10.0, penalty_norm=0.4, orthogonality=0.01)
    modules = w.modules(plain)
    rollout, critic = both_texts(w), modules["critic_off"]
    training = ("critic_off", "critic_on")

    def loss(method):
        return method.terms(rollout, w.student, w.teacher, modules=modules, training=training).losses["off"]

    off = every_response(w.teacher, "teacher")
    states = critic.states(w.student.hidden(off), w.teacher.hidden(off))
    steep = critic.steepness(states, w.student.targets(off))
    gram = critic.weight.T @ critic.weight - torch.eye(critic.weight.shape[1])
    expected = 10 * ((steep - 0.4) ** 2).sum() + 0.01 * off.positions * (gram**2).sum()
    assert (loss(steadied) - loss(plain)).item() == pytest.approx(expected.item())


# What is measured


def action_values(w: World, policy: TabularModel, reward: Tensor, discount: float) -> Tensor:
    """Q of a policy at every prefix and token, `[prefixes, vocabulary]`, by going through the tree."""
    prefixes, rows = policy.prefixes, {prefix: row for row, prefix in enumerate(policy.prefixes)}
    values = torch.zeros(len(prefixes), policy.vocabulary, dtype=torch.float64)
    probabilities = policy.table.detach().softmax(0).T
    for prefix in reversed(prefixes):  # longest first
        for token in range(policy.vocabulary):
            after = rows.get((*prefix, token))
            future = 0.0 if after is None or token == policy.stop else (probabilities[after] * values[after]).sum()
            values[rows[prefix], token] = reward[rows[prefix], token] + discount * future
    return values


def value_of(policy: TabularModel, reward: Tensor, discount: float) -> float:
    rows = {prefix: row for row, prefix in enumerate(policy.prefixes)}
    return sum(
        (policy.logp(y).exp() * sum(discount**t * reward[rows[y[:t]], token] for t, token in enumerate(y))).item()
        for y in policy.sequences()
    )


@both_worlds
@discounted
@pytest.mark.parametrize("side", ["off", "on"])
def test_with_the_right_action_values_the_distance_is_the_imitation_gap(kind, discount, side):
    """J(teacher) − J(student): off-policy with the student's Q, on-policy with the teacher's."""
    w = world(kind)
    reward = torch.randn(len(w.student.prefixes), w.student.vocabulary, dtype=torch.float64)
    values = action_values(w, w.student if side == "off" else w.teacher, reward, discount)
    method = MomentMatching(
        on_policy_weight=float(side == "on"), discount=discount, bound=2 * values.abs().max().item()
    )
    modules = method.modules(w.student, w.teacher, 0)
    critic, writer = modules[f"critic_{side}"], w.student if side == "on" else w.teacher
    with torch.no_grad():
        critic.weight.copy_(len(values) ** 0.5 * torch.atanh(values / critic.bound).T)
    found = measured(w, method, modules, writer, side)[f"moment_{side}"]
    gap = value_of(w.teacher, reward, discount) - value_of(w.student, reward, discount)
    assert abs(gap) > 0.05
    assert found == pytest.approx(gap, rel=1e-9)


def measured(w: World, method, modules, writer: TabularModel, side: str) -> dict[str, float]:
    """The expected metrics of a method over a writer's responses."""
    means: dict[str, float] = {}
    for sequence in writer.sequences():
        rollout = Rollout.of([PROMPT], [sequence], writer="student" if side == "on" else "teacher")
        terms = method.terms(rollout, w.student, w.teacher, modules=modules)
        assert set(terms.counts.values()) <= {1, 0}
        for name, value in terms.metrics.items():
            means[name] = means.get(name, 0.0) + (writer.logp(sequence).exp() * value).item()
    return means


@both_worlds
@discounted
@pytest.mark.parametrize("side", ["off", "on"])
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_the_best_bounded_critic_reaches_twice_the_bound_times_the_total_variation(kind, discount, side, bound):
    w = world(kind)
    method = MomentMatching(on_policy_weight=float(side == "on"), discount=discount, bound=bound)
    modules = w.modules(method)
    critic, writer = modules[f"critic_{side}"], w.student if side == "on" else w.teacher
    definition = sum(
        writer.logp(y).exp()
        * sum(
            discount**t * (p - q).abs().sum() / 2
            for t, (p, q) in enumerate(
                zip(w.teacher.distributions(y).exp(), w.student.distributions(y).exp(), strict=True)
            )
        )
        for y in writer.sequences()
    ).item()
    random = measured(w, method, modules, writer, side)
    with torch.no_grad():
        critic.weight.copy_(1e3 * (w.teacher.table.softmax(0) - w.student.table.softmax(0)).sign())
    best = measured(w, method, modules, writer, side)
    assert best[f"bound_{side}"] == random[f"bound_{side}"] == pytest.approx(2 * bound * definition)
    assert best[f"moment_{side}"] == pytest.approx(best[f"bound_{side}"])
    assert random[f"moment_{side}"] < 0.9 * best[f"moment_{side}"]


def test_the_closed_form_is_total_variation_on_both_texts():
    """B = ½, γ = 1, equal weights, no gradient through the sampling: f-distill's TVD (Eq. 10)."""
    w = world("with an end token")
    method = MomentMatching(bound=0.5, on_policy_weight=0.5, greedy=True)
    modules = w.modules(method)
    with torch.no_grad():
        for critic in modules.values():
            critic.weight.copy_(1e3 * (w.teacher.table.softmax(0) - w.student.table.softmax(0)).sign())
    control = DistributionMatching(divergence="total_variation", on_policy_weight=0.5)
    exact = torch.zeros(())
    for writer in (w.teacher, w.student):
        for y in writer.sequences():
            distance = (w.teacher.distributions(y).exp() - w.student.distributions(y).exp()).abs().sum()
            exact = exact + writer.logp(y).exp().detach() * distance / 4
    (gradient,) = torch.autograd.grad(exact, w.student.table)
    for found in (method, control):
        total = sum(expected_gradient(w, found, modules, side) for side in ("off", "on"))
        assert relative(total, gradient) < EXACT


@discounted
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "total_variation"])
@pytest.mark.parametrize("side", ["off", "on"])
def test_distribution_matching_is_the_divergence_on_the_same_text(divergence, side, discount):
    w = world("with an end token")
    method = DistributionMatching(divergence=divergence, on_policy_weight=float(side == "on"), discount=discount)
    from tests import definitions

    writer = w.student if side == "on" else w.teacher
    exact = sum(
        writer.logp(y).exp().detach()
        * (
            definitions.divergence(divergence, w.student.distributions(y).exp(), w.teacher.distributions(y).exp())
            * powers(discount, len(y))
        ).sum()
        for y in writer.sequences()
    )
    (gradient,) = torch.autograd.grad(exact, w.student.table)
    assert relative(expected_gradient(w, method, {}, side), gradient) < EXACT
    assert measured(w, method, {}, writer, side)[f"distance_{side}"] == pytest.approx(exact.item())


def test_the_loss_is_the_distance_and_cross_entropy_is_added_off_policy():
    w = world("fixed length")
    modules = w.modules(MomentMatching())
    plain = MomentMatching().terms(both_texts(w), w.student, w.teacher, modules=modules)
    assert plain.losses["on"].item() == pytest.approx(0.5 * plain.metrics["moment_on"].item())
    mixed = MomentMatching(cross_entropy=0.3).terms(both_texts(w), w.student, w.teacher, modules=modules)
    extra = -0.15 * sum(w.student.logp(y) for y in w.teacher.sequences())
    assert (mixed.losses["off"] - plain.losses["off"]).item() == pytest.approx(extra.item())
    expected = torch.autograd.grad(extra, w.student.table)[0]
    found = torch.autograd.grad(mixed.losses["off"] - plain.losses["off"], w.student.table)[0]
    torch.testing.assert_close(found, expected)
    assert mixed.losses["on"].item() == plain.losses["on"].item()


@discounted
def test_measured_distances_are_the_definitions(discount):
    w = world("with an end token")
    off, on = every_response(w.teacher, "teacher"), every_response(w.student)
    found = moment_distances(w.student, w.teacher, off, on, 1.5, discount=discount, micro_batch_tokens=9)
    for side, rollout in (("off", off), ("on", on)):
        sums = {"total_variation": [], "forward_kl": [], "reverse_kl": []}
        for y in rollout.responses:
            p, q = w.teacher.distributions(y).exp(), w.student.distributions(y).exp()
            weights = powers(discount, len(y))
            sums["total_variation"].append((weights * (p - q).abs().sum(-1) / 2).sum().item())
            sums["forward_kl"].append((weights * (p * (p / q).log()).sum(-1)).sum().item())
            sums["reverse_kl"].append((weights * (q * (q / p).log()).sum(-1)).sum().item())
        for name, values in sums.items():
            assert found[f"{name}_{side}"].value == pytest.approx(sum(values) / len(values))
        assert found[f"moment_{side}"].value == pytest.approx(3 * found[f"total_variation_{side}"].value)
        critic = w.modules(MomentMatching(discount=discount, bound=1.5))[f"critic_{side}"]
        mean = sum(w.gap(critic, y, discount).item() for y in rollout.responses) / len(rollout)
        estimate = critic_distance(w.student, w.teacher, rollout, critic, micro_batch_tokens=9)
        assert estimate.value == pytest.approx(mean)
        assert estimate.value < found[f"moment_{side}"].value


# The engine with a third model


@pytest.mark.parametrize("memory", [1, 1000, 2**27])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_engine_with_a_third_model_is_dense(memory, temperature):
    """Values and gradients of all six leaves, whatever the chunks; heads of unequal sizes, each with its trimmings."""
    torch.manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    hidden, weight, bias = leaf(7, 5), leaf(13, 5), leaf(13)
    third, third_weight, third_bias = leaf(7, 3), leaf(12, 3), leaf(12)
    teacher_hidden, teacher_weight = torch.randn(7, 4).double(), torch.randn(11, 4).double()
    coefficients, targets, entropy = torch.randn(7).double(), torch.randint(11, (7,)), torch.rand(7).double()
    head, extra = Head(weight, bias, 0.7, 3.0), Head(third_weight, third_bias, 0.5, 0.8)

    def function(student_logp, teacher_logp, critic):
        return ((teacher_logp.exp() - student_logp.exp()) * critic + student_logp * critic**2).sum(-1)

    scores = linear_divergence(
        hidden,
        head,
        teacher_hidden,
        Head(teacher_weight),
        function,
        coefficients=coefficients,
        targets=targets,
        cross_entropy=entropy,
        temperature=temperature,
        extra_hidden=third,
        extra_head=extra,
        memory=memory,
    )
    logits = 3 * torch.tanh(0.7 * (hidden @ weight.T + bias) / 3)[:, :11]
    critic = 0.8 * torch.tanh(0.5 * (third @ third_weight.T + third_bias) / 0.8)[:, :11]
    student_logp = (logits / temperature).log_softmax(-1)
    teacher_logp = (teacher_hidden @ teacher_weight.T / temperature).log_softmax(-1)
    values = function(student_logp, teacher_logp, critic)
    chosen = logits.log_softmax(-1)[torch.arange(7), targets]
    expected = (coefficients * values).sum() - (entropy * chosen).sum()
    leaves = (hidden, weight, bias, third, third_weight, third_bias)
    torch.testing.assert_close(scores.total, expected)
    torch.testing.assert_close(scores.divergence, values.detach())
    for found, wanted in zip(
        torch.autograd.grad(scores.total, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    if temperature == 1.0:
        mapped = map_vocabulary(
            function, hidden, head, teacher_hidden, Head(teacher_weight), extra_hidden=third, extra_head=extra
        )
        torch.testing.assert_close(mapped, values.detach())


def test_the_engine_refuses_a_third_model_without_a_function_of_three():
    hidden, weight = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="function of three"):
        linear_divergence(hidden, weight, hidden, weight, "reverse_kl", extra_hidden=hidden, extra_head=Head(weight))


# Text


class Written:
    """A sampler that writes the same for every row."""

    def __init__(self, writer: str, samples: int = 1) -> None:
        self.writer, self.samples = writer, samples

    def sample(self, examples, step):
        rows = [(e, number) for e in examples for number in range(self.samples)]
        return Rollout.of(
            [e.prompt for e, _ in rows],
            [(number,) for _, number in rows],
            writer=self.writer,
            items=[e.item for e, _ in rows],
        )


def test_both_gives_the_fixed_text_of_a_prompt_and_then_the_students():
    from tutelage.rollouts.samplers import Both

    examples = [Example(item, "", (item,), (1,), (True,), "", "") for item in (4, 7)]
    rollout = Both(Written("teacher"), Written("student", 2)).sample(examples, 0)
    assert rollout.items == (4, 4, 4, 7, 7, 7)
    assert rollout.writers == ("teacher", "student", "student") * 2
    assert rollout.responses == ((0,), (0,), (1,)) * 2


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}, {"strategy": "greedy"}])
def test_text_that_the_student_would_not_have_drawn_is_refused(change):
    from tutelage.config import Decoding

    with pytest.raises(ValueError, match="must sample from the student itself"):
        MomentMatching(student_decoding=Decoding(**change))
    MomentMatching(student_decoding=Decoding(**change), on_policy_weight=0.0)
    MomentMatching(student_decoding=Decoding(**change), greedy=True)
