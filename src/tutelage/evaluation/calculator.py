"""An external calculator for arithmetic that a model writes out: its equations are recomputed."""

import ast
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from operator import add, mul, sub, truediv

_GAP = r"[ \t]*"
_NUMBER = r"(?>(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?|\.\d{1,30})(?!\d)"
_UNSIGNED = rf"\$?{_NUMBER}(?:{_GAP}\))*"
_OPERAND = rf"(?:(?:\({_GAP})+-?)?{_UNSIGNED}"
_OPERATOR = r"[-+*/×÷−–xX]"
_EQUATION = re.compile(
    rf"(?<![\w.,])(?<!\d:)(?P<left>(?:-{_UNSIGNED}|{_OPERAND})(?:{_GAP}{_OPERATOR}{_GAP}{_OPERAND})+){_GAP}={_GAP}\$?"
    rf"(?P<right>-?{_NUMBER})(?!\w|:\d|{_GAP}(?:[%^\d]|cents?\b|and{_GAP}[($]*\d+/|{_OPERATOR}{_GAP}(?:[-$(.]*\d|[a-zA-Z]\b)))"
)
_GOES_ON = re.compile(rf"(?:\S{_GAP}(?:{_OPERATOR}|\^)|[%\d]|\d{_GAP}and|\([^()]*\)|(?<![^\W_])[^\W\d_]){_GAP}[$(]*$")
"""What before an equation belongs to its left side: an operator behind something, a number, a variable, a per cent
sign, something in parentheses."""
_BY_A_FRACTION = re.compile(r"/[ \t]+\$?\d+/\d")
_SIGNS = str.maketrans({"×": "*", "x": "*", "X": "*", "÷": "/", "−": "-", "–": "-", "$": None, ",": None})
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
}


def recalculated(text: str) -> tuple[str, int]:
    """Mend the equations of a text.

    From left to right, in each equation `left = right`, where left is arithmetic of numbers with + − * / (also × ÷ x),
    parentheses, dollar signs and thousands commas, and right is one number: where right is wrong, the value of left is
    put in its place, and from there on in the place of every further number that is written just as the wrong one was,
    so that later equations and the final answer go on with it. A right side with decimals that is left correctly
    rounded stays. Left as they are: right sides that are expressions or percentages, left sides that belong to more
    (units between numbers, variables, powers, percentages, mixed numbers), divisions by a fraction without parentheses
    (`6 / 3/4`), amounts in cents, and what cannot be computed (a division by zero).

    Args:
        text: a response; equations may stand in `<<3+4=7>>`.

    Returns:
        The text, and how many equations were mended.

    Reference: Wei et al. 2022 (arXiv 2201.11903), who recompute the equations of a finished response and carry results
    on by matching strings. Cobbe et al. 2021 (arXiv 2110.14168) put results in while the model writes; here it has
    finished, so what it would have written otherwise is not known.

    >>> recalculated("3 + 4 * 2 = 12, and 12 - 1 = 11. The answer is 11")
    ('3 + 4 * 2 = 11, and 11 - 1 = 10. The answer is 10', 2)
    """
    mended, start = 0, 0
    while found := _EQUATION.search(text, start):
        start = found.end()
        value = _value_of_left(found)
        if value is None or _agrees(found["right"], value):
            continue
        wrong, right = found["right"], _written(value, commas="," in found["right"])
        repeats = re.compile(rf"(?<![\d)])(?<!\d[.,]){re.escape(wrong)}(?!\d|[.,]\d)")
        text = text[: found.start("right")] + right + repeats.sub(right, text[start:])
        start = found.start("right") + len(right)
        mended += 1
    return text, mended


def value_of(expression: str) -> Fraction | None:
    """Compute arithmetic of numbers with + - * / and parentheses, exactly; `None` for anything else.

    >>> value_of("(1 + 2) * 0.5"), value_of("2 ** 9"), value_of("1 / 0"), value_of("len")
    (Fraction(3, 2), None, None, None)
    """
    try:
        return _value(ast.parse(expression.translate(_SIGNS).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=bool() | complex()):
            raise ValueError(node)
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_value(left), _value(right))
    raise ValueError(node)


def _value_of_left(equation: re.Match[str]) -> Fraction | None:
    """The value of an equation's left side, where that is certain; parentheses that close behind it are left out."""
    left, line = equation["left"], equation.string[: equation.start()].rpartition("\n")[2]
    if _GOES_ON.search(line) or _BY_A_FRACTION.search(left):
        return None
    while left.startswith("(") and left.count("(") > left.count(")"):
        left = left[1:]
    return value_of(left)


def _agrees(right: str, value: Fraction) -> bool:
    given = Fraction(right.replace(",", ""))
    decimals = len(right.partition(".")[2])
    return given == value or (decimals > 0 and abs(given - value) * 10**decimals <= Fraction(1, 2))


def _written(value: Fraction, *, commas: bool) -> str:
    """A whole number in full, any other to ten significant digits."""
    exact = Decimal(value.numerator) if value.denominator == 1 else None
    number = exact if exact is not None else Context(prec=10).divide(value.numerator, value.denominator).normalize()
    return format(number, ",f" if commas else "f")
