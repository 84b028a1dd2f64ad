"""What MkDocs calls to build the documentation site (``hooks`` of mkdocs.yml).

The site has the repository's Markdown under the paths that it has there, so that every link is right in both places, and the pages that
:mod:`reference` makes from the code. A link to another text file (an example, a configuration) leads to a page that shows it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).resolve().parent.parent
PROSE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md", "benchmarks/*.md")
ASSETS = ("docs/*.svg", "benchmarks/*.svg", "docs/*.css")
SHOWN = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".jsonl": "json"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(\.\w+)((?:#[^)\s]*)?\))")


def files_of(patterns: tuple[str, ...]) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def linked() -> list[str]:
    """Text files that a document links to."""
    found = set[str]()
    for page in files_of(PROSE):
        for _, stem, suffix, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page).parent / f"{stem}{suffix}"
            if suffix in SHOWN and target.is_file():
                found.add(target.resolve().relative_to(ROOT).as_posix())
    return sorted(found)


def on_config(config: Any) -> Any:
    """Every page of docs/ has a place, benchmarks stand with the project, examples by themselves."""
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    named = {page for pages in sections.values() for page in pages}
    sections["Reference"] += [page for page in reference.pages() if page not in named]
    sections["How to"] += [page for page in files_of(("docs/**/*.md",)) if page not in named]
    sections["Project"] += files_of(("benchmarks/*.md",))
    config.nav.append({"Examples": [f"{path}.md" for path in linked()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Those of the theme stay; those of docs/ are there under their path in the repository."""
    kept = [f for f in files if f.src_dir != config.docs_dir]
    mine = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in files_of(PROSE + ASSETS)]
    made = dict(reference.pages())
    for path in linked():
        text = (ROOT / path).read_text(encoding="utf-8")
        made[f"{path}.md"] = f"# {Path(path).name}\n\n`{path}`\n\n````{SHOWN[Path(path).suffix]}\n{text}````\n"
    return Files([*kept, *mine, *(File.generated(config, path, content=text) for path, text in made.items())])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file that a page shows leads to that page."""
    return LINK.sub(lambda m: f"{m[1]}{m[2]}{m[3]}{'.md' if m[3] in SHOWN else ''}{m[4]}", markdown)
