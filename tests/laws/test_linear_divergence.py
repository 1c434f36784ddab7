"""The vocabulary engine, a few positions at a time, against dense logits in float64."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tests import definitions
from tests.definitions import DIVERGENCES
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tutelage.divergences import named
from tutelage.losses import Head, Scores, chunks, linear_divergence, map_vocabulary

POSITIONS, STUDENT_WIDTH, TEACHER_WIDTH, VOCABULARY = 7, 5, 6, 11
MEMORIES = (1, 800, 2**27)  # with this vocabulary: one position at a time, three or four, all of them
each = pytest.mark.parametrize("text", DIVERGENCES)
chunked = pytest.mark.parametrize("memory", MEMORIES)


@dataclass
class Case:
    """Inputs of one comparison; `weights` and so on are leaves that receive gradients."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    bias: Tensor | None = None
    teacher_bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    teacher_scale: float = 1.0
    teacher_softcap: float | None = None
    coefficients: Tensor | None = None
    targets: Tensor | None = None
    cross_entropy: Tensor | None = None
    temperature: float = 1.0
    vocabulary: int | None = None

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def head(self) -> Head:
        return Head(self.weight, self.bias, self.scale, self.softcap)

    def teacher_head(self) -> Head:
        return Head(self.teacher_weight, self.teacher_bias, self.teacher_scale, self.teacher_softcap)


def case(
    dtype: torch.dtype = torch.float64,
    positions: int = POSITIONS,
    student_rows: int = VOCABULARY,
    teacher_rows: int = VOCABULARY,
    **changes,
) -> Case:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    made = Case(
        leaf(positions, STUDENT_WIDTH),
        leaf(student_rows, STUDENT_WIDTH),
        leaf(positions, TEACHER_WIDTH),
        leaf(teacher_rows, TEACHER_WIDTH),
    )
    return replace(made, **changes)


def full_case(**changes) -> Case:
    """Everything at once: bias, scale, softcap, coefficients, targets, cross-entropy, temperature, padded heads."""
    made = case(student_rows=13, teacher_rows=12, scale=0.7, softcap=3.0, teacher_scale=1.3, teacher_softcap=4.0)
    return replace(
        made,
        bias=torch.randn(13).double().requires_grad_(),
        teacher_bias=torch.randn(12).double().requires_grad_(),
        coefficients=torch.rand(POSITIONS).double() + 0.1,
        targets=torch.randint(VOCABULARY, (POSITIONS,)),
        cross_entropy=torch.rand(POSITIONS).double(),
        temperature=1.7,
        **changes,
    )


def engine(c: Case, divergence, memory: int = 2**27) -> Scores:
    return linear_divergence(
        c.hidden,
        c.head(),
        c.teacher_hidden,
        c.teacher_head(),
        divergence,
        coefficients=c.coefficients,
        targets=c.targets,
        cross_entropy=c.cross_entropy,
        temperature=c.temperature,
        vocabulary=c.vocabulary,
        memory=memory,
    )


@dataclass
class Dense:
    total: Tensor
    divergence: Tensor
    student_logp: Tensor | None
    teacher_logp: Tensor | None


def dense(c: Case, text: str) -> Dense:
    """The same from full logits, by the definitions on probabilities."""
    size = c.vocabulary or min(len(c.weight), len(c.teacher_weight))
    student = definitions.logits(c.hidden, c.weight, c.bias, c.scale, c.softcap)[:, :size]
    with torch.no_grad():
        teacher = definitions.logits(
            c.teacher_hidden, c.teacher_weight, c.teacher_bias, c.teacher_scale, c.teacher_softcap
        )[:, :size]
    q, p = (student / c.temperature).softmax(-1), (teacher / c.temperature).softmax(-1)
    per_position = definitions.divergence(text, q, p)
    total = (per_position if c.coefficients is None else c.coefficients * per_position).sum()
    student_logp = teacher_logp = None
    if c.targets is not None:
        rows = torch.arange(len(c.targets))
        student_logp = student.softmax(-1)[rows, c.targets].log()
        teacher_logp = teacher.softmax(-1)[rows, c.targets].log()
    if c.cross_entropy is not None:
        total = total - (c.cross_entropy * student_logp).sum()
    return Dense(total, per_position, student_logp, teacher_logp)


