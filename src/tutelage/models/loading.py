"""Tokenizers and models, from wherever a recipe says they lie."""

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from tutelage import config
from tutelage.errors import InputError
from tutelage.models import adapters, quantising
from tutelage.models.architecture import auto_class
from tutelage.models.fresh import fresh_model
from tutelage.models.pruning import copy_layers
from tutelage.models.shell import is_adapted
from tutelage.models.sources import LIBRARY_ERRORS, Source, locate

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_tokenizer(spec: config.Model, role: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a model is used with.

    It is `spec.tokenizer` where that is given, else the one beside the weights; an adapter without
    tokenizer files has its base's. A padding token is not needed: padding is told from text by lengths.

    Args:
        spec: the model's section of a recipe. A student made by `from_teacher` without a `tokenizer`
            has its teacher's, which the caller passes on.
        role: 'student' or 'teacher', for messages.

    Returns:
        The tokenizer.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    if spec.tokenizer is not None:
        return _tokenizer_at(locate(spec.tokenizer, f"{role}'s tokenizer"), False)
    if spec.model is None:
        raise InputError(f"the {role} has no tokenizer: from_config and from_teacher bring none; set {role}.tokenizer")
    source = locate(spec.model, role, spec.revision)
    if adapters.is_adapter(source) and not _has_files(adapters.local(source), TOKENIZER_FILES):
        return _tokenizer_at(adapters.base_of(source), False)
    return _tokenizer_at(source, spec.trust_remote_code)


def load_model(
    spec: config.Model,
    role: Literal["student", "teacher"],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Load a model, make it from a configuration, or cut it from its teacher.

    Args:
        spec: the model's section of a recipe.
        role: whose model it is. A teacher comes frozen; of a student's adapter only the adapter learns.
        seed: seed of fresh weights; no other generator is touched.
        tokenizer: gives a fresh model its vocabulary size and special ids.
        teacher: the model that `from_teacher` copies from. An adapter whose base is that very model has its weights
            in common with it.

    Returns:
        The model on its device, in evaluation mode; for an adapter, the PEFT model around its base.

    Raises:
        InputError: it cannot be loaded, is not a language model that writes text, or does not fit.
    """
    refuse_served(spec)
    device, dtype = device_of(spec.device, role), getattr(torch, spec.dtype)
    if spec.from_teacher is not None:
        if teacher is None:
            raise InputError(f"from_teacher: the {role} has no teacher to be made from; give {role}.model")
        model = copy_layers(teacher, spec.from_teacher.layers, dtype)
    elif spec.from_config is not None:
        model = fresh_model(spec.from_config, role, dtype, seed, tokenizer)
    else:
        assert spec.model is not None
        source = locate(spec.model, role, spec.revision)
        like = None if teacher is None or teacher.device.type != device.type else teacher
        model = _stored_model(source, role, dtype, device, spec, like)
        if spec.adapter is not None:
            model = cast(PreTrainedModel, adapters.begin(model, source, spec.adapter, seed))
    model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
    return freeze(model) if role == "teacher" else model


def refuse_served(spec: config.Model) -> None:
    """Say that there are no weights here of a model that is served.

    Raises:
        InputError: it is.
    """
    if isinstance(spec, config.Teacher) and spec.url is not None:
        raise InputError(
            f"this needs the weights of the teacher '{spec.model}', but it is served (teacher.url); name its folder or "
            "hub id as teacher.model, and leave teacher.url out (--teacher.url null)"
        )


def freeze(model: Any) -> Any:
    """Put a model into evaluation mode and exclude its parameters from training; returns the model."""
    return model.eval().requires_grad_(False)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response: those of the tokenizer, the generation settings and the model.

    Args:
        model: the model; its `generation_config` and `config` may each name one id or several.
        tokenizer: its tokenizer.

    Returns:
        The ids, the tokenizer's own end-of-sequence id first, the others in order.

    Raises:
        InputError: no end-of-sequence token is set anywhere.
    """
    own = _as_ids(tokenizer.eos_token_id)
    settings = model.generation_config  # None for models that transformers cannot generate with
    others = _as_ids(model.config.get_text_config().eos_token_id) | _as_ids(settings and settings.eos_token_id)
    if not own | others:
        raise InputError(
            "no end-of-sequence token is known, so no response would ever end; set eos_token in the "
            "tokenizer_config.json, or eos_token_id in the generation_config.json"
        )
    return (*sorted(own), *sorted(others - own))


def fingerprint(model: torch.nn.Module) -> str:
    """A short name for the exact weights of a model, by which scores kept on disk know their teacher.

    Returns:
        16 hexadecimal digits (BLAKE2b over the names, shapes, types and bytes of all weights and
        persistent buffers; tied weights count once). Neither the device nor the file format matters.
    """
    digest, seen = hashlib.blake2b(digest_size=8), set()
    parts = [
        (name, part) for name, weight in sorted(model.state_dict().items()) for part in quantising.parts_of(weight)
    ]
    for name, weight in parts:
        if (weight.data_ptr(), weight.shape) in seen:
            continue
        seen.add((weight.data_ptr(), weight.shape))
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _as_ids(value: Any) -> set[int]:
    """One id, a list of ids or none, as a set.

    >>> _as_ids([2, 7]), _as_ids(2), _as_ids(None)
    ({2, 7}, {2}, set())
    """
    if value is None:
        return set()
    return set(value) if isinstance(value, list | tuple) else {int(value)}


def _tokenizer_at(source: Source, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=trust_remote_code, **source.options
        )
    except LIBRARY_ERRORS as error:
        if source.is_local and "gguf_file" not in source.options and not _has_files(source, TOKENIZER_FILES):
            raise _no_tokenizer(source) from error
        raise source.explain(error) from error
    names = tuple(tokenizer.vocab_files_names.values())  # none where tokens are bytes, as in ByT5
    if names and "gguf_file" not in source.options and not _has_files(source, (*names, *TOKENIZER_FILES)):
        raise _no_tokenizer(source)
    return tokenizer


def _no_tokenizer(source: Source) -> InputError:
    """transformers makes an empty tokenizer where there is none; nothing good comes of that."""
    owner = source.role.removesuffix("'s tokenizer")
    return InputError(
        f"the {owner} has no tokenizer: '{source.name}' holds none of {', '.join(TOKENIZER_FILES)}; "
        f"set {owner}.tokenizer to a folder or hub id that does"
    )


def _has_files(source: Source, names: tuple[str, ...]) -> bool:
    """Whether one of these files lies in a folder, or in the cache of a hub id once it was loaded."""
    if source.is_local:
        return any((Path(source.location) / name).is_file() for name in names)
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    options = {**source.options, "local_files_only": True}
    return any(cached_file(source.location, name, **options, **quiet) for name in names)


def _stored_model(
    source: Source,
    role: str,
    dtype: torch.dtype,
    device: torch.device,
    spec: config.Model,
    teacher: PreTrainedModel | None,
) -> PreTrainedModel:
    check_quantisable(spec, source)
    if not adapters.is_adapter(source):
        if spec.adapter is not None and _is_at(teacher, source, dtype, spec.trust_remote_code):
            return adapters.sharing_weights(teacher)
        kind = spec.quantize if isinstance(spec, config.Teacher) else "none"
        return _weights_at(source, dtype, device, spec.trust_remote_code, kind)
    at = adapters.base_of(source)
    shares = _is_at(teacher, at, dtype, False)
    base = adapters.sharing_weights(teacher) if shares else _weights_at(at, dtype, device, False)
    # A PEFT model is none of transformers' classes, but it answers to all that we ask of one.
    return cast(PreTrainedModel, adapters.attach(base, source, trainable=role == "student"))


def _is_at(
    model: PreTrainedModel | None, source: Source, dtype: torch.dtype, trust_remote_code: bool
) -> TypeGuard[PreTrainedModel]:
    """Whether a model in memory is what would be loaded from a source."""
    if model is None or is_adapted(model) or "gguf_file" in source.options or model.dtype != dtype:
        return False
    if quantising.is_quantised(model):
        return False
    if source.is_local:
        return Path(str(model.name_or_path)).resolve() == Path(source.location).resolve()
    commit = getattr(configuration_at(source, trust_remote_code), "_commit_hash", None)
    return model.name_or_path == source.location and commit is not None and commit == model.config._commit_hash


def _weights_at(
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    kind: config.Quantisation = "none",
) -> PreTrainedModel:
    _check_folder(source)
    options: dict[str, Any] = {**source.options, "trust_remote_code": trust_remote_code}
    settings = configuration_at(source, trust_remote_code)
    auto, stored = auto_class(settings, source), quantising.stored_method(settings)
    if "gguf_file" in options:
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
        if stored is not None:
            quantising.check_library(source, stored)
        if kind != "none" or stored is not None:
            options |= quantising.loading_options(kind, dtype, device)
    try:
        model, report = auto.from_pretrained(source.location, dtype=dtype, output_loading_info=True, **options)
    except LIBRARY_ERRORS as error:
        raise source.explain(error) from error
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise source.error(
            f"lacks {len(names)} weights of a {type(model).__name__} (first: {names[0]}), "
            "which would be random; give the whole language model, its head included"
        )
    if quantising.is_quantised(model):
        quantising.settle(model, source, kind)
    return model


def check_quantisable(spec: config.Model, source: Source) -> None:
    """Say before any weights are read that a model cannot be quantised as its section asks for.

    Raises:
        InputError: it cannot.
    """
    if isinstance(spec, config.Teacher) and spec.quantize != "none":
        is_adapter = adapters.is_adapter(source)
        stored = None if is_adapter else stored_method_at(source, spec.trust_remote_code)
        quantising.check_quantisable(source, spec.quantize, is_adapter, stored)


def stored_method_at(source: Source, trust_remote_code: bool) -> str | None:
    """The library that quantised a model, or an adapter's base, before it was stored; `None` for none."""
    if adapters.is_adapter(source):
        source, trust_remote_code = adapters.base_of(source), False
    if "gguf_file" in source.options:
        return None
    return quantising.stored_method(configuration_at(source, trust_remote_code))


def configuration_at(source: Source, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a stored model."""
    try:
        return AutoConfig.from_pretrained(source.location, **source.options, trust_remote_code=trust_remote_code)
    except LIBRARY_ERRORS as error:
        raise source.explain(error) from error


def _check_folder(source: Source) -> None:
    """Say what is wrong with a local folder before the libraries stumble over it."""
    if not source.is_local or "gguf_file" in source.options:
        return
    folder = Path(source.location)
    if not (folder / "config.json").is_file():
        found = next(iter(sorted(folder.glob("*.gguf"))), None)
        advice = f"point to the file: {found}" if found else "expected config.json and *.safetensors"
        raise source.error(f"has no config.json, so it is no Hugging Face model folder; {advice}")
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not any(folder.glob("*.safetensors")):
        holds = f"only pickled weights ({pickles[0]}), which can run code when they are opened" if pickles else "none"
        raise source.error(
            f"needs its weights as *.safetensors and holds {holds}; convert weights you trust once, "
            "in a place where it does no harm: AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)"
        )


def device_of(name: str, role: str) -> torch.device:
    """The device a recipe names.

    Raises:
        InputError: this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{role}.device is '{name}'; expected auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"{role}.device is '{name}', but PyTorch sees {torch.cuda.device_count()} CUDA devices here; "
            "use device: auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return device
