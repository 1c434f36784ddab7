"""Fresh adapters on base models, and teachers that have their weights in common with the base."""

import pytest
import torch
from tests.models.tiny import TOKENIZER, fresh, logits, spread, stored

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import loading

pytest.importorskip("peft")


@pytest.fixture
def base(tmp_path):
    spread(fresh("llama")).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(folder, teacher=None, seed=0, dtype="float32", **settings):
    spec = config.Model(model=str(folder), device="cpu", dtype=dtype, adapter=config.Adapter(**settings))
    return loading.load_model(spec, "student", seed=seed, teacher=teacher)


def learnt(model):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight))
    return model


def test_a_fresh_adapter_changes_nothing_and_alone_learns(base):
    student = adapted(base, rank=4, targets=("q_proj", "v_proj"))
    assert torch.equal(logits(student), logits(stored(base)))
    trained = {name: weight.shape for name, weight in student.named_parameters() if weight.requires_grad}
    assert len(trained) == 3 * 2 * 2
    assert all(4 in shape for shape in trained.values())


def test_what_it_adds_is_alpha_over_rank_times_the_product(base):
    """By hand: W + (α / r) B A."""
    student, plain = learnt(adapted(base, rank=2, alpha=6.0, targets=("q_proj",))), stored(base)
    weights = dict(student.named_parameters())
    with torch.no_grad():
        for layer, block in enumerate(plain.model.layers):
            parts = [
                weights[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{x}.default.weight"] for x in "BA"
            ]
            block.self_attn.q_proj.weight += 3.0 * parts[0] @ parts[1]
    torch.testing.assert_close(logits(student), logits(plain), rtol=1e-4, atol=1e-4)


def test_all_linear_leaves_the_head_out(base):
    names = {name for name, weight in adapted(base).named_parameters() if weight.requires_grad}
    assert not any("lm_head" in name for name in names)
    assert len(names) == 3 * 7 * 2


def test_dora_learns_magnitudes_too(base):
    student = adapted(base, dora=True, targets=("q_proj",))
    assert torch.allclose(logits(student), logits(stored(base)), atol=1e-5)
    assert sum("magnitude" in name for name, weight in student.named_parameters() if weight.requires_grad) == 3


def test_the_seed_makes_the_weights_and_no_other_generator_is_touched(base):
    before = torch.get_rng_state()
    first, again, other = (dict(adapted(base, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_encoder_decoder(tmp_path):
    fresh("t5").save_pretrained(tmp_path / "base")
    student = adapted(tmp_path / "base", targets=("q", "v"))
    assert torch.equal(logits(student), logits(stored(tmp_path / "base")))


def test_base_and_teacher_have_their_weights_in_common(base, tmp_path):
    teacher = stored(base, "teacher")
    expected = logits(teacher)
    student = learnt(adapted(base, teacher))
    assert torch.equal(logits(teacher), expected)
    assert not torch.allclose(logits(student), expected, atol=1e-2)
    shared = {weight.data_ptr() for weight in teacher.parameters()}
    assert shared <= {weight.data_ptr() for weight in student.parameters()}
    assert not any(weight.requires_grad for weight in teacher.parameters())
    student.save_pretrained(tmp_path / "adapter")
    again = loading.load_model(
        config.Model(model=str(tmp_path / "adapter"), device="cpu"), "student", seed=0, teacher=teacher
    )
    assert shared <= {weight.data_ptr() for weight in again.parameters()}
    assert torch.equal(logits(again), logits(student))


def test_other_teachers_keep_weights_of_their_own(base, tmp_path):
    def shares(teacher, **options):
        student = adapted(base, teacher, **options)
        return bool({w.data_ptr() for w in teacher.parameters()} & {w.data_ptr() for w in student.parameters()})

    fresh("llama", seed=5).save_pretrained(tmp_path / "other")
    assert not shares(stored(tmp_path / "other", "teacher"))
    assert not shares(stored(base, "teacher", dtype="bfloat16"))
    assert not shares(stored(base, "teacher"), dtype="bfloat16")
    learnt(adapted(base)).save_pretrained(tmp_path / "adapter")
    assert not shares(stored(tmp_path / "adapter", "teacher"))


def test_adapters_that_cannot_begin(base, tmp_path):
    with pytest.raises(InputError, match="no_such"):
        adapted(base, targets=("no_such",))
    adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="is an adapter already"):
        adapted(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter goes on a stored model"):
        config.Model(from_config={"model_type": "llama"}, adapter=config.Adapter())
