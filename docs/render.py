"""Runs notebooks from top to bottom and writes them, with what they show, as Markdown: `make rendered`.

    python docs/render.py FOLDER NOTEBOOK...

Markdown and pictures, for a repository shows both, the documentation site reads both, and a change of one line is a
difference of one line.
"""

import re
import shutil
import sys
from io import BytesIO
from pathlib import Path

import jupytext
from jinja2 import DictLoader
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor
from PIL import Image

# What a cell prints is in a fence as its code is; empty lines would end an indented block.
_TEMPLATE = """\
{%- extends 'markdown/index.md.j2' -%}
{%- block stream %}

```text
{{ output.text.rstrip() }}
```
{% endblock stream %}
{%- block data_text scoped %}

```text
{{ output.data['text/plain'] }}
```
{% endblock data_text %}
"""


def write_picture(png: bytes, path: Path) -> Path:
    """Writes a picture: a drawing as PNG, a photograph as JPEG, which has a tenth of its size."""
    photograph = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").save(photograph, "JPEG", quality=85)
    small = photograph.getvalue()
    data, suffix = (small, ".jpg") if len(small) < len(png) / 3 else (png, ".png")
    path.with_suffix(suffix).write_bytes(data)
    return path.with_suffix(suffix)


def render(source: Path, folder: Path) -> None:
    """Runs a notebook, and writes it and its pictures into a folder."""
    notebook = jupytext.read(source)
    ExecutePreprocessor(timeout=600).preprocess(notebook, {"metadata": {"path": str(source.parent)}})
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    exporter = MarkdownExporter(
        extra_loaders=[DictLoader({"rendered.md.j2": _TEMPLATE})], template_file="rendered.md.j2"
    )
    body, found = exporter.from_notebook_node(notebook)
    pictures = folder / source.stem
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    # Numbered in their order, so that pages can show them under a name that stays.
    for number, (name, data) in enumerate(found["outputs"].items(), 1):
        numbered = write_picture(data, pictures / str(number))
        body = re.sub(rf"!\[\w+\]\({re.escape(name)}\)", f"![]({source.stem}/{numbered.name})", body)
    body = "\n".join(line.rstrip() for line in body.strip().splitlines())
    (folder / f"{source.stem}.md").write_text(f"{body}\n")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        render(Path(name), Path(sys.argv[1]))
