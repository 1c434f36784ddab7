"""Students made of their teacher's layers."""

import pytest
import torch
from tests.models.tiny import FAMILIES, SIZES, TOKENIZER, fresh, logits, spread, stored, student_of

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import loading


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_layers_of_the_teacher_are_the_teacher(kind):
    teacher = spread(fresh(kind))
    student = student_of(teacher, (0, 1, 2))
    assert torch.equal(logits(student), logits(teacher))
    assert loading.fingerprint(student) == loading.fingerprint(teacher)
    assert all(p.requires_grad for p in student.parameters())


def compose(teacher, kept):
    """Remove layers by hand, in place."""
    parts = [teacher.get_decoder()]
    if teacher.config.is_encoder_decoder:
        parts.append(teacher.get_encoder())
    for part in parts:
        for name, child in list(part.named_children()):
            if isinstance(child, torch.nn.ModuleList):
                setattr(part, name, torch.nn.ModuleList(child[index] for index in kept))
        part.n_layers = part.config.num_hidden_layers = len(kept)
        if part.config.to_dict().get("layer_types"):
            part.config.layer_types = [part.config.layer_types[index] for index in kept]
        for attribute in ("layer_idx", "layer_id"):
            for new, module in enumerate(m for m in part.modules() if attribute in vars(m)):
                setattr(module, attribute, new)
    return teacher


@pytest.mark.parametrize("kind", FAMILIES)
def test_chosen_layers_equal_a_model_composed_by_hand(kind, tmp_path):
    teacher = spread(fresh(kind))
    whole = logits(teacher)
    student = student_of(teacher, (0, 2))
    student.save_pretrained(tmp_path)
    reloaded = stored(tmp_path)
    assert torch.equal(logits(teacher), whole)  # the teacher is left as it was
    assert torch.equal(logits(reloaded), logits(student))
    torch.testing.assert_close(logits(student), logits(compose(teacher, (0, 2))), rtol=0, atol=0)
    assert (logits(student) - whole).abs().max() > 1e-2


def test_layers_in_any_order_and_without_the_first():
    for kind in ("llama", "t5"):
        teacher = spread(fresh(kind))
        student = student_of(teacher, (2, 1))
        stack = "decoder.block" if kind == "t5" else "model.layers"
        given, taken = teacher.get_submodule(f"{stack}.2"), student.get_submodule(f"{stack}.0")
        expected = dict(given.named_parameters())
        for name, weight in taken.named_parameters():
            if "relative_attention_bias" not in name:
                assert torch.equal(weight, expected[name])
        assert torch.isfinite(logits(student)).all()


def test_kinds_of_layers_move_with_them():
    teacher = fresh("gemma2")
    assert student_of(teacher, (1, 2)).config.layer_types == ["full_attention", "sliding_attention"]


def test_encoder_of_another_depth_is_kept_whole():
    teacher = spread(fresh("bart", encoder_layers=2))
    student = student_of(teacher, (0, 2))
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 2)
    expected = dict(teacher.model.encoder.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in student.model.encoder.named_parameters())
    teacher = spread(fresh("t5", num_layers=4, num_decoder_layers=2))
    assert (
        student_of(teacher, (1,)).config.num_layers,
        student_of(teacher, (1,)).config.num_decoder_layers,
    ) == (4, 1)


def test_student_of_another_type_shares_no_memory():
    teacher = fresh("llama")
    name = loading.fingerprint(teacher)
    student = student_of(teacher, (0, 1), dtype="bfloat16")
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    spread(student_of(teacher, (0, 1)))
    assert loading.fingerprint(teacher) == name


def test_layers_the_teacher_does_not_have():
    with pytest.raises(InputError, match=r"asks for layer 3, but the teacher has 3 layers: choose from 0 to 2"):
        student_of(fresh("llama"), (0, 3))
    with pytest.raises(InputError, match="has no teacher to be made from"):
        student_of(None, (0,))


def test_layers_of_different_kinds_cannot_change_places():
    attention = {"num_key_value_heads": 2, "kv_lora_rank": 4, "q_lora_rank": 4}
    attention |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    sizes = {**SIZES, **attention, **experts, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    spec = config.Model(from_config={"model_type": "deepseek_v3", **sizes}, device="cpu")
    teacher = loading.load_model(spec, "teacher", seed=0, tokenizer=TOKENIZER)
    assert torch.isfinite(logits(student_of(teacher, (0, 2)))).all()
    with pytest.raises(InputError, match="from_teacher cannot copy layers of this teacher"):
        student_of(teacher, (1, 2))
