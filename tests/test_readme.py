"""The README's examples run, and its claims name tests that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_examples_run():
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, scope)
    assert scope["ys"].shape == (2, 8, 32, 32, 64)


def test_claims_name_tests():
    tests = "".join(p.name + p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    rows = [line for line in README.splitlines() if line.startswith("|") and "`test_" in line]
    assert len(rows) >= 9
    for name in re.findall(r"`(test_\w+(?:\.py)?)`", "".join(rows)):
        assert name in tests