def assert_same(c: Case, text: str, divergence=None, memory: int = 2**27, rtol: float = 1e-10) -> None:
    """Values and gradients of all leaves agree."""
    atol = rtol * 1e-1
    expected, found = dense(c, text), engine(c, divergence or text, memory)
    torch.testing.assert_close(found.total, expected.total, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.divergence, expected.divergence.detach(), rtol=rtol, atol=atol)
    for mine, theirs in ((found.student_logp, expected.student_logp), (found.teacher_logp, expected.teacher_logp)):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(mine, theirs.detach(), rtol=rtol, atol=atol)
    wanted = torch.autograd.grad(expected.total, c.leaves())
    for mine, theirs in zip(torch.autograd.grad(found.total, c.leaves()), wanted, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * scale)


@each
@chunked
def test_chunked_is_dense_in_float64(text: str, memory: int) -> None:
    assert_same(case(), text, memory=memory)


@each
@chunked
def test_chunked_is_dense_with_every_option_at_once(text: str, memory: int) -> None:
    assert_same(full_case(), text, memory=memory)


@each
def test_chunked_is_dense_in_float32(text: str) -> None:
    single = case(torch.float32)
    double = replace(
        single,
        **{
            name: getattr(single, name).detach().double().requires_grad_()
            for name in ("hidden", "weight", "teacher_hidden", "teacher_weight")
        },
    )
    expected, found = dense(double, text), engine(single, text, 800)
    torch.testing.assert_close(found.total.double(), expected.total, rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad(expected.total, double.leaves())
    for mine, theirs in zip(torch.autograd.grad(found.total, single.leaves()), wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_memory_cuts_the_positions_into_chunks() -> None:
    sizes: dict[int, list[int]] = {}
    for memory in MEMORIES:
        seen = sizes.setdefault(memory, [])
        c = case()
        map_vocabulary(
            lambda q, p, seen=seen: seen.append(len(q)) or q[:, 0],
            c.hidden,
            c.head(),
            c.teacher_hidden,
            c.teacher_head(),
            memory=memory,
        )
    assert list(sizes.values()) == [[1] * 7, [3, 3, 1], [7]]


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0, 0.0, 1e-3], dtype=torch.float64)},
        {"temperature": 0.5},
        {"temperature": 4.0},
        {"scale": 0.25, "teacher_scale": 2.0},
        {"softcap": 1.5},
        {"teacher_softcap": 1.5},
        {"bias": torch.linspace(-2, 2, VOCABULARY).double().requires_grad_()},
        {"teacher_bias": torch.linspace(-2, 2, VOCABULARY).double()},
        {"vocabulary": 9},
        {"bias": torch.linspace(-2, 2, VOCABULARY).double().requires_grad_(), "vocabulary": 9, "softcap": 2.0},
    ],
    ids=lambda changes: "+".join(changes),
)
@pytest.mark.parametrize("text", ["forward_kl", "jsd(0.1)", "total_variation"])
def test_each_option_alone_is_dense(text: str, changes: dict) -> None:
    assert_same(case(**changes), text, memory=800)


