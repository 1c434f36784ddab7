"""Questions to a judge: asked once each, their replies kept on disk and counted."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage.rewards.endpoint import Messages, Reply


@dataclass(frozen=True)
class Asked:
    """The replies to some questions, and what they took."""

    replies: Sequence[Reply]
    """In the order of the questions."""
    calls: int
    """Questions that were asked now; the replies to the others were on disk or are another's in the same words."""
    prompt_tokens: int
    """Of those calls."""
    completion_tokens: int

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """What the calls cost, for prices per million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


def asked(
    questions: Sequence[Messages],
    ask: Callable[[Messages], Reply],
    *,
    model: str,
    file: Path,
    parallel: int = 8,
    on_progress: Callable[[int], None] = lambda more: None,
) -> Asked:
    """Have a judge reply to questions, each of which is asked once for good.

    Args:
        questions: what is asked.
        ask: who is asked.
        model: the judge's name; with the question it is what a reply is found by.
        file: one JSON line for each reply, written as they come.
        parallel: requests at the same time.
        on_progress: told how many more questions have a reply.
    """
    keys = [question_key(model, question) for question in questions]
    known = _stored(file)
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    on_progress(len(set(keys)) - len(missing))
    calls: dict[str, Reply] = {}
    for key, reply in _replies(missing, ask, parallel):
        calls[key] = reply
        _store(file, {"key": key, "model": model, "messages": list(missing[key]), **asdict(reply)})
        on_progress(1)
    known |= calls
    return Asked(
        [known[key] for key in keys],
        len(calls),
        sum(reply.prompt_tokens for reply in calls.values()),
        sum(reply.completion_tokens for reply in calls.values()),
    )


def question_key(model: str, messages: Messages) -> str:
    """A short name for a question to a judge: 32 hexadecimal digits."""
    content = json.dumps([model, [dict(message) for message in messages]], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _replies(
    questions: Mapping[str, Messages], ask: Callable[[Messages], Reply], parallel: int
) -> Iterator[tuple[str, Reply]]:
    with ThreadPoolExecutor(parallel) as pool:
        waiting = {pool.submit(ask, question): key for key, question in questions.items()}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _store(file: Path, line: Mapping[str, object]) -> None:
    """Add a line; what a kill may have cut short before it is ended first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line, ensure_ascii=False) + "\n"
    with file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, 2)
            text = text if stream.read() == b"\n" else "\n" + text
        stream.write(text.encode())


def _stored(file: Path) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    if not file.exists():
        return found
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
            found[line["key"]] = Reply(line["text"], line["prompt_tokens"], line["completion_tokens"])
        except (ValueError, KeyError, TypeError):  # empty, or cut short by a kill: it is asked again
            continue
    return found
