"""MiniLLM's ranking loss against its definition on whole responses, with the gradient from `prepare` and `terms`."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from tests.tiny_models import EXACT, own_logits, pair, ragged
from tests.toy import PROMPT, TabularModel

from tutelage.methods import MiniLLMRanking
from tutelage.methods.objective import Context
from tutelage.rollouts.rollout import Rollout

SIZES = {"vocabulary": 4, "length": 3, "stop": 0}
OWN = [(1, 0), (2, 3, 1), (0,), (3, 3, 0), (1, 2, 0), (2, 0), (1, 1, 1), (3, 0)]
DATA = [(2, 1, 0), (3, 2, 2)]


@pytest.fixture
def models() -> tuple[TabularModel, TabularModel]:
    return TabularModel(**SIZES, seed=3), TabularModel(**SIZES, seed=4, scale=2.0).frozen()


def context(student, teacher) -> Context:
    return Context(student, teacher, None, {}, None, [], 8)  # pyright: ignore[reportArgumentType]


def rollout_for(method: MiniLLMRanking) -> Rollout:
    """Two prompts with four responses of the student each, the data's first where the method wants it."""
    groups = [OWN[:4], OWN[4:]]
    if method.reference == "data":
        groups = [[reference, *group] for reference, group in zip(DATA, groups, strict=True)]
    responses = [response for group in groups for response in group]
    items = [item for item, group in enumerate(groups) for _ in group]
    return Rollout.of([PROMPT] * len(responses), responses, writer="student", items=items)


def definition(method: MiniLLMRanking, student: TabularModel, teacher: TabularModel) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for reference, group in zip(DATA, (OWN[:4], OWN[4:]), strict=True):
        size = {r: len(r) if method.rank_by == "token" else 1 for r in group}
        ranked = sorted(group, key=lambda r: -float(teacher.logp(r).detach()) / size[r])
        pairs = {
            "best_worst": [(ranked[0], ranked[-1])],
            "adjacent": list(pairwise(ranked)),
            "all": list(combinations(ranked, 2)),
        }[method.pairs]
        hinges = [(method.margin - student.logp(a) + student.logp(b)).clamp(min=0) for a, b in pairs]
        best = ranked[0] if method.reference == "best" else reference
        total = total + torch.stack(hinges).mean() - method.regularisation * student.logp(best)
    return total / 2


@pytest.mark.parametrize("reference", ["best", "data"])
@pytest.mark.parametrize("rank_by", ["sequence", "token"])
@pytest.mark.parametrize("pairs", ["best_worst", "adjacent", "all"])
@pytest.mark.parametrize("margin", [0.0, 0.7, 50.0])
def test_loss_and_gradient_are_those_of_the_definition(models, reference, rank_by, pairs, margin):
    """However a prompt's samples are spread over micro-batches: here one response in each."""
    student, teacher = models
    method = MiniLLMRanking(
        samples=4, rank_by=rank_by, pairs=pairs, margin=margin, regularisation=0.3, reference=reference
    )
    prepared = method.prepare(rollout_for(method), context(student, teacher))
    wanted = definition(method, student, teacher)
    (slope,) = torch.autograd.grad(wanted, student.table)
    assert method.units(prepared) == {"student": 2}
    loss = torch.stack(
        [method.terms(prepared.select([row]), student, None).losses["student"] / 2 for row in range(len(prepared))]
    ).sum()
    (found,) = torch.autograd.grad(loss, student.table)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-12)


def test_pairs_beyond_their_margin_have_no_part(models):
    """A student that agrees with the teacher is left alone at margin 0; one that disagrees, or a margin, is not."""
    student, teacher = models
    agreeing = MiniLLMRanking(samples=4, pairs="all", rank_by="sequence", margin=0, regularisation=0)

    def active(method: MiniLLMRanking) -> int:
        prepared = method.prepare(rollout_for(method), context(student, teacher))
        return sum(any(value != 0 for value in row) for row in prepared.values["coefficient"])

    assert active(agreeing) > 0
    student.table.data.copy_(teacher.table.data)
    assert active(agreeing) == 0
    assert active(replace(agreeing, margin=50.0)) == len(OWN)


def test_raw_log_probability_prefers_short_text_and_its_mean_need_not(models):
    student, teacher = models
    ranked = {}
    for rank_by in ("sequence", "token"):
        method = MiniLLMRanking(samples=8, rank_by=rank_by, margin=0, regularisation=1)
        rollout = Rollout.of([PROMPT] * 8, OWN, writer="student", items=[0] * 8)
        prepared = method.prepare(rollout, context(student, teacher))
        ranked[rank_by] = [row for row in range(8) if prepared.values["coefficient"][row][0] >= 1]
    scores = [float(teacher.logp(r).detach()) for r in OWN]
    assert ranked["sequence"] == [max(range(8), key=lambda row: scores[row])]
    assert ranked["token"] == [max(range(8), key=lambda row: scores[row] / len(OWN[row]))]


@pytest.mark.parametrize("name", EXACT)
def test_prepare_and_terms_on_real_models(name):
    """Ragged prompts and masks, decoder-only and encoder-decoder: one group of five, all pairs, all active."""
    student, teacher = pair(name)
    method = MiniLLMRanking(samples=5, pairs="all", margin=1e3, regularisation=0.5, rank_by="sequence")
    rows = ragged()
    prepared = method.prepare(replace(rows, writers=("student",) * 5), context(student, teacher))

    def logp(model, row: int) -> torch.Tensor:
        logits = own_logits(model, rows.prompts[row], rows.responses[row]).log_softmax(-1)
        picked = logits.gather(1, torch.tensor(rows.responses[row])[:, None]).squeeze(1)
        return picked[torch.tensor(rows.masks[row])].sum()

    with torch.no_grad():
        ranked = sorted(range(5), key=lambda row: -logp(teacher.model.model, row).item())
    own = [logp(student.model, row) for row in range(5)]
    hinges = [1e3 - own[a] + own[b] for a, b in combinations(ranked, 2)]
    wanted = torch.stack(hinges).mean() - 0.5 * own[ranked[0]]
    names, parameters = zip(*student.model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(wanted, parameters, allow_unused=True)
    found = sum(method.terms(part, student, None).losses["student"] for part in prepared.micro_batches(20))
    assert float(found.detach()) == pytest.approx(wanted.item(), rel=1e-10)
    for parameter, slope, gradient in zip(
        names, slopes, torch.autograd.grad(found, parameters, allow_unused=True), strict=True
    ):
        if slope is not None:
            torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-10, msg=parameter)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="different responses"):
        MiniLLMRanking(student_decoding={"strategy": "greedy"})
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        MiniLLMRanking(samples=1)
