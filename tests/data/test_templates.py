"""Rows to ids: what is trained on, token by token."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tutelage.data import Example, Row, encode
from tutelage.errors import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
LONG = {"max_prompt_tokens": 999, "max_tokens": 999}

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MARKED = """{% for message in messages %}<|im_start|>{{ message.role }}{{
'\n' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content
}}STOP{% endgeneration %}REST{% else %}{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NEWLINE = "{{ '\n' }}"  # written so, for jinja drops a newline behind a block
STOP_INSIDE_MARKS = MARKED.replace("STOP", "<|im_end|>").replace("REST", NEWLINE)
STOP_BEHIND_MARKS = MARKED.replace("STOP", "").replace("REST", "<|im_end|>\n")
NEWLINE_INSIDE_MARKS = MARKED.replace("STOP", "<|im_end|>\n").replace("REST", "")
LLAMA2 = """{% for message in messages %}{%
if message.role == 'user' %}<s>[INST] {{ message.content }} [/INST]{%
elif message.role == 'assistant' %} {{ message.content }} </s>{% else %}{{
raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
NO_STOP = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
FORGETS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}{% else %}{{
message.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

USER, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2."}
MORE, LAST = {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}
TALK = Row("t.jsonl:1", messages=(USER, ANSWER, MORE, LAST))
PAIR = Row("t.jsonl:1", "1 + 1 =", " 2")

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def letters(template: str | None = None, around: str = "$A", **special: str) -> Any:
    """One id a character, `around` as what the tokenizer adds by itself."""
    alphabet = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate([*SPECIAL, *alphabet])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    options = {"bos_token": "<s>", "eos_token": "<|im_end|>"} | special
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    wrapped.chat_template = template
    return wrapped


def sentence_pieces() -> Any:
    """A tokenizer that puts a space before every text, as Llama-2's does."""
    pieces = ["<s>", "</s>", "\u2581", "\n", "[", "]", "/", *"INSTabcx+=12?."]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(pieces)}, unk_token="x"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = LLAMA2
    return wrapped


def real(name: str) -> Any:
    if not (REAL / name).is_dir():
        pytest.skip(f"no tokenizer at {REAL / name}")
    return AutoTokenizer.from_pretrained(REAL / name)


def one(tokenizer: Any, row: Row, **options: Any) -> Example:
    (example,) = encode([row], tokenizer, **(LONG | options))
    assert len(example.mask) == len(example.response)
    return example


def trained(tokenizer: Any, example: Example) -> str:
    """The text in the loss, with a bar wherever tokens are left out."""
    text, inside = "", True
    for token, mask in zip(example.response, example.mask, strict=True):
        text += ("" if inside else "|") * mask + tokenizer.decode([token]) * mask
        inside = mask
    return text


