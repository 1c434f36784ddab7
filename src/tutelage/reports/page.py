"""One self-contained HTML file: what a report says, made into a page that opens offline and asks for nothing.

Everything that comes from models or data is escaped by the template, and where an escape were missing, the page's own
content security policy lets no other script run than the two that it knows by their hashes, and no request leave.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from tutelage.reports.curves import Plot
from tutelage.reports.token_view import Choice, Token
from tutelage.sealing import write_whole

LEVELS = {
    "reverse_kl": (0.01, 0.05, 0.2, 0.7, 2.0),
    "forward_kl": (0.01, 0.05, 0.2, 0.7, 2.0),
    "total_variation": (0.02, 0.1, 0.2, 0.4, 0.7),
}
"""From which divergence on a token has the next colour: nats, and a share for total variation."""
MEASURES = (
    ("reverse_kl", "reverse KL, nats"),
    ("forward_kl", "forward KL, nats"),
    ("total_variation", "total variation"),
)
LIGHT_SCALE = ("#fcfaf7", "#f9e7d5", "#f8d3b4", "#f7be95", "#f7a778", "#f68f5f")
"""Even steps of lightness and chroma in OKLCH, each with a contrast of at least 7 : 1 to the text on it."""
DARK_SCALE = ("#1d1b1a", "#322518", "#492e15", "#623513", "#7c3a13", "#983e1b")
"""The same for a dark page, at least 6 : 1."""
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_HTML_IN_JSON = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    detail: str = ""
    """Beside it, smaller: an interval."""
    mark: str = ""
    """`best`, `second`, `good` or `bad`."""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    facts: bool = False
    """Whether it lists facts rather than figures: texts that begin at the left and may take several lines."""


@dataclass(frozen=True)
class Answer:
    """What somebody answered."""

    title: str
    text: str
    tokens: Sequence[Token] = ()
    """The same token by token, where it was compared with the teacher."""


@dataclass(frozen=True)
class Shown:
    """A prompt with all answers to it."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    intro: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    samples: Sequence[Shown] = ()
    texts: Sequence[tuple[str, str]] = ()
    """Titles and texts that are folded away."""


@dataclass(frozen=True)
class Page:
    """Everything a page says."""

    title: str
    kicker: str
    """What kind of page it is, and of what."""
    sentence: str
    """What happened."""
    tables: Sequence[Table]
    """The headline."""
    sections: Sequence[Section]


def write_page(path: Path, page: Page) -> None:
    """Write a page into a file, whole or not at all."""
    text = rendered(page)
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def rendered(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tutelage.reports"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    css = environment.get_template("page.css").render(light_scale=LIGHT_SCALE, dark_scale=DARK_SCALE)
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    views: list[dict[str, Any]] = []
    plots: list[dict[str, Any]] = []
    sections = [_numbered(section, views, plots) for section in page.sections]
    bundle, hash_of_bundle = _plotly() if plots else ("", None)
    data = {"plots": plots, "views": views, "levels": LEVELS}
    return environment.get_template("page.html").render(
        page={"title": page.title, "kicker": page.kicker, "sentence": page.sentence, "tables": page.tables,
              "sections": sections},
        version=version("tutelage"),
        policy=_policy([hash_of(script), *([hash_of_bundle] if hash_of_bundle else [])]),
        css=Markup(css),
        js=Markup(script),
        data=Markup(json_in_html(data)),
        bundle=Markup(bundle),
        views=bool(views),
        measures=MEASURES,
    )  # fmt: skip


def visible(text: str) -> str:
    """A text with signs for characters that HTML does not take or does not show.

    >>> visible("a\\0b\\x1b[0m\\n"), visible("\\ud83d!")
    ('a␀b␛[0m\\n', '�!')
    """
    return _LONE_SURROGATE.sub("\ufffd", text.replace("\r\n", "\n").translate(_CONTROLS))


def json_in_html(value: Any) -> str:
    """JSON that stands in a script element: nothing in it ends the element or begins another.

    >>> json_in_html("</script>\\u2028")
    '"\\\\u003c/script\\\\u003e\\\\u2028"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _LONE_SURROGATE.sub("\ufffd", text).translate(_HTML_IN_JSON)


def hash_of(script: str) -> str:
    """A script's hash as a content security policy names it."""
    return f"'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'"


def level(value: float, measure: str = "reverse_kl") -> int:
    """Which of the six colours a divergence has.

    >>> level(0.0), level(0.05), level(float("inf"))
    (0, 2, 5)
    """
    return sum(value >= bound for bound in LEVELS[measure])


def _policy(scripts: Sequence[str]) -> str:
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's script, compressed and as text, and its hash. It is the whole library: the package has no smaller."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), 6, mtime=0)).decode(), hash_of(script)


def _numbered(section: Section, views: list[dict[str, Any]], plots: list[dict[str, Any]]) -> dict[str, Any]:
    """A section for the template; what scripts draw is appended to the lists, and named by its place in them."""
    drawn = []
    for plot in section.plots:
        drawn.append({"place": len(plots), "title": plot.title, "note": plot.note, "x_title": plot.x_title})
        plots.append({"traces": plot.traces, "layout": plot.layout, "x_title": plot.x_title, "y_title": plot.y_title})
    samples = []
    for sample in section.samples:
        answers = [_answer(answer, views) for answer in sample.answers]
        seen = " ".join(str(answer["view"]) for answer in answers if answer["view"] is not None)
        samples.append({"prompt": sample.prompt, "answers": answers, "views": seen})
    texts = [{"title": title, "text": text} for title, text in section.texts]
    return {"title": section.title, "intro": section.intro, "tables": section.tables, "plots": drawn,
            "samples": samples, "texts": texts}  # fmt: skip


def _answer(answer: Answer, views: list[dict[str, Any]]) -> dict[str, Any]:
    if not answer.tokens:
        return {"title": answer.title, "text": answer.text, "view": None}
    views.append(
        {
            "name": [visible(token.name) for token in answer.tokens],
            **{
                name: [_finite(getattr(token, name)) for token in answer.tokens]
                for name in (*LEVELS, "student_logp", "teacher_logp")
            },
            "student_top": [list(_choices(token.student_top)) for token in answer.tokens],
            "teacher_top": [list(_choices(token.teacher_top)) for token in answer.tokens],
        }
    )
    tokens = [{"text": token.text, "ghost": _ghost(token), "level": level(token.reverse_kl)} for token in answer.tokens]
    return {"title": answer.title, "view": len(views) - 1, "tokens": tokens}


def _choices(top: Sequence[Choice]) -> Iterator[list[Any]]:
    for choice in top:
        yield [visible(choice.text), round(choice.probability, 5)]


def _ghost(token: Token) -> str:
    """What stands for a token without text: the name of a special one, a dot for a part of a character."""
    return token.name.strip() if token.name.strip()[:1] in ("<", "[") else "·"


def _finite(value: float) -> float | None:
    return float(f"{value:.4g}") if isfinite(value) else None
