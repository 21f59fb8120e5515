"""Formulas of docstrings, which are in Unicode, as TeX, and TeX as MathML, which browsers set without a script."""

import re

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "μ": "mu", "ρ": "rho", "σ": "sigma",
    "τ": "tau",
}  # fmt: skip
_SIGNS = {
    "·": "cdot", "⟨": "langle", "⟩": "rangle", "←": "leftarrow", "→": "rightarrow", "‖": "Vert", "∞": "infty",
    "∂": "partial", "…": "dots", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "×": "times", "√": "sqrt",
    "ℓ": "ell", "Σ": "textstyle\\sum",
}  # fmt: skip
_SYMBOLS = {
    **{sign: rf"\{name} " for sign, name in (_GREEK | _SIGNS).items()},
    **{sign: rf"\{sign}" for sign in "%#&{}_ "},
    "−": "-",
    "′": "'",
    "ŵ": r"\hat{w}",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵖᵀ", "0123456789-pT", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉ₖᵢ", "0123456789ki", strict=True))


def _index(name):
    return name if len(name) == 1 else rf"\text{{{name}}}"


# What comes first in a formula, and what becomes of it; words stay words.
_RULES = [
    (r"``?([^`]+)``?", lambda m: rf"\texttt{{{m[1]}}}"),
    (r"_([A-Za-z0-9]+)", lambda m: f"_{{{_index(m[1])}}}"),
    (r"\^\(([^()]*)\)", lambda m: f"^{{{tex(m[1])}}}"),
    (
        r"(jn\.)?[A-Za-z]{2,}\w*(\.\w+)*(?:(?: |, )[A-Za-z]{2,}\b(?![_(]))*",
        lambda m: rf"\text{{{m[0]}}}",
    ),
    ("(\\w)\u0302", lambda m: rf"\hat{{{_SYMBOLS.get(m[1], m[1])}}}"),
    (f"[{''.join(_SUPERSCRIPTS)}]+", lambda m: f"^{{{''.join(map(_SUPERSCRIPTS.get, m[0]))}}}"),
    (f"[{''.join(_SUBSCRIPTS)}]+", lambda m: f"_{{{''.join(map(_SUBSCRIPTS.get, m[0]))}}}"),
    (r" {2,}", lambda m: r"\qquad "),
    (r".", lambda m: _SYMBOLS.get(m[0], m[0])),
]


def tex(formula):
    """A formula in TeX."""
    out, i = "", 0
    while i < len(formula):
        if formula.startswith("√(", i):
            end = _closing(formula, i + 1)
            out += rf"\sqrt{{{tex(formula[i + 2 : end])}}}"
            i = end + 1
            continue
        found, replace = next((m, f) for pattern, f in _RULES if (m := re.compile(pattern).match(formula, i)))
        out += replace(found)
        i = found.end()
    return out


def _closing(text, start):
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def is_formula(paragraph):
    """Whether a paragraph of a docstring, a list of lines, is one: it has a relation, and is no sentence."""
    first, last = paragraph[0], paragraph[-1]
    if first.startswith((" ", ">>>", "Args", "Returns", "Raises", "Paper", "`")) or last.endswith((".", ":", ".)")):
        return False
    return bool(re.search(r"[=←→]", first)) and not re.match(r"[A-Z][a-z]+ [a-z]+ ", first)


def _prose(line):
    """A line in which `code` is code, and maths has no meaning for reStructuredText."""
    parts = re.split("(``.*?``)", re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line))
    return "".join(part if i % 2 else re.sub(r"([|*])", r"\\\1", part) for i, part in enumerate(parts))


def set_formulas(app, what, name, obj, options, lines):
    """A docstring as Sphinx is to read it, before its sections are."""
    out = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        block = paragraph.split("\n")
        if is_formula(block):
            # Each part on a line of its own: one line would not fit a phone.
            rows = re.split(r"\s{4,}", "\n".join(block).replace("\n", " "))
            out += [line for row in rows for line in (".. math::", "   :nowrap:", "", f"   {tex(row)}", "")]
        else:
            out += block if block[0].startswith(">>>") else map(_prose, block)
        out.append("")
    lines[:] = out


def _visit_math(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(_mathml(node.astext(), "inline"))
    raise SkipNode


def _visit_displaymath(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise SkipNode


def _mathml(formula, display):
    from latex2mathml.converter import convert

    return convert(formula, display=display)


def add_renderer(app):
    """MathML as a way to set formulas: `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_displaymath, None))