def read(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return "".join(tokenizer.decode([token]) for token in ids)


def test_plain_pair() -> None:
    tokenizer = letters()
    example = one(tokenizer, PAIR)
    assert read(tokenizer, example.prompt) == example.prompt_text == "1 + 1 ="
    assert read(tokenizer, example.response) == " 2<|im_end|>"
    assert all(example.mask)
    assert example.reference == " 2"


@pytest.mark.parametrize("completion", [" 2", " 2<|im_end|>", " 2<|im_end|><|im_end|>", " 2<|im_end|>\n"])
@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>", None])
def test_the_end_is_trained_exactly_once(completion: str, pad: str | None) -> None:
    tokenizer = letters(**({"pad_token": pad} if pad else {}))
    example = one(tokenizer, Row("t:1", "1 + 1 =", completion))
    assert read(tokenizer, example.response) == " 2<|im_end|>"
    assert all(example.mask)
    assert example.reference == " 2"


def test_any_stop_token_ends_a_completion() -> None:
    tokenizer = letters()
    stops = frozenset({SPECIAL.index("<|endoftext|>")})
    example = one(tokenizer, Row("t:1", "a", "b<|endoftext|>"), stop_ids=stops)
    assert read(tokenizer, example.response) == "b<|endoftext|>"
    assert read(tokenizer, one(tokenizer, PAIR, stop_ids=stops).response) == " 2<|im_end|>"


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_text_behind_a_stop_token_drops_the_row(template: str) -> None:
    rows = [Row("t:1", "a", "b<|im_end|>c"), PAIR]
    examples = encode(rows, letters(CHATML), template=template, **LONG)
    assert examples.dropped == {"stop token inside the response": 1}
    assert [example.where for example in examples] == [PAIR.where]


def test_a_stop_that_is_no_special_token() -> None:
    tokenizer = letters()
    newline = tokenizer.convert_tokens_to_ids("\n")
    examples = encode([PAIR, Row("t:2", "a", "b\nc")], tokenizer, stop_ids=frozenset({newline}), **LONG)
    assert (len(examples), examples.total, sum(examples.dropped.values())) == (1, 2, 1)


@pytest.mark.parametrize(
    ("around", "encoder_decoder", "expected"),
    [
        ("<s> $A </s>", False, "<s>ab"),
        ("<s> $A </s>", True, "<s>ab</s>"),
        ("$A </s>", True, "ab</s>"),
        ("$A", False, "ab"),
    ],
)
@pytest.mark.parametrize("prompt", ["ab", "<s>ab"])
def test_what_the_tokenizer_adds_to_prompts(around: str, encoder_decoder: bool, expected: str, prompt: str) -> None:
    tokenizer = letters(around=around, eos_token="</s>")
    rows = [Row("t:1", "first", "c"), Row("t:2", prompt, "c")]
    example = encode(rows, tokenizer, encoder_decoder=encoder_decoder, **LONG)[1]
    wanted = expected if prompt == "ab" or expected.startswith("<s>") else "<s>" + expected
    assert read(tokenizer, example.prompt) == wanted
    assert read(tokenizer, example.response) == "c</s>"


def test_chat_never_doubles_the_bos() -> None:
    tokenizer = letters(LLAMA2, around="<s> $A", eos_token="</s>")
    example = one(tokenizer, TALK)
    assert read(tokenizer, example.prompt) == "<s>[INST] 1 + 1? [/INST]"
    assert read(tokenizer, example.response) == " It is 2. </s><s>[INST] Sure? [/INST] Yes. </s>"
    assert trained(tokenizer, example) == " It is 2. </s>| Yes. </s>"


def test_wrapping_text() -> None:
    tokenizer = letters(around="<s> $A")
    example = one(tokenizer, PAIR, template="### Q:\n{prompt}\n### A:")
    assert read(tokenizer, example.prompt) == "<s>### Q:\n1 + 1 =\n### A:"
    assert read(tokenizer, example.response) == " 2<|im_end|>"


def test_multi_turn_mask() -> None:
    tokenizer = letters(CHATML)
    example = one(tokenizer, TALK)
    whole = tokenizer.apply_chat_template(list(TALK.messages or ()), tokenize=False)
    assert read(tokenizer, example.prompt) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokenizer, example.prompt + example.response) + "\n" == whole
    assert trained(tokenizer, example) == "It is 2.<|im_end|>|Yes.<|im_end|>"
    assert example.response[-1] == tokenizer.eos_token_id
    assert example.reference == "It is 2."


@pytest.mark.parametrize("template", [STOP_INSIDE_MARKS, STOP_BEHIND_MARKS, NEWLINE_INSIDE_MARKS])
@pytest.mark.parametrize("turns", [(USER, ANSWER), (USER, ANSWER, MORE, LAST), (USER, LAST, ANSWER)])
def test_marks_and_prefixes_give_the_same(template: str, turns: tuple) -> None:
    row = Row("t:1", messages=turns)
    marked, plain = one(letters(template), row), one(letters(CHATML), row)
    assert marked == plain
    assert any(plain.mask)


