"""Text on disk: one JSON line a response, under the fingerprint of who wrote it and how."""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.rollouts.rollout import Ids, Rollout
from tutelage.world import world


class TextStore:
    """Responses found by their prompts; what is added is on disk before `add` returns.

    Args:
        path: the file; made when something is added.
        fingerprint: what the text depends on (writer, decoding, seed). A file with another one is refused.

    Raises:
        InputError: the file was written with another fingerprint, or is no such file.
    """

    def __init__(self, path: Path, fingerprint: dict[str, object]) -> None:
        self.path = path
        self._fingerprint = fingerprint
        self._header = json.dumps({"fingerprint": fingerprint}) + "\n"
        self._responses: dict[Ids, Ids] = world().main_does(self._read)  # which may mend the file

    def __len__(self) -> int:
        """Number of prompts with a response."""
        return len(self._responses)

    def get(self, prompt: Ids) -> Ids | None:
        """Return the response to a prompt, `None` where there is none yet."""
        return self._responses.get(prompt)

    def add(self, rollout: Rollout) -> None:
        """Append the rollout's responses to the file."""
        world().main_does(lambda: self._append(rollout))
        self._responses |= zip(rollout.prompts, rollout.responses, strict=True)

    def _append(self, rollout: Rollout) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(self._header)
            for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
                file.write(json.dumps({"prompt": prompt, "response": response}) + "\n")

    def _read(self) -> dict[Ids, Ids]:
        """Read the file; a last line that a kill cut short is cut off the file too."""
        if not self.path.exists():
            return {}
        content = self.path.read_text(encoding="utf-8")
        if len(content) < len(self._header) and self._header.startswith(content):  # cut short in its first line
            self.path.unlink()
            return {}
        lines = content.splitlines(keepends=True)
        found = self._record(1, lines[0]).get("fingerprint")
        if not lines[-1].endswith("\n"):
            lines.pop()
            self.path.write_text("".join(lines), encoding="utf-8")
        if found != self._fingerprint:
            different = [k for k in self._fingerprint if (found or {}).get(k) != self._fingerprint[k]]
            raise InputError(
                f"{self.path} holds text that was written otherwise (different: {', '.join(different)}); "
                "move it away to have it written anew"
            )
        rows = [self._record(number, line) for number, line in enumerate(lines[1:], start=2)]
        return {tuple(row["prompt"]): tuple(row["response"]) for row in rows}

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        wanted = {"fingerprint"} if number == 1 else {"prompt", "response"}
        if not isinstance(record, dict) or not wanted <= record.keys():
            raise InputError(
                f"{self.path}:{number} is no line of stored text (expected {' and '.join(sorted(wanted))}); "
                "move the file away to have the text written anew"
            )
        return record
