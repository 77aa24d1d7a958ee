"""The README is checked: its commands exist, CI runs the one it names, its tables are the program's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from prefect.utilities.schema_tools import validate

from thinkdiff.flows.recipes import RECIPES, recipe
from thinkdiff.flows.thinkdiff_flow import thinkdiff as flow
from thinkdiff.schemas.artifact import STAGES
from thinkdiff.schemas.features import CaptionPrompts

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]
COMMANDS = [line for line in LINES if line.startswith("thinkdiff ")]
RUNS = [line for line in LINES if line.startswith("prefect deployment run ")]
SETUP = [line for line in LINES if line.startswith("python3 deploy/install.py")]


def table(heading: str) -> list[str]:
    """The first cells, without quotes, of the table under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def thinkdiff(*arguments: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "-m", "thinkdiff.flows.cli", *arguments]
    plain = os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout


def test_two_commands_set_up_a_fresh_machine() -> None:
    assert SETUP == [
        "python3 deploy/install.py && .venv/bin/thinkdiff run mini",
        "python3 deploy/install.py --test && .venv/bin/python -m pytest",
    ]


def test_ci_runs_the_test_command_as_the_readme_has_it() -> None:
    assert SETUP[1] in (REPOSITORY / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.split()[1])
def test_command_line_takes_every_option_that_the_readme_uses(line: str) -> None:
    words = shlex.split(line, comments=True)
    shown = thinkdiff(words[1], "--help")
    for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(words[2:])):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), f"{words[1]} has no {option}"


def test_readme_names_every_command() -> None:
    listed = set(re.findall(r"^\W*([a-z][a-z-]+)  +[A-Z]", thinkdiff("--help").split("Commands")[1], re.MULTILINE))
    assert listed == {line.split()[1] for line in COMMANDS}


def test_tables_list_the_stages_and_the_recipes() -> None:
    assert table("The stages") == list(STAGES)
    assert table("The recipes") == list(RECIPES)


def test_deployments_are_those_of_prefect_yaml() -> None:
    deployments = yaml.safe_load((REPOSITORY / "deploy" / "prefect.yaml").read_text())["deployments"]
    flows = {"thinkdiff.flows.settle_flow:settle": "housekeeping"}
    names = [f"{flows.get(made['entrypoint'], 'thinkdiff')}/{made['name']}" for made in deployments]
    assert table("With a Prefect server") == names
    assert set(re.findall(r"deployment run (\S+)", "\n".join(LINES))) <= set(table("With a Prefect server"))


@pytest.mark.parametrize("line", RUNS)
def test_deployment_takes_the_parameters_that_the_readme_gives_it(line: str) -> None:
    words = shlex.split(line)
    deployments = yaml.safe_load((REPOSITORY / "deploy" / "prefect.yaml").read_text())["deployments"]
    (parameters,) = (made["parameters"] for made in deployments if f"thinkdiff/{made['name']}" == words[3])
    for option, word in pairwise(words):
        if option in ("-p", "--param"):
            name, _, value = word.partition("=")
            parameters[name] = json_or_text(value)
    validate(parameters, flow.parameters.model_dump(), raise_on_error=True, ignore_required=True)
    checked = flow.validate_parameters(parameters)
    assert checked["recipe"] in RECIPES
    assert flow.parameters.properties.keys() >= parameters.keys()


def json_or_text(value: str) -> object:
    """What the Prefect CLI makes of a parameter's value."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def test_features_of_the_paper_are_as_the_readme_says() -> None:
    spec = recipe("lvlm-paper")
    asked, features = README.split("asks Qwen2-VL")[1].split("```")[0], spec.features
    assert isinstance(features.prompts, CaptionPrompts)
    assert (spec.captions.n, len(features.prompts.texts), features.shard_size) == (1_700_000, 16, 256)
    assert (features.max_tokens, features.end_policy) == (64, "forced")
    assert (features.temperature, features.top_p, features.dtype) == (0.6, 0.9, "bfloat16")
    for said in ("16 prompts", "64 tokens", "temperature 0.6", "top-p 0.9", "bfloat16", "256 requests a shard"):
        assert said in " ".join(asked.split())


@pytest.mark.parametrize("document", ["README.md", "AGENTS.md"])
def test_files_that_a_document_names_exist(document: str) -> None:
    text = (REPOSITORY / document).read_text()
    named = set(re.findall(r"(?<![\w./-])((?:deploy|tests|flows|tasks|schemas|storage|\.ci)/[\w./-]*\w)", text))
    assert named
    assert not {name for name in named if not (REPOSITORY / name).exists()}


def test_links_inside_the_repository_lead_somewhere() -> None:
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert targets
    assert all((REPOSITORY / target).exists() for target in targets)
