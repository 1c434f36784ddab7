"""Distillation across tokenizers against its definition: spans by hand, dense float64 probabilities, autograd."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tests.data.test_alignment import byte_level, with_byte_fallback
from tests.definitions import kl
from tests.tiny import mapping, write_model
from tests.tiny_models import build, own_logits

from tutelage.data.alignment import Span, TokenBytes, shared_pieces
from tutelage.errors import InputError
from tutelage.losses import Head, shared_divergence, sorted_distance
from tutelage.methods import CrossTokenizer, SupervisedKD
from tutelage.models.bridge import Bridge, BridgedTeacher
from tutelage.models.language_model import LanguageModel
from tutelage.models.teachers import LocalTeacher
from tutelage.recipe import recipe_of
from tutelage.rollouts.rollout import Rollout, joined
from tutelage.training.run import train
from tutelage.training.setup import prepare

OURS = byte_level([("h", "e"), ("Ġ", "t"), ("Ã", "©")])
THEIRS = byte_level([("t", "h"), ("Ġ", "Ġ")])
PROMPTS = {(10, 11): (20, 21, 22), (12,): (23,), (13, 14, 15): (24, 25)}
ROWS = [
    # text, the student's tokens, the teacher's, their spans; the end is a span of its own
    (" thé", ["Ġt", "h", "Ã©"], ["Ġ", "th", "Ã", "©"], [(0, 2, 0, 2), (2, 3, 2, 4), (3, 4, 4, 5)]),
    ("hex", ["he", "x"], ["h", "e", "x"], [(0, 1, 0, 2), (1, 2, 2, 3), (2, 3, 3, 4)]),
    ("", [], [], [(0, 1, 0, 1)]),
]


def ids_of(tokenizer, tokens: list[str]) -> tuple[int, ...]:
    return (*tokenizer.convert_tokens_to_ids(tokens), tokenizer.eos_token_id)


def bridge_of(ours, theirs, prompts=PROMPTS) -> Bridge:
    student, teacher = TokenBytes.of(ours), TokenBytes.of(theirs)
    shared = shared_pieces(student, teacher) | {ours.eos_token_id: theirs.eos_token_id}
    return Bridge(student, teacher, prompts, frozenset({ours.eos_token_id}), theirs.eos_token_id, shared)


def models(ours=OURS, theirs=THEIRS, prompts=PROMPTS) -> tuple[LanguageModel, BridgedTeacher]:
    """Heads wider than the vocabularies, as real ones are."""
    student = LanguageModel(build("gpt2", 1, vocabulary=len(ours) + 3))
    teacher = LanguageModel(build("gpt2", 2, width=24, vocabulary=len(theirs) + 5))
    return student, BridgedTeacher(teacher, bridge_of(ours, theirs, prompts))


def rollout(writer="data") -> Rollout:
    return Rollout.of(list(PROMPTS), [ids_of(OURS, tokens) for _, tokens, _, _ in ROWS], writer=writer)


def distance(divergence: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    middle = (p + q) / 2
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd(0.5)": lambda: (kl(p, middle) + kl(q, middle)) / 2,
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
    }[divergence]()


def coarse(probabilities: torch.Tensor, ids: list[int]) -> torch.Tensor:
    kept = probabilities[ids]
    return torch.cat([kept, (probabilities.sum() - kept.sum())[None]])


def defined(method: CrossTokenizer, student: LanguageModel, teacher: BridgedTeacher, writer: str) -> torch.Tensor:
    """The loss by its definition, one span after the other."""
    names, theirs = OURS.get_vocab(), THEIRS.get_vocab()
    pairs = [(index, theirs[token]) for token, index in names.items() if token in theirs]
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, teacher_prompt), (_, tokens, teacher_tokens, spans) in zip(PROMPTS.items(), ROWS, strict=True):
        ids, teacher_ids = ids_of(OURS, tokens), ids_of(THEIRS, teacher_tokens)
        q = own_logits(student.model, prompt, ids).softmax(-1)
        p = own_logits(teacher.model.model, teacher_prompt, teacher_ids).softmax(-1).detach()
        share = 0.0 if writer == "student" else method.cross_entropy
        weight = 1.0 if method.reduction == "token" else 1 / len(ids)
        total = total - weight * share * sum(q[n, token].log() for n, token in enumerate(ids))
        for a, b, c, d in spans:
            if method.comparison == "uld":
                longer = max(q.shape[-1], p.shape[-1])
                one, other = torch.zeros(longer, dtype=torch.float64), torch.zeros(longer, dtype=torch.float64)
                one = torch.cat([q[a], one[q.shape[-1] :]]).sort().values
                other = torch.cat([p[c], other[p.shape[-1] :]]).sort().values
                found = (one - other).abs().sum()
            elif b - a == d - c == 1:
                found = distance(
                    method.divergence, coarse(p[c], [i for _, i in pairs]), coarse(q[a], [i for i, _ in pairs])
                )
            else:
                likely = torch.stack([q[n, ids[n]] for n in range(a, b)]).prod()
                taught = torch.stack([p[n, teacher_ids[n]] for n in range(c, d)]).prod()
                found = distance(
                    method.divergence, torch.stack([taught, 1 - taught]), torch.stack([likely, 1 - likely])
                )
            total = total + weight * (1 - share) * found
    return total


METHODS = [
    *(CrossTokenizer(divergence=name) for name in ("forward_kl", "reverse_kl", "jsd(0.5)", "total_variation")),
    CrossTokenizer(cross_entropy=0.3, reduction="sequence"),
    CrossTokenizer(cross_entropy=1.0),
    CrossTokenizer(comparison="uld"),
    CrossTokenizer(comparison="uld", cross_entropy=0.3, reduction="sequence"),
]


@pytest.mark.parametrize("writer", ["data", "student"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.comparison}-{m.divergence}-{m.cross_entropy}")
def test_loss_and_gradients_are_those_of_the_definition(method: CrossTokenizer, writer) -> None:
    student, teacher = models()
    found = method.terms(rollout(writer), student, teacher)
    wanted = defined(method, student, teacher, writer)
    torch.testing.assert_close(found.losses["student"], wanted, rtol=1e-9, atol=1e-9)
    parameters = list(student.model.parameters())
    ours, theirs = (
        torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (found.losses["student"], wanted)
    )
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    assert max(gradient.abs().max() for gradient in ours) > 1e-3


def test_the_teacher_reads_the_same_text_in_its_own_tokens() -> None:
    _, teacher = models()
    reading = teacher.read(rollout())
    assert reading.rollout.prompts == tuple(PROMPTS.values())
    assert reading.rollout.responses == tuple(ids_of(THEIRS, tokens) for _, _, tokens, _ in ROWS)
    starts = [(0, 0), (4, 5), (7, 9)]
    assert reading.spans == tuple(
        Span(a + ours, b + ours, c + theirs, d + theirs)
        for (ours, theirs), (*_, spans) in zip(starts, ROWS, strict=True)
        for a, b, c, d in spans
    )


def test_metrics_count_what_is_compared() -> None:
    student, teacher = models()
    terms = CrossTokenizer().terms(rollout(), student, teacher)
    assert terms.counts == {"divergence": 7, "one_to_one": 7}
    assert (terms.metrics["one_to_one"].item(), terms.metrics["compared"].item()) == (4, 8)
    assert CrossTokenizer().units(rollout()) == {"student": 8}
    assert CrossTokenizer(reduction="sequence").units(rollout()) == {"student": 3}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.comparison}-{m.divergence}-{m.cross_entropy}")
def test_the_sum_does_not_depend_on_batches_or_company(method: CrossTokenizer) -> None:
    student, teacher = models()
    text = joined([rollout(), rollout("student")])
    whole = method.terms(text, student, teacher)
    parts = [method.terms(text.select([row]), student, teacher) for row in (5, 0, 3, 1, 4, 2)]
    total = torch.stack([part.losses["student"] for part in parts]).sum()
    torch.testing.assert_close(whole.losses["student"], total, rtol=1e-10, atol=0)
    found = torch.stack([part.metrics["divergence"] for part in parts]).sum()
    torch.testing.assert_close(whole.metrics["divergence"].double(), found.double(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.1)", "skew_forward_kl(0.1)"])
def test_with_equal_tokenizers_it_is_the_plain_divergence(divergence: str) -> None:
    """Every span is one token for both, and every string is shared."""
    student = LanguageModel(build("gpt2", 1, vocabulary=len(OURS)))
    large = LanguageModel(build("gpt2", 2, width=24, vocabulary=len(OURS)))
    bridged = BridgedTeacher(large, bridge_of(OURS, OURS, {prompt: prompt for prompt in PROMPTS}))
    found = CrossTokenizer(divergence=divergence, cross_entropy=0.3).terms(rollout(), student, bridged)
    plain = SupervisedKD(divergence=divergence, cross_entropy=0.3).terms(rollout(), student, LocalTeacher(large))
    torch.testing.assert_close(found.losses["student"], plain.losses["student"], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.metrics["divergence"], plain.metrics["divergence"], rtol=1e-10, atol=0)
    parameters = list(student.model.parameters())
    gradients = (
        torch.autograd.grad(terms.losses["student"], parameters, materialize_grads=True) for terms in (found, plain)
    )
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-10)


def test_equal_models_have_nothing_to_learn() -> None:
    network = build("gpt2", 1, vocabulary=len(OURS) + 3)
    student = LanguageModel(network)
    bridge = bridge_of(OURS, OURS, {prompt: prompt for prompt in PROMPTS})
    teacher = BridgedTeacher(LanguageModel(build("gpt2", 1, vocabulary=len(OURS) + 3)), bridge)
    for comparison in ("spans", "uld"):
        loss = CrossTokenizer(comparison=comparison).terms(rollout(), student, teacher).losses["student"]
        assert abs(loss.item()) < 1e-12
        if comparison == "spans":  # the other has a kink there
            gradients = torch.autograd.grad(loss, list(student.model.parameters()), materialize_grads=True)
            assert max(gradient.abs().max().item() for gradient in gradients) < 1e-12


@pytest.mark.parametrize(
    ("student_ids", "teacher_ids"), [([4, 0, 2], [1, 5, 3]), ([], []), (list(range(5)), [0, 2, 3, 5, 6])]
)
def test_shared_divergence_keeps_all_mass(student_ids: list[int], teacher_ids: list[int]) -> None:
    """Vocabularies of 5 and 7, of which three, none, or all of the student's strings are shared."""
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (5,)))
    teacher_hidden, teacher = torch.randn(4, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    coefficients = torch.rand(4, dtype=torch.float64)
    ids = [torch.tensor(values, dtype=torch.long) for values in (student_ids, teacher_ids)]
    states = (hidden, Head(weight, bias, scale=0.5, softcap=3.0), teacher_hidden, Head(teacher))
    found = shared_divergence(*states, *ids, "jsd(0.5)", coefficients=coefficients, memory=1)
    q = (3 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 3)).softmax(-1)
    p = (teacher_hidden @ teacher.T).softmax(-1)
    rows = [(coarse(p[n], teacher_ids), coarse(q[n], student_ids)) for n in range(4)]
    assert all(abs(side.sum().item() - 1) < 1e-12 for row in rows for side in row)
    wanted = torch.stack([_jsd(*row) for row in rows])
    torch.testing.assert_close(found.divergence, wanted.detach(), rtol=1e-9, atol=1e-12)
    inputs = (hidden, weight, bias)
    ours = torch.autograd.grad(found.total, inputs)
    theirs = torch.autograd.grad((coefficients * wanted).sum(), inputs)
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-10)