def test_hand_computed_forward_kl_and_gradient() -> None:
    """Logits log 2 and 0 against 0 and 0: q = (2/3, 1/3), p = (1/2, 1/2), gradient q − p = (1/6, −1/6)."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[2.0], [1.0]], dtype=torch.float64).log().requires_grad_()
    scores = linear_divergence(hidden, weight, hidden.detach(), torch.zeros_like(weight), "forward_kl")
    scores.total.backward()
    assert scores.total.item() == pytest.approx(0.0588915, abs=1e-7)  # ½ log ¾ + ½ log 3/2 = ½ log 9/8
    assert weight.grad.flatten().tolist() == pytest.approx([1 / 6, -1 / 6])
    assert hidden.grad.item() == pytest.approx(0.6931472 / 6)


def test_temperature_divides_the_gradient_once() -> None:
    """No T²: for forward KL at temperature T the gradient of the logits is (q_T − p_T) / T."""
    for temperature in (0.5, 1.0, 2.0):
        c = case(positions=1, temperature=temperature)
        (gradient,) = torch.autograd.grad(engine(c, "forward_kl").total, [c.weight])
        q = (definitions.logits(c.hidden, c.weight) / temperature).softmax(-1)
        p = (definitions.logits(c.teacher_hidden, c.teacher_weight) / temperature).softmax(-1)
        torch.testing.assert_close(gradient, ((q - p) / temperature).T @ c.hidden)


@each
def test_total_is_the_weighted_sum_of_the_values_per_position(text: str) -> None:
    c = full_case()
    scores = engine(c, text, 800)
    total = (c.coefficients * scores.divergence).sum() - (c.cross_entropy * scores.student_logp).sum()
    torch.testing.assert_close(scores.total, total)
    assert not any(v.requires_grad for v in (scores.divergence, scores.student_logp, scores.teacher_logp))


def test_cross_entropy_alone_is_that_of_torch() -> None:
    c = case(targets=torch.randint(VOCABULARY, (POSITIONS,)))
    weights = torch.rand(POSITIONS).double()
    scores = linear_divergence(c.hidden, c.head(), targets=c.targets, cross_entropy=weights, memory=800)
    logits = definitions.logits(c.hidden, c.weight)
    expected = torch.nn.functional.cross_entropy(logits, c.targets, reduction="none") @ weights
    torch.testing.assert_close(scores.total, expected)
    assert scores.divergence is None
    assert scores.teacher_logp is None
    for mine, theirs in zip(
        torch.autograd.grad(scores.total, c.leaves()), torch.autograd.grad(expected, c.leaves()), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_cross_entropy_is_taken_at_temperature_one() -> None:
    targets, weights = torch.randint(VOCABULARY, (POSITIONS,)), torch.ones(POSITIONS).double()
    c = case(targets=targets, cross_entropy=weights, temperature=3.0, coefficients=0 * weights)
    alone = linear_divergence(c.hidden, c.head(), targets=targets, cross_entropy=weights)
    both = engine(c, "forward_kl")
    torch.testing.assert_close(both.total, alone.total)
    torch.testing.assert_close(both.student_logp, alone.student_logp)
    for mine, theirs in zip(
        torch.autograd.grad(both.total, c.leaves()), torch.autograd.grad(alone.total, c.leaves()), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@each
def test_no_positions_give_a_differentiable_zero(text: str) -> None:
    none = torch.zeros(0, dtype=torch.float64)
    c = case(
        positions=0,
        bias=torch.randn(VOCABULARY).double().requires_grad_(),
        targets=none.long(),
        coefficients=none,
        cross_entropy=none,
    )
    scores = engine(c, text)
    scores.total.backward()
    assert scores.total.item() == 0
    assert scores.divergence.shape == scores.student_logp.shape == scores.teacher_logp.shape == (0,)
    assert c.hidden.grad.shape == (0, STUDENT_WIDTH)
    assert not c.weight.grad.any()
    assert not c.bias.grad.any()


@each
def test_a_tied_embedding_gets_both_gradients(text: str) -> None:
    c = case(targets=torch.randint(VOCABULARY, (POSITIONS,)))
    tied, mixing = torch.randn(VOCABULARY, STUDENT_WIDTH).double().requires_grad_(), torch.randn(5, 5).double()
    gradients = []
    for compute in (engine, dense):
        used = replace(c, hidden=torch.tanh(tied[c.targets] @ mixing), weight=tied)
        tied.grad = None
        compute(used, text).total.backward()
        gradients.append(tied.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@each
@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(64, 72), (72, 64)])
def test_padded_rows_of_either_vocabulary_take_no_part(text: str, student_rows: int, teacher_rows: int) -> None:
    c = case(student_rows=student_rows, teacher_rows=teacher_rows)
    with torch.no_grad():  # padding that would matter, were it looked at
        c.weight[64:] += 20
        c.teacher_weight[64:] += 20
    assert_same(c, text, memory=4000)
    cut = replace(c, weight=c.weight[:64], teacher_weight=c.teacher_weight[:64])
    torch.testing.assert_close(engine(c, text).total, engine(cut, text).total, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(engine(c, text).total, [c.weight])
    assert gradient.shape == c.weight.shape
    assert not gradient[64:].any()


@each
@chunked
def test_a_custom_function_takes_the_general_path_to_the_same_result(text: str, memory: int) -> None:
    def by_definition(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        return definitions.divergence(text, student_logp.exp(), teacher_logp.exp())

    assert_same(full_case(), text, by_definition, memory)
    c = full_case()
    torch.testing.assert_close(engine(c, named(text)).total, engine(c, text).total, rtol=0, atol=0)


def test_a_custom_function_whose_slope_is_one_number_for_all_tokens() -> None:
    """Autograd returns an expanded tensor there, which must not be written to."""

    def sum_of_log_ratios(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        return (student_logp - teacher_logp).sum(-1)

    c = case()
    student = definitions.logits(c.hidden, c.weight).log_softmax(-1)
    teacher = definitions.logits(c.teacher_hidden, c.teacher_weight).log_softmax(-1).detach()
    expected = (student - teacher).sum()
    found = engine(c, sum_of_log_ratios, 800).total
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, c.leaves()), torch.autograd.grad(expected, c.leaves()), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("divergence", ["jsd(0.5)", lambda q, p: (p.exp() * (p - q)).sum(-1)])
def test_the_teacher_gets_no_gradient(divergence) -> None:
    c = case(teacher_bias=torch.randn(VOCABULARY).double().requires_grad_())
    engine(c, divergence).total.backward()
    assert c.hidden.grad.any()
    assert c.teacher_hidden.grad is None
    assert c.teacher_weight.grad is None
    assert c.teacher_bias.grad is None


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient_and_change_no_other(frozen: str) -> None:
    c = full_case()
    gradients = torch.autograd.grad(engine(c, "jsd(0.5)").total, c.leaves())
    before = dict(zip(("hidden", "weight", "bias"), gradients, strict=True))
    getattr(c, frozen).requires_grad_(False)
    engine(c, "jsd(0.5)").total.backward()
    assert getattr(c, frozen).grad is None
    for name in before.keys() - {frozen}:
        torch.testing.assert_close(getattr(c, name).grad, before[name], rtol=0, atol=0)


def test_without_any_gradient_the_values_are_the_same() -> None:
    c = full_case()
    with torch.no_grad():
        quiet = engine(c, "jsd(0.5)")
    assert not quiet.total.requires_grad
    torch.testing.assert_close(quiet.total, engine(c, "jsd(0.5)").total.detach(), rtol=0, atol=0)


def test_the_gradient_follows_what_is_done_to_the_total() -> None:
    c = full_case()
    once = torch.autograd.grad(engine(c, "reverse_kl").total, c.leaves())
    scores = engine(c, "reverse_kl")
    (scores.total * 0.25).backward(retain_graph=True)
    (scores.total / -2).backward()
    for leaf, gradient in zip(c.leaves(), once, strict=True):
        torch.testing.assert_close(leaf.grad, -0.25 * gradient)


@each
def test_bfloat16_inputs_are_close_to_float64(text: str) -> None:
    """Logits are rounded to 8 bits (0.4 %): values within 3 % and gradients within 5 % of the largest one."""
    half = case(torch.bfloat16)
    double = case()
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        setattr(double, name, getattr(half, name).detach().double().requires_grad_())
    expected, found = dense(double, text), engine(half, text, 800)
    assert found.divergence.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), expected.total, rtol=0.03, atol=0)
    wanted = torch.autograd.grad(expected.total, double.leaves())
    for mine, theirs in zip(torch.autograd.grad(found.total, half.leaves()), wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=0.05 * theirs.abs().max().item())


@each
def test_autocast_runs_the_products_in_bfloat16_and_the_rest_in_float32(text: str) -> None:
    """The same tolerance as for bfloat16 inputs; the weights' gradients stay in float32."""
    single = case(torch.float32)
    exact = engine(single, text)
    wanted = torch.autograd.grad(exact.total, single.leaves())
    with torch.autocast("cpu", torch.bfloat16):
        found = engine(single, text, 800)
    gradients = torch.autograd.grad(found.total, single.leaves())
    assert found.divergence.dtype == torch.float32
    assert not torch.equal(found.divergence, exact.divergence)  # bfloat16 was used
    torch.testing.assert_close(found.total, exact.total, rtol=0.03, atol=0)
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.05 * theirs.abs().max().item())


