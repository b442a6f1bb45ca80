"""What the pages claim: names, messages, tests and lines of code that must exist, examples that run."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

import edge
from edge.records import Face
from support.paths import ROOT
from support.trees import parsed
from test_boundaries import LAYERS

DOCS = ROOT / "docs"
PACKAGES = ("edge", "distill", "export")
VARIES = "\0"


def page(name: str) -> str:
    return (ROOT / name).read_text()


def code_spans(text: str) -> list[str]:
    """What stands between backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_the_first_page_is_read_in_five_minutes() -> None:
    assert len(page("README.md").split()) <= 900


def test_the_first_page_installs_an_extra_before_a_command_that_wants_it() -> None:
    wanted = {
        "edge-run": "node",
        "edge-bench": "node",
        "edge-watch": "watch",
        "edge-flash": "flash",
    }
    installed: set[str] = set()
    shown = [line for block in blocks(page("README.md"), "sh") for line in block.splitlines()]
    for line in shown:
        if extras := re.match(r"pip install '\.\[(.+?)\]'", line):
            installed.update(extras[1].split(","))
        script = re.match(r"(?:sudo \"\$\(command -v )?([a-z-]+)", line)
        if script is not None and script[1] in wanted:
            assert wanted[script[1]] in installed, line
    assert installed == set(wanted.values())


# Messages.


def pattern(message: str) -> str:
    """A message whose varying parts (`...`, {}, %s) are one sign each."""
    return re.sub(rf"(?:\.\.\.|%[sdrg]|%\.0f|{VARIES})+", VARIES, message)


