"""What an optimized HLO program moves: bytes to and from device memory, kernels, collectives.

An operand that a kernel only slices counts as the slice; what lies in on-chip memory, S(1), does not count. The body
of a loop counts as often as its trip count says, once if it does not say. A conditional counts as its cheapest branch;
what the dearest would add is counted apart.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "iota",
}  # fmt: skip
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|c64|c128)\[([^\]]*)\](?:\{([^}]*)\})?")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


@dataclass
class Traffic:
    """Totals of a program."""

    moved: int = 0
    in_conditionals: int = 0
    kernels: int = 0
    collective_bytes: int = 0
    collectives: Counter = field(default_factory=Counter)
    collectives_in_conditionals: Counter = field(default_factory=Counter)

    def add(self, other, times=1):
        self.moved += times * other.moved
        self.in_conditionals += times * other.in_conditionals
        self.kernels += times * other.kernels
        self.collective_bytes += times * other.collective_bytes
        for name in ("collectives", "collectives_in_conditionals"):
            for kind, n in getattr(other, name).items():
                getattr(self, name)[kind] += times * n


@dataclass(frozen=True)
class _Op:
    name: str
    shapes: tuple[tuple[int, bool], ...]
    code: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def bytes(self):
        """In device memory."""
        return sum(size for size, on_chip in self.shapes if not on_chip)

    def calls(self, key):
        found = re.search(key + r"=%?([\w.\-]+)", self.rest)
        return found and found[1]


def _size(dtype, dims, layout):
    """Bytes as laid out, with the padding of tiles, and whether they lie on the chip."""
    dims = [int(d.strip("<=")) for d in dims.split(",") if d.strip()]
    order = [int(d) for d in layout.split(":")[0].split(",") if d.strip().isdigit()]
    physical = [dims[d] for d in reversed(order)] if len(order) == len(dims) else dims
    if (tile := re.search(r"T\(([\d,]+)\)", layout)) and physical:
        sizes = [int(v) for v in tile[1].split(",")]
        physical = [1] * (len(sizes) - len(physical)) + physical
        for i, v in enumerate(reversed(sizes), 1):
            physical[-i] = -(-physical[-i] // v) * v
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    return math.prod(physical) * bits // 8, "S(1)" in layout


def _closing(text):
    """Where the bracket closes that text opens with."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i
    return len(text) - 1


def _parse_op(line):
    match = re.match(r"(ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not match:
        return None
    rest = match[3]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ") if " " in rest else len(rest)
    shapes, rest = rest[:end], rest[end:].strip()
    code = re.match(r"([\w\-]+)\(", rest)
    if not code:
        return None
    arguments = rest[code.end() - 1 :]
    end = _closing(arguments)
    sizes = tuple(_size(m[1], m[2], m[3] or "") for m in _SHAPE.finditer(shapes))
    inner, rest = arguments[1:end], arguments[end + 1 :]
    rest = f"index={inner}{rest}" if code[1] == "parameter" else rest
    return _Op(match[2], sizes, code[1], tuple(re.findall(r"%([\w.\-]+)", inner)), rest, bool(match[1]))


def _parse(text):
    """The computations by name, and the name of the entry."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line).strip()
        if current is None:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{$", line)
            if head:
                current, computations[head[2]] = head[2], {}
                entry = current if head[1] else entry
        elif line == "}":
            current = None
        elif op := _parse_op(line):
            computations[current][op.name] = op
    return computations, entry


class _Program:
    def __init__(self, computations):
        self.computations = computations

    def read(self, computation, index, full):
        """Bytes that a fused computation reads of a parameter: the slices, if it only slices it."""
        ops = self.computations.get(computation, {})
        start = next((o for o in ops.values() if o.code == "parameter" and re.match(rf"index={index}\b", o.rest)), None)
        return full if start is None else min(full, self._used(ops, start.name, full))

    def _used(self, ops, name, full):
        used = 0
        for op in ops.values():
            for place, operand in enumerate(op.operands):
                if operand != name:
                    continue
                if op.code in ("slice", "dynamic-slice", "gather") and place == 0:
                    used += sum(size for size, _ in op.shapes)
                elif op.code == "bitcast" and not op.root:
                    used += self._used(ops, op.name, full)
                elif op.code == "fusion":
                    used += self.read(op.calls("calls"), place, full)
                elif not (op.code == "dynamic-update-slice" and place == 0):
                    return full
        return used

    def written(self, computation, full):
        """Bytes that a fused computation writes: the update, if it updates a slice in place."""
        ops = self.computations.get(computation, {})
        root = next((o for o in ops.values() if o.root), None)
        while root is not None and root.code == "bitcast":
            root = ops.get(root.operands[0])
        update = root is not None and root.code == "dynamic-update-slice" and ops.get(root.operands[1])
        return min(full, sum(size for size, _ in update.shapes)) if update else full

    def traffic(self, computation):
        """Totals of a computation and all that it calls."""
        found = Traffic()
        for op in self.computations[computation].values():
            if op.code in _FREE or op.code.endswith(("-done", "-update")):
                continue
            if op.code == "while":
                trips = re.search(r'known_trip_count"?:\{"n":"(\d+)"', op.rest)
                found.add(self.traffic(op.calls("body")), int(trips[1]) if trips else 1)
            elif op.code == "call":
                found.add(self.traffic(op.calls("to_apply")))
            elif op.code == "conditional":
                self._branch(found, op)
            else:
                self._kernel(found, op, self.computations[computation])
        return found

    def _branch(self, found, op):
        names = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
        names = (
            re.findall(r"%([\w.\-]+)", names[1]) if names else map(op.calls, ("true_computation", "false_computation"))
        )
        cheap, *_, dear = sorted(map(self.traffic, names), key=lambda t: t.moved)
        found.add(cheap)
        found.in_conditionals += dear.moved - cheap.moved + dear.in_conditionals - cheap.in_conditionals
        found.collectives_in_conditionals += dear.collectives - cheap.collectives

    def _kernel(self, found, op, ops):
        inner = op.calls("calls") if op.code in ("fusion", "async-start") else None
        codes = [op.code, *(o.code for o in self.computations.get(inner, {}).values())]
        kind = next((c for c in COLLECTIVES for code in codes if code in (c, f"{c}-start")), None)
        operands = [ops[name] for name in op.operands if name in ops]
        read = sum(self.read(inner, i, o.bytes) if inner and o.bytes else o.bytes for i, o in enumerate(operands))
        shapes = op.shapes
        if op.code.endswith("-start") and op.code != "async-start":
            # (result, alias of the source, context), or (sources, results, contexts)
            shapes = (
                shapes[:1] if op.code == "copy-start" else shapes[len(shapes) // 2 :] if len(shapes) > 1 else shapes
            )
        written = sum(size for size, on_chip in shapes if not on_chip)
        if op.code in ("slice", "dynamic-slice", "slice-start"):
            read = min(read, sum(size for size, _ in shapes))
        written = self.written(inner, written) if inner else written
        found.moved += read + written
        found.kernels += op.code != "copy-start" or read + written > 65536
        if kind:
            found.collectives[kind] += 1
            found.collective_bytes += sum(size for size, _ in shapes)


def traffic(text):
    """What the program of this text moves."""
    computations, entry = _parse(text)
    return _Program(computations).traffic(entry)


def unit(text):
    """Bytes of the largest argument of a program, as laid out."""
    computations, entry = _parse(text)
    return max(op.bytes for op in computations[entry].values() if op.code == "parameter")
