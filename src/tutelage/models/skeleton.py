"""Models without their weights: what can be known of a run before anything heavy is read."""

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tutelage import config
from tutelage.models import adapters
from tutelage.models.architecture import auto_class
from tutelage.models.fresh import fresh_model
from tutelage.models.loading import check_quantisable, configuration_at, refuse_served
from tutelage.models.pruning import copy_layers
from tutelage.models.sources import Source, locate


def load_skeleton(
    spec: config.Model,
    role: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Build a model on the meta device: sizes, settings and stop ids are right, weights there are none.

    Args:
        spec: the model's section of a recipe.
        role: whose model it is, for messages.
        tokenizer: gives a fresh model its vocabulary size and special ids.
        teacher: the teacher's skeleton, for a student made of its layers.

    Returns:
        The model; of an adapter, its base.

    Raises:
        InputError: there is no such model, or it is not a language model that writes text.
    """
    refuse_served(spec)
    dtype = getattr(torch, spec.dtype)
    with torch.device("meta"):
        if spec.from_teacher is not None:
            assert teacher is not None
            return copy_layers(teacher, spec.from_teacher.layers, dtype)
        if spec.from_config is not None:
            return fresh_model(spec.from_config, role, dtype, 0, tokenizer)
        assert spec.model is not None
        source = locate(spec.model, role, spec.revision)
        check_quantisable(spec, source)
        if adapters.is_adapter(source):
            adapters.check_installed(source)
            source = adapters.base_of(source)
        settings = configuration_at(source, spec.trust_remote_code)
        model = auto_class(settings, source).from_config(settings, dtype=dtype, trust_remote_code=False)
    model.generation_config = _generation_settings(source, model)
    return model


def _generation_settings(source: Source, model: PreTrainedModel) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source.location, **source.options)
    except OSError:  # not every model has a generation_config.json
        return model.generation_config