def test_marks_around_the_header_leave_the_prompt_out() -> None:
    header = "<|im_start|>{{ message.role }}{{ '\\n' }}"
    template = CHATML.replace("<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n", "BODY", 1)
    body = header + "{{ message.content }}<|im_end|>{{ '\\n' }}"
    marked = f"{{% generation %}}{body}{{% endgeneration %}}"
    choice = f"{{% if message.role == 'assistant' %}}{marked}{{% else %}}{body}{{% endif %}}"
    tokenizer = letters(template.replace("BODY", choice))
    row = Row("t:1", messages=(USER, ANSWER))
    assert one(tokenizer, row) == one(letters(CHATML), row)


def test_a_generation_prompt_that_the_turns_do_not_have() -> None:
    thinks = STOP_INSIDE_MARKS.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(InputError, match="writes a turn differently from its generation prompt"):
        encode([TALK], letters(thinks), **LONG)


def test_marks_that_mark_nothing() -> None:
    template = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(InputError, match=r"t.jsonl:1 the chat template marks no assistant turn"):
        encode([TALK], letters(template), **LONG)


def test_chat_of_pairs_and_prompts() -> None:
    tokenizer = letters(CHATML)
    turns = ({"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": " 2"})
    as_turns = one(tokenizer, Row("t.jsonl:1", messages=turns))
    assert one(tokenizer, PAIR, template="chat") == as_turns
    for row in (Row("t.jsonl:1", "1 + 1 ="), Row("t.jsonl:1", messages=turns[:1])):
        prompt = one(tokenizer, row, template="chat")
        assert (prompt.prompt, prompt.response, prompt.mask) == (as_turns.prompt, (), ())
        assert prompt.reference == ""


def test_template_without_stop_tokens_gets_one() -> None:
    tokenizer = letters(NO_STOP)
    example = one(tokenizer, TALK)
    assert trained(tokenizer, example) == "It is 2.\n|Yes.\n<|im_end|>"


def test_templates_with_two_stop_tokens_train_the_first() -> None:
    tokenizer = letters(CHATML.replace("<|im_end|>\n", "<|im_end|><|endoftext|>\n"))
    stops = frozenset({SPECIAL.index("<|endoftext|>")})
    assert trained(tokenizer, one(tokenizer, TALK, stop_ids=stops)) == "It is 2.<|im_end|>|Yes.<|im_end|>"


def test_template_that_rewrites_earlier_turns() -> None:
    tokenizer = letters(FORGETS)
    thought = {"role": "assistant", "content": "<think>1, 2</think>It is 2."}
    assert one(tokenizer, Row("t:1", messages=(USER, thought))).reference == thought["content"]
    with pytest.raises(InputError, match=r"t:2 the chat template rewrites earlier turns"):
        encode([TALK, Row("t:2", messages=(USER, thought, MORE, LAST))], tokenizer, **LONG)


def test_template_that_refuses_roles() -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [TALK] + [Row(f"t.jsonl:{n}", messages=(system, USER, ANSWER)) for n in (2, 3)]
    with pytest.raises(InputError) as caught:
        encode(rows, letters(LLAMA2), **LONG)
    told = str(caught.value).splitlines()
    assert told[0].startswith("t.jsonl:2 the chat template refuses the turns [system, user, assistant]: Only user")
    assert "data.roles" in told[0]
    assert told[2] == "2 problems: refused by the template 2"


def test_no_chat_template() -> None:
    with pytest.raises(InputError, match="has no chat template; use a tokenizer that has one"):
        encode([TALK], letters(), **LONG)


def test_templates_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"holds a conversation, but data.template is plain"):
        encode([TALK], letters(CHATML), template="plain", **LONG)
    with pytest.raises(InputError, match=r"'alpaca': expected auto, chat, plain, or a text with \{prompt\}"):
        encode([PAIR], letters(), template="alpaca", **LONG)
    with pytest.raises(InputError, match=r"has no end token"):
        encode([PAIR], letters(eos_token=None), **LONG)


def test_lengths_are_counted_and_never_cut() -> None:
    rows = [Row(f"t:{n}", "p" * n, "c" * m) for n, m in [(4, 5), (5, 1), (4, 6), (1, 8), (9, 9)]]
    examples = encode(rows, letters(), max_prompt_tokens=4, max_tokens=10)
    assert [(e.item, e.where, len(e.prompt), len(e.response)) for e in examples] == [
        (0, "t:4", 4, 6),
        (1, "t:1", 1, 9),
    ]
    assert examples.dropped == {
        "prompt longer than 4 tokens": 2,
        "prompt and response longer than 10 tokens": 1,
    }
    assert (examples.total, len(examples)) == (5, 2)


