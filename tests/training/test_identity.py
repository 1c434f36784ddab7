"""Which keys of a recipe may differ when a run is resumed."""

import pytest
from tests.tiny import mapping

from tutelage.recipe import recipe_of
from tutelage.training.identity import changed_keys, mapping_of


def changes(folder, section, value):
    before, after = mapping(folder, "gkd"), mapping(folder, "gkd")
    after[section] = {**after[section], **value}
    return changed_keys(recipe_of(after), mapping_of(recipe_of(before)))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("method", {"student_decoding": {"max_new_tokens": 5, "batch_size": 2, "cuda_graphs": True}}),
        ("train", {"micro_batch_tokens": 77}),
        ("evaluation", {"metrics": []}),
    ],
)
def test_what_is_only_computed_otherwise_may_differ(tmp_path, section, value):
    assert changes(tmp_path, section, value) == []


def test_what_is_learnt_may_not(tmp_path):
    (told,) = changes(tmp_path, "method", {"student_decoding": {"max_new_tokens": 5, "temperature": 0.5}})
    assert told.startswith("method.student_decoding.temperature: 1.0 → 0.5")