def _jsd(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """With the outcomes that neither model has left out: a rest of nothing has no logarithm to differentiate."""
    some = (p > 1e-15) | (q > 1e-15)
    p, q = p[some], q[some].clamp_min(1e-300)
    middle = (p + q) / 2
    return (torch.where(p > 0, p * (p / middle).log(), 0.0).sum() + (q * (q / middle).log()).sum()) / 2


def test_sorted_distance_by_hand() -> None:
    student = Head(torch.tensor([[0.3], [0.5], [0.2]], dtype=torch.float64).log())
    teacher = Head(torch.tensor([[0.4], [0.6]], dtype=torch.float64).log())
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = torch.full((1,), 2.0, dtype=torch.float64)
    for first, second in ((student, teacher), (teacher, student)):  # 0.5, 0.3, 0.2 against 0.6, 0.4, 0
        scores = sorted_distance(one, first, one, second, coefficients=weights)
        assert scores.divergence.item() == pytest.approx(0.1 + 0.1 + 0.2)
        assert scores.total.item() == pytest.approx(0.8)


@pytest.mark.parametrize("width", [3, 7, 9])
def test_the_gradient_of_the_sorted_distance(width: int) -> None:
    """A vocabulary of 7 against a smaller, an equal and a larger one."""
    torch.manual_seed(width)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    other, teacher = torch.randn(5, 2, dtype=torch.float64), Head(torch.randn(width, 2, dtype=torch.float64))

    def total(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(5, dtype=torch.float64)
        return sorted_distance(hidden, Head(weight), other, teacher, coefficients=ones, memory=1).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


def test_text_that_is_none_is_not_compared() -> None:
    """A character cut short, and what follows a special token that ends nothing."""
    more = byte_level([])
    more.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    student, teacher = models(more, THEIRS, {(10,): (20,)})
    turn, (a, b, start) = more.convert_tokens_to_ids("<turn>"), more.convert_tokens_to_ids(["a", "b", "Ã"])
    end, theirs = more.eos_token_id, THEIRS.convert_tokens_to_ids(["a", "b"])
    cases = {
        (a, b, start): (tuple(theirs), 2),
        (a, turn, b, end): (tuple(theirs[:1]), 1),
        (a, start, end): (tuple(theirs[:1]), 1),
        (turn, end): ((), 0),
        (start,): ((), 0),
        (a, end): ((theirs[0], THEIRS.eos_token_id), 2),
    }
    for response, (read, compared) in cases.items():
        text = Rollout.of([(10,)], [response], writer="student")
        reading = teacher.read(text)
        assert reading.rollout.targets == read
        assert len(reading.spans) == compared
        terms = CrossTokenizer().terms(text, student, teacher)
        assert terms.metrics["compared"].item() == compared
        terms.losses["student"].backward()
        assert math.isfinite(terms.losses["student"].item())
        assert bool(terms.losses["student"] > 0) == bool(compared)


def test_an_end_that_is_written_like_text_is_an_end() -> None:
    """Some tokenizers do not call the token special that ends a turn."""
    more = byte_level([])
    more.add_tokens(["<turn>"])
    bridge = bridge_of(more, THEIRS, {(10,): (20,)})
    turn, a = more.convert_tokens_to_ids("<turn>"), more.convert_tokens_to_ids("a")
    assert bridge.student.of_ids([turn]) == [b"<turn>"]
    _, teacher = models(more)
    reading = BridgedTeacher(teacher.model, replace(bridge, student_stops=frozenset({turn}))).read(
        Rollout.of([(10,)], [(a, turn)])
    )
    assert reading.rollout.targets == (THEIRS.convert_tokens_to_ids("a"), THEIRS.eos_token_id)
    assert reading.spans == (Span(0, 1, 0, 1), Span(1, 2, 1, 2))


def test_a_span_that_one_model_is_sure_of_has_a_finite_slope() -> None:
    """Probability 1 within the arithmetic."""
    student, teacher = models()
    with torch.no_grad():
        student.model.lm_head.weight.mul_(1e3)
    terms = CrossTokenizer().terms(rollout(), student, teacher)
    terms.losses["student"].backward()
    assert all(torch.isfinite(p.grad).all() for p in student.model.parameters() if p.grad is not None)


def test_no_gradient_goes_into_the_teacher() -> None:
    student, teacher = models()
    teacher.model.model.requires_grad_(True)
    for comparison in ("spans", "uld"):
        CrossTokenizer(comparison=comparison).terms(rollout(), student, teacher).losses["student"].backward()
    assert all(p.grad is None for p in teacher.model.model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = models()
    with pytest.raises(InputError, match="needs a BridgedTeacher"):
        CrossTokenizer().terms(rollout(), student, LocalTeacher(teacher.model))
    with pytest.raises(InputError, match="a prompt is not among the rows"):
        teacher.read(Rollout.of([(9, 9)], [(5,)]))
    with pytest.raises(ValueError, match="a distance of its own"):
        CrossTokenizer(comparison="uld", divergence="reverse_kl")


OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
OWN += "{% if add_generation_prompt %}[assistant]{% endif %}"
OTHER = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n"
OTHER += "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture
def recipe(tmp_path):
    """Models of two tokenizers and two chat templates, and conversations."""
    ours, theirs = byte_level([("h", "e"), ("Ġ", "t")]), with_byte_fallback()
    ours.chat_template, theirs.chat_template = OWN, OTHER
    for name, tokenizer, seed in (("llama-student", ours, 1), ("llama-teacher", theirs, 2)):
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
        write_model(tmp_path / name, seed, vocab_size=len(tokenizer), **ids)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [
        [{"role": "user", "content": f"the {n}"}, {"role": "assistant", "content": answer}]
        for n, answer in enumerate([" thé cat", "bad hat", "🙂 e\u0301", "", "the"] * 4)
    ]
    lines = [json.dumps({"messages": row}) for row in rows if row[1]["content"]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def build_recipe(comparison: str = "spans", cache: str | None = None, **sections):
        whole = mapping(tmp_path, "cross-tokenizer", train={"steps": 3, "micro_batch_tokens": 200}, **sections)
        whole["method"]["comparison"] = comparison
        whole["teacher_cache"] = {"kind": cache}
        return recipe_of(whole)

    return build_recipe


def test_the_teacher_has_the_prompt_by_its_own_template(recipe) -> None:
    told: list[str] = []
    setup = prepare(recipe(), told.append)
    teacher = setup.teacher
    assert isinstance(teacher, BridgedTeacher)
    assert setup.vocabulary is None
    example = setup.texts.train[0]
    tokenizer = teacher.bridge.teacher.tokenizer
    assert tokenizer.decode(teacher.bridge.prompts[example.prompt]).strip() == "user: the 0assistant:"
    reading = teacher.read(Rollout.of([example.prompt], [example.response]))
    assert tokenizer.convert_ids_to_tokens(reading.rollout.responses[0])[:3] == ["▁t", "h", "é"]
    assert reading.rollout.responses[0][-1] == tokenizer.eos_token_id
    assert reading.spans[-1].student_stop == len(example.response)
    assert not [line for line in told if "student's chat template for both" in line]
    assert any("two tokenizers, " in line for line in told)


@pytest.mark.parametrize("comparison", ["spans", "uld"])
def test_a_run_across_tokenizers_lowers_its_loss(recipe, comparison: str) -> None:
    run = train(recipe(comparison), report=lambda line: None)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3
    assert all(math.isfinite(line["divergence"]) and 0 < line["compared"] <= 1 for line in steps)
    assert all(0 <= line["one_to_one"] <= 1 for line in steps)
    first, last = (evaluation["metrics"]["loss"]["value"] for evaluation in run.evaluations)
    assert comparison == "uld" or last < first


def test_recipes_that_compare_ids_are_refused(recipe, tmp_path) -> None:
    with pytest.raises(InputError, match="agreement, which compares token by token of one vocabulary"):
        prepare(recipe(evaluation={"metrics": ["loss", "agreement"]}), print)
    with pytest.raises(InputError, match="leave teacher_cache out"):
        prepare(recipe(cache="hidden"), print)
    turns = [{"role": role, "content": "the"} for role in ("user", "assistant", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"rows.jsonl:1 has several turns in its response"):
        prepare(recipe(), print)