def test_weight_gradients_of_bfloat16_models_add_up_in_float32() -> None:
    """4,096 equal contributions of 2⁻⁸: a bfloat16 accumulator would stop at 2."""
    positions = 4096
    hidden = torch.full((positions, 1), 2.0**-8, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets, ones = torch.zeros(positions, dtype=torch.long), torch.ones(positions)
    linear_divergence(hidden, weight, targets=targets, cross_entropy=ones, memory=1).total.backward()
    assert weight.grad.flatten().tolist() == [-8.0, 8.0]  # 4096 · 2⁻⁸ · ½


@chunked
def test_map_vocabulary_is_dense(memory: int) -> None:
    c = full_case()
    function = lambda q, p: torch.stack([q.max(-1).values, (q.exp() * p).sum(-1), p.argmin(-1).double()], -1)  # noqa: E731
    found = map_vocabulary(function, c.hidden, c.head(), c.teacher_hidden, c.teacher_head(), memory=memory)
    student = definitions.logits(c.hidden, c.weight, c.bias, c.scale, c.softcap)[:, :12].softmax(-1)
    teacher = definitions.logits(
        c.teacher_hidden, c.teacher_weight, c.teacher_bias, c.teacher_scale, c.teacher_softcap
    )[:, :12].softmax(-1)
    expected = torch.stack(
        [student.max(-1).values.log(), (student * teacher.log()).sum(-1), teacher.argmin(-1).double()], -1
    )
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    assert not found.requires_grad


def test_map_vocabulary_of_no_positions_keeps_the_trailing_shape() -> None:
    c = case(positions=0)
    function = lambda q, p: q[:, :3]  # noqa: E731
    found = map_vocabulary(function, c.hidden, c.head(), c.teacher_hidden, c.teacher_head(), vocabulary=9)
    assert found.shape == (0, 3)


@chunked
@pytest.mark.parametrize("name", ["jsd", "skew_forward_kl", "skew_reverse_kl"])
def test_a_parameter_a_position_is_the_named_divergence_there(name: str, memory: int) -> None:
    """Also at the ends of its range, where a mixture is one of the two models."""
    c = full_case()
    parameters = torch.tensor([0.1, 0.5, 0.9] * POSITIONS, dtype=torch.float64)[:POSITIONS]
    arguments = (c.hidden, c.head(), c.teacher_hidden, c.teacher_head())
    found = linear_divergence(*arguments, name, parameters=parameters, memory=memory)
    slopes = torch.autograd.grad(found.total, [c.hidden, c.weight])
    total = torch.zeros((), dtype=torch.float64)
    for value in (0.1, 0.5, 0.9):
        there = (parameters == value).double()
        one = linear_divergence(*arguments, f"{name}({value})", coefficients=there, memory=memory)
        torch.testing.assert_close(found.divergence * there, one.divergence * there, rtol=1e-12, atol=1e-14)
        total = total + one.total
    for mine, theirs in zip(slopes, torch.autograd.grad(total, [c.hidden, c.weight]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    ends = linear_divergence(*arguments, name, parameters=(parameters > 0.4).double(), memory=memory)
    assert torch.isfinite(ends.divergence).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(ends.total, [c.hidden, c.weight]))


def test_a_bare_weight_is_a_head() -> None:
    c = case()
    bare = linear_divergence(c.hidden, c.weight, c.teacher_hidden, c.teacher_weight, "reverse_kl")
    torch.testing.assert_close(bare.total, engine(c, "reverse_kl").total, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"divergence": None}, "belong together"),
        ({"teacher_hidden": None}, "belong together"),
        ({"teacher_head": None}, "belong together"),
        ({"teacher_hidden": None, "teacher_head": None}, "belong together"),
        ({"cross_entropy": torch.ones(POSITIONS)}, "cross_entropy needs targets"),
        ({"divergence": "jsd"}, "needs its parameter beta"),
        ({"divergence": "forward_kl", "parameters": torch.ones(POSITIONS)}, "no divergence with a parameter"),
        ({"divergence": lambda q, p: q.sum(-1), "parameters": torch.ones(POSITIONS)}, "parameters needs the name"),
        ({"divergence": "kullback"}, "unknown divergence"),
        ({"teacher_hidden": None, "teacher_head": None, "divergence": None}, "nothing to compute"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, complaint: str) -> None:
    c = case()
    given = {"teacher_hidden": c.teacher_hidden, "teacher_head": c.teacher_head(), "divergence": "jsd(0.5)"}
    with pytest.raises(ValueError, match=complaint):
        linear_divergence(c.hidden, c.head(), **{**given, **arguments})


@each
@chunked
def test_blocks_within_a_chunk_are_dense(text: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointwise work goes two positions at a time, which divides no chunk."""
    monkeypatch.setattr(chunks, "_CACHED_NUMBERS", 2 * VOCABULARY + 1)
    assert_same(replace(full_case(), vocabulary=VOCABULARY), text, memory=memory)


@each
@pytest.mark.parametrize("memory", [1, 2000, 2**27])
@pytest.mark.parametrize("positions", [0, 1, 5])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_chunked_is_dense_whatever_is_masked(
    text: str, memory: int, positions: int, dtype: torch.dtype, rtol: float
) -> None:
    """Masks are coefficients of zero; against float64, relative to the largest gradient."""
    found_case = case(dtype, positions=positions, coefficients=torch.tensor([1.0, 0.0, 0.5, 0.0, 2.0])[:positions])
    exact = replace(found_case, coefficients=found_case.coefficients.double())
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        setattr(exact, name, getattr(found_case, name).detach().double().requires_grad_())
    expected, found = dense(exact, text), engine(found_case, text, memory)
    assert found.divergence.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.total.double(), expected.total, rtol=rtol, atol=1e-6)
    wanted = torch.autograd.grad(expected.total, exact.leaves())
    for mine, theirs in zip(torch.autograd.grad(found.total, found_case.leaves()), wanted, strict=True):
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=rtol * largest)
    if positions > 1:
        (gradient,) = torch.autograd.grad(engine(found_case, text, memory).total, [found_case.hidden])
        assert not gradient[1].any()
        assert gradient[2].any()


@pytest.mark.parametrize("text", ["jsd(0.5)", "total_variation", "skew_forward_kl(0.1)", "skew_reverse_kl(0.1)"])
@pytest.mark.parametrize("impossible", ["student", "teacher", "both", "in turn"])
def test_impossible_tokens_are_dense(text: str, impossible: str) -> None:
    """A bias of −∞: what the fused forms cannot do is left to the definition, block by block."""
    nothing, absent = torch.zeros(VOCABULARY).double(), torch.zeros(VOCABULARY).double()
    absent[3:5] = -torch.inf
    c = case(
        bias=(nothing if impossible == "teacher" else absent).clone(),
        teacher_bias=(nothing if impossible == "student" else absent.roll(4 if impossible == "in turn" else 0)).clone(),
    )
    scores, expected = engine(c, text, 800), dense(c, text)
    torch.testing.assert_close(scores.divergence, expected.divergence.detach(), rtol=1e-10, atol=1e-12)
    if impossible == "both":  # as if the tokens were not there
        keep = [n for n in range(VOCABULARY) if n not in (3, 4)]
        cut = replace(c, weight=c.weight[keep], teacher_weight=c.teacher_weight[keep], bias=None, teacher_bias=None)
        (found,), (wanted,) = (torch.autograd.grad(engine(x, text).total, [c.hidden]) for x in (c, cut))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(scores.total, [c.hidden])[0]).all()


def test_a_token_that_only_the_student_finds_impossible_makes_forward_kl_infinite() -> None:
    absent = torch.zeros(VOCABULARY).double()
    absent[3] = -torch.inf
    c = case(bias=absent)
    assert torch.isinf(engine(c, "forward_kl").divergence).all()
    assert torch.isfinite(engine(c, "reverse_kl").divergence).all()


def test_a_kept_graph_goes_backward_as_often_as_one_likes() -> None:
    """The first time takes the gradients away; in between they are added to, and changed in place."""
    c = full_case()
    scores = engine(c, "jsd(0.5)", 800)
    once = torch.autograd.grad(scores.total, c.leaves(), retain_graph=True)
    wanted = [g.clone() for g in once]
    for _ in range(3):
        scores.total.backward(retain_graph=True)
        once[0].zero_()
    for leaf, gradient in zip(c.leaves(), wanted, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * gradient, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        c.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.total.backward()


def test_a_sharded_head_is_gathered_and_its_shards_receive_their_gradients(tmp_path: Path) -> None:
    """With one process: the weight is a DTensor, and so is its gradient."""
    c = case()
    plain = torch.autograd.grad(engine(c, "jsd(0.5)").total, c.leaves())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = distribute_tensor(c.weight.detach(), mesh, [Shard(0)]).requires_grad_()
        bias = distribute_tensor(torch.zeros(VOCABULARY).double(), mesh, [Shard(0)]).requires_grad_()
        arguments = (c.hidden, Head(weight, bias), c.teacher_hidden, c.teacher_head(), "jsd(0.5)")
        scores = linear_divergence(*arguments, vocabulary=VOCABULARY)
        scores.total.backward()
        assert isinstance(weight.grad, DTensor)
        assert weight.grad.placements == (Shard(0),)
        torch.testing.assert_close(weight.grad.full_tensor(), plain[1])
        torch.testing.assert_close(c.hidden.grad, plain[0])
    finally:
        torch.distributed.destroy_process_group()
