"""Pages of the site that are made from the code while it is built: see `hooks` in mkdocs.yml.

Pages written by hand are in docs/. Pages whose content is in the code, or in a file elsewhere in
the repository, are made here, so they are never out of date.
"""

from pathlib import Path
from typing import Any

import generate
import nbformat
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
# Files of the repository that are pages of the site; links to them are changed to go there.
COPIES = {
    "benchmarks/RESULTS.md": "results.md",
    "photozhpc/model/bundled/MODEL_CARD.md": "model_card.md",
    "CHANGELOG.md": "changelog.md",
}
FIGURES = "benchmarks/figures"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and the figures of the results."""
    pages = {f"reference/{name}.md": text() for name, text in generate.PAGES.items()}
    pages |= {page: (ROOT / path).read_text() for path, page in COPIES.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, images = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for path in sorted((ROOT / FIGURES).glob("*.png")):
        name = f"figures/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page, and its images by name."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        # Progress; and HTML tables, whose style the site does not have.
        kept = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in kept:
            output.get("data", {}).pop("text/html", None)
        if "outputs" in cell:
            cell["outputs"] = kept
    exporter = MarkdownExporter()
    template = {"output_files_dir": path.stem, "unique_key": path.stem}
    text, resources = exporter.from_notebook_node(notebook, resources=template)
    title, _, rest = text.partition("\n")
    return f"{title}\n\n[Download this notebook]({path.name})\n{rest}", resources["outputs"]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links to files of the repository links to their pages."""
    for path, target in COPIES.items():
        markdown = markdown.replace(f"](../{path}", f"]({target}")
    return markdown
