"""The house: which room may know which, how large its pieces are, and where the tests of each file are."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = {p.relative_to(ROOT / "jaxnorm"): ast.parse(p.read_text()) for p in (ROOT / "jaxnorm").rglob("*.py")}
FILES = {path: tree for path, tree in FILES.items() if path.parts[0] not in ("demo", "__main__.py", "__init__.py")}
# From the ground: a room imports those before it.
ROOMS = [
    "_core",
    "_types",
    "_annotations",
    "_checks",
    "_state",
    "_functional",
    "_specs",
    "_trained",
    "_flax",
    "linen",
    "nnx",
    "torch",
    "haiku",
    "equinox",
    "inspection",
]
# Where the tests of a file are, if not in the folder of its room under its name.
ELSEWHERE = {
    "_annotations.py": "project/test_package.py",
    "_types/parameters.py": "state/test_types.py",
    "_types/statistics.py": "state/test_types.py",
    "_specs/between.py": "functional/test_between.py",
    "_specs/evo.py": "functional/test_evo.py",
    "_specs/fields.py": "specs/test_subclasses.py",
    "_specs/lengths.py": "functional/test_lengths.py",
    "_specs/responses.py": "functional/test_responses.py",
    "linen.py": "flax/test_linen.py",
    "nnx.py": "flax/test_nnx.py",
    "torch.py": "trained/test_torch.py",
    "haiku.py": "libraries/test_haiku.py",
    "equinox.py": "libraries/test_equinox.py",
    "_checks/functions.py": "trained/test_export.py",
    "_checks/arrays.py": "trained/test_torch.py",
    "_flax/linen_calls.py": "flax/test_linen_models.py",
    "_flax/linen_inspection.py": "trained/test_inspection.py",
    "_flax/nnx_calls.py": "flax/test_nnx_models.py",
    "_flax/nnx_inspection.py": "trained/test_inspection.py",
    "_state/inspect.py": "trained/test_inspection.py",
    "inspection.py": "trained/test_inspection.py",
    "_flax/tables.py": "trained/test_inspection.py",
    "_flax/weights.py": "flax/test_linen_weights.py",
    "_flax/linen_state.py": "flax/test_linen.py",
    "_specs/norms.py": "specs/test_base.py",
    "_flax/folding.py": "flax/test_model_folding.py",
    "_trained/model_folding.py": "flax/test_model_folding.py",
    "_checks/specs.py": "checks/test_errors.py",
}
files = pytest.mark.parametrize("path", FILES, ids=str)


def room(path):
    return path.parts[0].removesuffix(".py")


def imported(tree):
    """Modules of this library that a file imports, as paths."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxnorm"):
            for alias in node.names:
                module, inside = (pathlib.Path(*node.module.split(".")[1:], *name) for name in ((), (alias.name,)))
                found = (inside.with_suffix(".py"), inside / "__init__.py", module / "__init__.py")
                found = (*found, module.with_suffix(".py")) if module.parts else found
                yield from [path for path in found if path in FILES][:1]


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def parameters(function):
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [a for a in every if a.arg not in ("self", "cls")]


@files
def test_imports_point_down(path):
    here = ROOMS.index(room(path))
    for other in imported(FILES[path]):
        assert ROOMS.index(room(other)) <= here, f"{path} imports {other}"
        # Adapters stand side by side.
        assert room(other) == room(path) or room(path) != "nnx" or room(other) != "linen"


def test_no_circle_of_imports():
    """In a room, too, one can read from the ground up."""
    below = {path: {other for other in imported(tree) if other != path} for path, tree in FILES.items()}
    while below:
        ground = [path for path, others in below.items() if not others & below.keys()]
        assert ground, f"a circle among {sorted(map(str, below))}"
        below = {path: others for path, others in below.items() if path not in ground}


@files
def test_files_and_functions_are_short_and_parameters_annotated(path):
    assert len((ROOT / "jaxnorm" / path).read_text().splitlines()) <= 300
    for function in functions(FILES[path]):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        assert sum(s.end_lineno - s.lineno + 1 for s in body) <= 32, function.name
        assert all(a.annotation for a in parameters(function)), function.name
        assert room(path) != "_core" or len(parameters(function)) <= 7, function.name


@files
def test_every_file_has_tests_by_its_name(path):
    """Kernels have theirs together: each implementation passes the same ones."""
    if path.name == "__init__.py":
        pytest.skip("a table of contents")
    name = "core/test_kernels.py" if "kernels" in path.parts else f"{room(path).strip('_')}/test_{path.name}"
    assert (ROOT / "tests" / ELSEWHERE.get(path.as_posix(), name)).exists()


def test_sentences_stand_alone():
    """The first sentence of a docstring has a subject: no "The same", no "What", no "In one number"."""
    weak = []
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (doc := ast.get_docstring(node)):
                first = doc.split()
                if first[0] in ("What", "Those", "That", "It") or tuple(first[:2]) in (("The", "same"), ("In", "one")):
                    weak.append(f"{path}:{node.lineno}")
    assert not weak


def test_exceptions_are_still_some():
    for source, tests in ELSEWHERE.items():
        assert pathlib.Path(source) in FILES
        assert (ROOT / "tests" / tests).exists()