def test_nothing_kept() -> None:
    with pytest.raises(InputError, match=r"no trainable rows: 0 of 8 kept \(8 prompt longer than 4 tokens\); raise"):
        encode([PAIR] * 8, letters(), max_prompt_tokens=4, max_tokens=9)
    with pytest.raises(InputError, match=r"no trainable rows: 0 of 0 kept"):
        encode([], letters(), **LONG)


def test_batching_changes_nothing() -> None:
    tokenizer = letters(CHATML)
    rows = [TALK, Row("t:2", messages=(USER, LAST)), Row("t:3", messages=(MORE, ANSWER, USER, LAST))]
    together = encode(rows, tokenizer, **LONG)
    for row, example in zip(rows, together, strict=True):
        assert one(tokenizer, row) == Example(0, *list(vars(example).values())[1:])


def test_space_adding_tokenizers_read_on_without_a_space() -> None:
    tokenizer = sentence_pieces()
    example = one(tokenizer, Row("t:1", "ab", "c"))
    assert tokenizer.convert_ids_to_tokens(example.prompt) == ["\u2581", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(example.response) == ["c", "</s>"]
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    row = Row("t:1", messages=turns * 2)
    example = one(tokenizer, row)
    whole = tokenizer(tokenizer.apply_chat_template(list(row.messages or ()), tokenize=False))["input_ids"]
    assert [*example.prompt, *example.response] == whole
    in_loss = [i for i, mask in zip(example.response, example.mask, strict=True) if mask]
    assert tokenizer.convert_ids_to_tokens(in_loss) == [*"\u2581b\u2581", "</s>"] * 2


def test_space_adding_tokenizers_add_it_behind_special_tokens() -> None:
    tokenizer = sentence_pieces()
    tokenizer.chat_template = LLAMA2.replace("<s>[INST]", "[INST]")
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    example = one(tokenizer, Row("t:1", messages=turns * 2))
    whole = tokenizer(tokenizer.apply_chat_template([*turns, *turns], tokenize=False))["input_ids"]
    assert [*example.prompt, *example.response] == whole


def test_a_stop_token_without_a_text_of_its_own() -> None:
    tokenizer = sentence_pieces()
    space = frozenset({tokenizer.convert_tokens_to_ids("\u2581")})
    examples = encode([Row("t:1", "a", "b c"), Row("t:2", "a", "bc")], tokenizer, stop_ids=space, **LONG)
    assert examples.dropped == {"stop token inside the response": 1}


def test_gpt2() -> None:
    tokenizer = real("gpt2/gpt2-base")
    tokenizer.pad_token = tokenizer.eos_token
    example = one(tokenizer, PAIR)
    assert list(example.prompt) == tokenizer("1 + 1 =")["input_ids"]
    assert list(example.response) == [*tokenizer(" 2")["input_ids"], tokenizer.eos_token_id]
    assert all(example.mask)


@pytest.mark.parametrize("template", [LLAMA2, CHATML])
def test_mistral(template: str) -> None:
    tokenizer = real("mistral/mistral-7b-v0.1")
    plain = one(tokenizer, PAIR)
    assert [*plain.prompt, *plain.response] == [*tokenizer("1 + 1 = 2")["input_ids"], 2]
    tokenizer.chat_template = template
    example = one(tokenizer, TALK)
    whole = tokenizer.apply_chat_template(list(TALK.messages or ()), tokenize=False)
    assert example.prompt.count(1) <= 1
    assert example.response[-1] == 2
    if template is LLAMA2:
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert [*example.prompt, *example.response] == ids
        assert trained(tokenizer, example).count("</s>") == 2
    else:
        assert tokenizer.decode([*example.prompt, *example.response]) == whole + "</s>"