class _Messages(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = [
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else VARIES
            for part in node.values
        ]
        self.found.append(pattern("".join(parts)))
        self.generic_visit(node)  # a text inside of {}

    def visit_Call(self, node: ast.Call) -> None:
        before = len(self.found)
        self.generic_visit(node)
        # How a connection stands is a state and a detail, printed as "away: DETAIL".
        if isinstance(node.func, ast.Name) and node.func.id in ("away", "refused"):
            self.found += [f"{node.func.id}: {text}" for text in self.found[before:]]

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append(pattern(node.value))


@cache
def messages() -> str:
    visitor = _Messages()
    for path in sources("edge", "distill", "export"):
        tree = parsed(path)
        docstrings = {
            id(node.body[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and ast.get_docstring(node) is not None
        }
        for node in ast.walk(tree):
            if id(node) not in docstrings and isinstance(node, ast.stmt):
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        visitor.visit(child)
    return "\n".join(visitor.found)


def quoted_messages() -> list[str]:
    """Those of a table's first column; a row may answer several."""
    cells = re.findall(r"^\| (`.+?`) \|", page("docs/troubleshooting.md"), re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def test_troubleshooting_quotes_messages_of_every_part() -> None:
    assert len(quoted_messages()) > 40


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    assert len(message.replace("...", "").strip()) >= 8
    assert pattern(message) in messages()


# Modules whose errors and warnings are all told: what a school's technician meets by himself.
TOLD = ("edge/watch", "edge/delivery/trust.py", "edge/run.py")


def told(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of a module's errors and warnings; those of one text handed on are left out."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", "")
            if name == "Refused" or not name.endswith(
                ("Error", "Refusal", "Refused", "Unanswered")
            ):
                continue  # reasons that are counted, inside of one warning
            texts = node.exc.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in ("warning", "error"):
                continue
            texts = node.args[:1]
        else:
            continue
        visitor = _Messages()
        for text in texts:
            if isinstance(text, ast.Constant | ast.JoinedStr):
                visitor.visit(text)
        whole = max(visitor.found, key=len, default="")
        if len(whole.replace(VARIES, "").strip()) >= 8:
            yield node.lineno, whole


def is_quoted(message: str) -> bool:
    """Tell whether a quotation is of a part of a message, or holds it."""
    bare = message.strip(f"{VARIES} ;:")
    return any(
        quoted in message or bare in quoted
        for quoted in (pattern(text).strip(f"{VARIES} ;:") for text in quoted_messages())
    )


def test_every_error_and_warning_that_a_school_meets_is_in_troubleshooting() -> None:
    paths = [path for name in TOLD for path in sorted((ROOT / name).rglob("*.py")) or [ROOT / name]]
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {text.replace(VARIES, '...')}"
        for path in paths
        for line, text in told(path)
        if not is_quoted(text)
    ]
    assert missing == [], "give each a line in docs/troubleshooting.md"


def test_a_message_without_a_line_would_be_noticed() -> None:
    assert is_quoted(pattern("no camera at ...; cameras on this machine: ..."))
    assert not is_quoted(pattern("the page ran out of ink; fill in some"))


def test_a_reworded_message_would_be_noticed() -> None:
    assert pattern("no camera at ...; cameras on this machine: ...") in messages()
    assert pattern("no camera at ...; cameras on this computer: ...") not in messages()


# Tests and names.


def test_reliability_names_tests_that_exist() -> None:
    names = code_spans(page("docs/reliability.md"))
    defined = {
        node.name
        for path in sources("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    }
    tests = [name for name in names if name.startswith("test_")]
    files = [name for name in names if name.startswith("tests/")]
    assert len(tests) > 10
    assert len(files) > 10
    assert [test for test in tests if test not in defined] == []
    assert [file for file in files if not (ROOT / file).is_file()] == []


def definitions() -> set[str]:
    """Names of functions, classes and methods ("Class.method")."""
    found = set()
    for path in sources(*PACKAGES):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {
                    f"{node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef)
                }
    return found


def test_architecture_names_code_that_exists() -> None:
    known = definitions()
    names = [
        span
        for span in code_spans(page("docs/architecture.md"))
        if re.fullmatch(r"[A-Z]\w+(\.[a-z]\w+)?|[a-z]+(_[a-z]+)+", span)
    ]
    assert len(names) >= 12
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize(
    "path",
    sorted([*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"]),
    ids=lambda path: path.name,
)
def test_paths_that_a_page_names_exist(path: Path) -> None:
    examples = {"edge/margin.py", "edge/sources/ramp.py"}
    named = {
        span
        for span in code_spans(path.read_text())
        if re.fullmatch(r"(edge|distill|export|systemd|demo|tests|docs|\.ci)/[\w./-]*", span)
    }
    assert [name for name in named - examples if not (ROOT / name).exists()] == []


def test_every_folder_of_the_node_is_on_the_map() -> None:
    text = page("docs/architecture.md")
    for folder in (ROOT / "edge").iterdir():
        if (folder / "__init__.py").exists():
            assert f"| `edge/{folder.name}/` |" in text, folder.name
            row = re.search(rf"^\| `edge/{folder.name}/` \|(.*)$", text, re.M)
            assert row is not None
            for name in re.findall(r"`(\w+\.py)`", row[1]):
                assert (folder / name).exists(), f"{folder.name}/{name}"


@pytest.mark.parametrize("name", ["README.md", "edge/README.md", "docs/architecture.md"])
def test_the_arrow_is_drawn_of_modules_that_exist(name: str) -> None:
    arrow = re.search(r"^ +(\S.* -> detect -> .*)$", page(name), re.M)
    assert arrow is not None
    stages = [stage.strip(" /") for stage in arrow[1].split("->")]
    assert stages[stages.index("detect") :][:6] == [
        "detect",
        "track",
        "life",
        "crop",
        "classify",
        "aggregate",
    ]
    known = {path.stem for path in sources("edge")} | {
        path.name for path in (ROOT / "edge").iterdir()
    }
    outside = {"camera", "mailbox", "MQTT", "broker", "the school's server"}
    assert set(stages) - known - outside == set()


def test_the_drawn_order_of_imports_is_the_one_that_is_held() -> None:
    text = page("docs/architecture.md").split("## Order of imports")[1]
    drawn = [set(re.findall(r"\w+", layer)) for layer in blocks(text, "text")[0].split("<")]
    assert drawn == [set(layer.split()) for layer in LAYERS["edge"].strip().splitlines()]


# The walked examples of CONTRIBUTING.


def example(start: str, end: str) -> str:
    return page("CONTRIBUTING.md").split(start)[1].split(end)[0]


def changed(source: str, diff: str) -> str:
    """`source` with one hunk applied: its context must be there, once."""
    lines = diff.splitlines()
    before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
    after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
    assert source.count(before) == 1, f"the lines around are not in the file:\n{before}"
    return source.replace(before, after)


def load(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> types.ModuleType:
    """`source` as the module `name`, for the length of this test."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, f"<CONTRIBUTING: {name}>", "exec"), module.__dict__)
    return module


def run_tests(module: types.ModuleType) -> None:
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_new_camera_of_contributing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = example("### A new camera", "### A new stage")
    capture, tests = blocks(text, "python")
    load(monkeypatch, "edge.sources.ramp", capture)
    source = page("edge/sources/open.py")
    for diff in blocks(text, "diff"):
        source = changed(source, diff)
    load(monkeypatch, "edge.sources.open", source)
    run_tests(load(monkeypatch, "test_ramp", tests))


def test_the_new_stage_of_contributing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = example("### A new stage", "## Words")
    stage, tests = blocks(text, "python")
    load(monkeypatch, "edge.margin", stage)
    source = page("edge/pipeline.py")
    for diff in blocks(text, "diff"):
        source = changed(source, diff)
    pipeline = load(monkeypatch, "edge.pipeline", source)
    run_tests(load(monkeypatch, "test_margin", tests))
    assert seen_by_the_tracker(pipeline) == 1


def seen_by_the_tracker(pipeline: types.ModuleType) -> int:
    """Faces that reach the tracker of a patched pipeline whose detector finds one cut, one whole."""
    records = importlib.import_module("edge.records")
    landmarks = np.zeros((5, 2), dtype=np.float32)
    found = [
        Face(np.array([left, 200, 40, 40], dtype=np.float32), landmarks, 0.9) for left in (0, 300)
    ]
    reached: list[Face] = []

    class Parts:
        """Detector, tracker, classifier and window in one."""

        min_group = 1

        def find(self, pixels: object) -> list[Face]:
            return found

        def update(self, faces: list[Face], *_: object) -> list[object]:
            reached.extend(faces)
            return []

        def read(self, *_: object) -> list[object]:
            return []

        def add(self, *_: object) -> list[object]:
            return []

    parts = Parts()
    joined = pipeline.Pipeline(parts, parts, parts, parts)
    joined.step(records.Frame(np.zeros((480, 640, 3), dtype=np.uint8), time=0.0, utc=0.0))
    return len(reached)


# What a code host and a contributor's git read.


def test_the_files_of_a_code_host_are_well_formed() -> None:
    forms = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]
    assert len(forms) >= 4
    for path in forms:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    steps = yaml.safe_load(page(".github/workflows/ci.yml"))["jobs"]["all"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    hooks = yaml.safe_load(page(".pre-commit-config.yaml"))["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}


def test_the_changelog_has_this_version_and_what_comes_next() -> None:
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", page("CHANGELOG.md"), re.M)
    assert heads[0] == ("Unreleased", "")
    assert heads[1][0] == edge.__version__
    assert all(date for _, date in heads[1:])
