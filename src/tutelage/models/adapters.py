"""PEFT adapters (LoRA and its kin): a small folder of weights on top of a base model."""

import copy
import json
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from tutelage import config
from tutelage.errors import InputError
from tutelage.models.sharding import whole_tensors
from tutelage.models.sources import LIBRARY_ERRORS, Source, locate

if TYPE_CHECKING:
    from peft import PeftModel

FILES = (
    "adapter_*.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "*.jinja",
)
"""What is fetched of an adapter on the hub."""


def is_adapter(source: Source) -> bool:
    """Whether a source is a PEFT adapter rather than a whole model.

    Raises:
        InputError: it is both.
    """
    if source.is_local:
        found = (Path(source.location) / "adapter_config.json").is_file()
    else:
        found = find_adapter_config_file(source.location, **source.options) is not None
    if found and source.is_local and any(Path(source.location).glob("model*.safetensors")):
        raise source.error("holds both a whole model and an adapter; move one of them to a folder of its own")
    return found


def check_installed(source: Source) -> None:
    """Refuse an adapter where peft is not installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("peft") is None:
        raise source.error("is a PEFT adapter, which needs peft: pip install 'tutelage[peft]'")


def local(source: Source) -> Source:
    """The adapter as a folder on this machine; one on the hub is fetched."""
    if source.is_local:
        return source
    try:
        folder = snapshot_download(source.location, allow_patterns=list(FILES), **source.options)
    except LIBRARY_ERRORS as error:
        raise source.explain(error) from error
    return replace(source, location=folder, is_local=True, options={})


def base_of(source: Source) -> Source:
    """Where the base model of an adapter lies, as its adapter_config.json says.

    Raises:
        InputError: it says nothing, or the base is not there or an adapter itself.
    """
    settings = _settings(local(source))
    name = settings.get("base_model_name_or_path")
    if not name:
        raise source.error("is an adapter that names no base; set base_model_name_or_path in its adapter_config.json")
    try:
        base = locate(name, f"{source.role}'s base model", settings.get("revision"))
    except InputError as error:
        raise InputError(f"{error} (named by base_model_name_or_path in {source.name}/adapter_config.json)") from error
    if is_adapter(base):
        raise base.error("is an adapter itself; merge it into its own base first (merge_and_unload)")
    return base


def begin(base: PreTrainedModel, source: Source, settings: config.Adapter, seed: int) -> "PeftModel":
    """Put a fresh adapter on a base model, which computes the same as before until the adapter has learnt.

    Args:
        base: the base model; it is changed in place.
        source: where it came from, which the adapter's own files are to name.
        settings: the adapter's section of a recipe.
        seed: seed of the adapter's weights; no other generator is touched.

    Raises:
        InputError: peft is missing, the base is an adapter already, or it has no such layers.
    """
    check_installed(source)
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    if isinstance(base, PeftModel):
        raise source.error("is an adapter already, which goes on learning as it is; leave student.adapter out")
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (any number will do)
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        use_dora=settings.dora,
        task_type=TaskType.SEQ_2_SEQ_LM if base.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        revision=source.options.get("revision"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            found = cast(PeftModel, get_peft_model(base, lora))
        except LIBRARY_ERRORS as error:
            raise source.explain(error) from error
    if source.is_local:  # the adapter's files name it, wherever they are read from
        found.peft_config["default"].base_model_name_or_path = str(Path(source.location).absolute())
    return found


def outline(base: PreTrainedModel, spec: config.Model, role: str) -> "PreTrainedModel | PeftModel":
    """Put the adapter of a model's section on a base without weights: sizes are right, numbers there are none.

    Args:
        base: the base's skeleton; it is changed in place where there is an adapter.
        spec: the section.
        role: whose model it is, for messages.
    """
    if spec.model is None:
        return base
    source = locate(spec.model, role, spec.revision)
    if spec.adapter is not None:
        return begin(base, source, spec.adapter, seed=0)
    if not is_adapter(source):
        return base
    from peft import PeftConfig, get_peft_model

    settings = PeftConfig.from_pretrained(local(source).location)
    settings.inference_mode = role != "student"
    return get_peft_model(base, settings)  # pyright: ignore[reportReturnType]


def is_on(student: config.Model, teacher: config.Model) -> bool:
    """Whether a student's adapter lies on the very model that is the teacher, whose weights are then held once."""
    if student.model is None or teacher.model is None or student.dtype != teacher.dtype:
        return False
    if isinstance(teacher, config.Teacher) and teacher.quantize != "none":
        return False
    source = locate(student.model, "student", student.revision)
    if student.adapter is None and not is_adapter(source):
        return False
    base = source if student.adapter is not None else base_of(source)
    own = locate(teacher.model, "teacher", teacher.revision)
    if base.is_local and own.is_local:
        return Path(base.location).resolve() == Path(own.location).resolve()
    return (base.location, base.options) == (own.location, own.options)


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second model with the same weights, not copied: one gets an adapter, the other stays what it was."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def whole_adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    """Collect the adapter of a cut model, and nothing of its base, for `save_pretrained(folder, state_dict=…)`.

    Every process calls it, and the first one has the result, on the CPU.
    """
    from peft import get_peft_model_state_dict

    state = model.state_dict()
    chosen = {id(tensor) for tensor in get_peft_model_state_dict(model, state_dict=state).values()}
    return whole_tensors({name: tensor for name, tensor in state.items() if id(tensor) in chosen})


def attach(base: PreTrainedModel, source: Source, *, trainable: bool) -> "PeftModel":
    """Put an adapter on its base model.

    Args:
        base: the base model; it is changed in place.
        source: the adapter.
        trainable: whether the adapter is to be trained. The base never is.

    Returns:
        The adapted model.

    Raises:
        InputError: peft is missing, or the adapter is pickled, incomplete or not of this base.
    """
    check_installed(source)
    from peft import PeftConfig, PeftModel

    adapter = local(source)
    folder = Path(adapter.location)
    if not (folder / "adapter_model.safetensors").is_file():
        pickle = " (adapter_model.bin can run code when it is opened)" * (folder / "adapter_model.bin").is_file()
        raise source.error(f"has no adapter_model.safetensors{pickle}; save it again with save_pretrained")
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        if not settings.is_prompt_learning:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys")
                return PeftModel.from_pretrained(
                    base, str(folder), config=settings, is_trainable=trainable, torch_device="cpu"
                )
    except (*LIBRARY_ERRORS, UserWarning) as error:
        raise source.explain(error) from error
    raise source.error(
        f"is a {settings.peft_type} adapter, which adds positions of its own; "
        "expected one that changes weights, such as LoRA"
    )


def _settings(source: Source) -> dict[str, Any]:
    try:
        return json.loads((Path(source.location) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise source.error(f"has an adapter_config.json that cannot be read: {error}") from error
