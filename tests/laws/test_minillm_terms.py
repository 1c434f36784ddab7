"""MiniLLM's loss on real models against its definition; plain text; masks; and the settings that are refused."""

from dataclasses import replace

import pytest
import torch
from tests.laws.test_minillm import OFFICIAL, context
from tests.tiny_models import EXACT, own_logits, pair, ragged
from torch import Tensor

from tutelage.config import Decoding
from tutelage.methods import MiniLLM
from tutelage.recipe import load_recipe
from tutelage.rollouts.rollout import Rollout, joined


def dense(rollout: Rollout, student, teacher, method: MiniLLM) -> Tensor:
    """The loss by its definition, from transformers' own logits, one unpadded response at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for prompt, response, mask, recorded in zip(
        rollout.prompts, rollout.responses, rollout.masks, rollout.logps, strict=True
    ):
        seen = torch.tensor(mask)
        q = own_logits(student.model, prompt, response).log_softmax(-1)[seen]
        with torch.no_grad():
            p = own_logits(teacher.model.model, prompt, response).log_softmax(-1)[seen]
        ids = torch.tensor(response)[seen]
        logq, logp = (x.gather(1, ids[:, None]).squeeze(1) for x in (q, p))
        rho = (logq - torch.tensor(recorded, dtype=torch.float64)[seen]).exp()
        rewards, count = (logp - logq).detach(), len(ids)
        advantage = torch.stack([rewards[t + 1 :].sum() / max(1, count - t - 2) for t in range(count)])
        single = (q.exp() * (q - p)).sum(-1)
        total = total + (rho.detach() * single - rho.minimum(rho.clamp(0.8, 1.2)) * advantage).sum()
    return total


@pytest.mark.parametrize("name", EXACT)
def test_the_papers_loss_is_its_definition_on_real_models(name):
    """Ragged prompts and responses, tokens out of the mask, padding, decoder-only and encoder-decoder."""
    student, teacher = pair(name)
    rows = ragged()
    logps = [[-2.0 - 0.1 * place for place in range(len(response))] for response in rows.responses]
    rollout = replace(rows, logps=tuple(map(tuple, logps)), writers=("mixed",) * len(rows))
    method = MiniLLM(text_rows=1)
    prepared = method.prepare(rollout, context(student, teacher))
    wanted = dense(rollout, student, teacher, method)
    names, parameters = zip(*student.model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(wanted, parameters, allow_unused=True)
    found, gradients = 0.0, dict.fromkeys(names, 0)
    for part in prepared.micro_batches(20):
        student.model.zero_grad(set_to_none=True)
        loss = method.terms(part, student, teacher).losses["student"]
        loss.backward()
        found += loss.item()
        gradients = {n: gradients[n] + (0 if p.grad is None else p.grad) for n, p in student.model.named_parameters()}
    assert found == pytest.approx(wanted.item(), rel=1e-10)
    for parameter_name, slope in zip(names, slopes, strict=True):
        if slope is not None:
            torch.testing.assert_close(gradients[parameter_name], slope, rtol=1e-8, atol=1e-10)
    assert method.units(prepared) == {"student": 5, "text": 0}
    assert replace(method, average_over="tokens").units(prepared) == {"student": rows.positions, "text": 0}


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_plain_text_has_a_term_of_its_own(share):
    """Its rows leave the policy's term as it is, and have the cross-entropy and the teacher's part by definition."""
    student, teacher = pair("gpt2")
    rows = ragged()
    own = replace(rows, logps=tuple((-2.0,) * len(r) for r in rows.responses), writers=("mixed",) * len(rows))
    text = Rollout.of([[5], [6]], [[7, 8, 9], [10, 11]], writer="text")
    method = MiniLLM(text_rows=2, text_teacher_share=share, text_weight=2.0)
    prepared = method.prepare(own, context(student, teacher))
    both = joined([prepared, text])
    terms = method.terms(both, student, teacher)
    alone = method.terms(prepared, student, teacher)
    assert torch.equal(terms.losses["student"], alone.losses["student"])
    assert "text" not in alone.losses
    assert method.units(both) == {"student": 5, "text": 2}
    assert terms.counts["text_cross_entropy"] == 5
    assert terms.counts["reverse_kl"] == rows.positions
    wanted = 0.0
    for prompt, response in zip(text.prompts, text.responses, strict=True):
        q = own_logits(student.model, prompt, response).log_softmax(-1)
        p = own_logits(teacher.model.model, prompt, response).log_softmax(-1)
        cross_entropy = -q[range(len(response)), list(response)].sum()
        wanted += 2 * ((1 - share) * cross_entropy + share * (p.exp() * (p - q)).sum()).item()
    assert terms.losses["text"].item() == pytest.approx(wanted, rel=1e-10)


def test_prepare_sees_masked_tokens_only():
    """Tokens out of the mask change no value, and have none; whitening counts the tokens of the mask alone."""
    student, teacher = pair("gpt2")
    rows = ragged()
    logps = tuple((-2.0,) * len(r) for r in rows.responses)
    forced = tuple(
        tuple(-2.0 if seen else -50.0 for seen in mask) for mask in rows.masks
    )  # of no meaning at tokens that nobody drew
    method = replace(OFFICIAL, behaviour="recorded", importance="prefix")
    prepared = method.prepare(replace(rows, logps=logps), context(student, teacher))
    other = method.prepare(replace(rows, logps=forced), context(student, teacher))
    assert prepared.values == other.values
    advantages = prepared.masked(prepared.values["advantage"])
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    assert sum(a * a for a in advantages) / len(advantages) == pytest.approx(1, rel=1e-6)
    outside = [
        value
        for column, mask in zip(prepared.values["advantage"], rows.masks, strict=True)
        for value, seen in zip(column, mask, strict=True)
        if not seen
    ]
    assert outside == [0.0] * 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"student_decoding": {"top_p": 0.9}}, "draws from another one"),
        ({"student_decoding": {"top_k": 50}}, "draws from another one"),
        ({"student_decoding": {"temperature": 0.9}}, "draws from another one"),
        ({"student_decoding": {"strategy": "greedy"}}, "needs sampled text"),
        ({"whiten": True}, "need a whole collection"),
        ({"baseline": "leave_one_out", "samples": 2}, "need a whole collection"),
        ({"baseline": "leave_one_out", "estimates": "rollout"}, "at least 2 samples"),
    ],
    ids=str,
)
def test_unsound_settings_are_refused_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        MiniLLM(**changes)


def test_truncated_sampling_is_allowed_without_importance_weights():
    MiniLLM(importance="none", student_decoding={"top_p": 0.9})


def test_the_two_recipes_are_the_two_presets():
    """The class defaults are the paper's; the other recipe is what the laws are measured on."""
    shared = {"text_rows": 64, "student_decoding": Decoding(max_new_tokens=256)}
    assert load_recipe("recipes/minillm.yaml").method == MiniLLM(**shared)
    official = load_recipe("recipes/minillm-official-code.yaml").method
    assert official == replace(OFFICIAL, text_teacher_share=0.5, **shared)
