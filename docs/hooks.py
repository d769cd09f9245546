"""Pages of the site that are made from the code while it is built: see `hooks` in mkdocs.yml.

Pages written by hand are in docs/. Pages whose content is in the code, or in a file elsewhere in
the repository, are made here, so they are never out of date.
"""

from pathlib import Path
from typing import Any

import generate
from mkdocs.structure.files import File, Files

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
    for path in sorted((ROOT / FIGURES).glob("*.png")):
        name = f"figures/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links to files of the repository links to their pages."""
    for path, target in COPIES.items():
        markdown = markdown.replace(f"](../{path}", f"]({target}")
    return markdown
