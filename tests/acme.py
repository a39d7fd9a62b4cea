"""A third party's package: the one in docs/how-to/add-a-*.md, written out from the pages, and how it is shipped."""

import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

HOW_TO = Path(__file__).resolve().parents[1] / "docs" / "how-to"
PAGES = ("extending", *(f"add-a-{thing}" for thing in ("source", "step", "cut", "stage", "loss", "model")))
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {path: text for page in PAGES for path, text in FILE.findall((HOW_TO / f"{page}.md").read_text("utf-8"))}
"""Path -> text: the files of the pages."""
NAME = "acme_filters"
LONG_ANSWERS = f"{NAME}.answers:LongAnswers"


def write_package(folder: Path, name: str = NAME, **changed: str) -> Path:
    """The package in a folder; `changed` is more text at the end of its modules, or a module more."""
    texts = {Path(path).stem: text for path, text in FILES.items() if path.startswith(f"{NAME}/")}
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    for module in texts | changed:
        text = texts.get(module, "") + changed.get(module, "")
        (folder / name / f"{module}.py").write_text(text, encoding="utf-8")
    return folder


def zipped(folder: Path, archive: Path) -> Path:
    """The .py files below a folder as `--py-files` takes them."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.py")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


@contextmanager
def importable(place: Path, *names: str) -> Iterator[None]:
    """Put packages of a folder or a zip on sys.path within the block; others of these names are forgotten meanwhile."""
    before = _forget(names)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        _forget(names)
        sys.modules.update(before)


def _forget(names: Sequence[str]) -> dict[str, ModuleType]:
    """The modules of some packages, which are imported anew from now on."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
