"""The README, the pins and the inline metadata of the scripts say what the code does."""

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import pandas as pd
import plot
import pytest
import run
import tyro

import sdsac_atari
import sdsac_classic

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BENCHMARKS = "".join((ROOT / "benchmark" / name).read_text() for name in ("README.md", "STUDIES.md"))
DOCUMENTS = ("README.md", "benchmark/README.md", "benchmark/STUDIES.md")
SCRIPTS = {"sdsac_atari": sdsac_atari, "sdsac_classic": sdsac_classic}


def flags(script):
    names = [field.name.replace("_", "-") for field in dataclasses.fields(script.Args)]
    return {f"--{name}" for name in names} | {f"--no-{name}" for name in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_inline_metadata_has_the_pins_of_the_requirements(name):
    text = (ROOT / f"{name}.py").read_text()
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", text)[1]
    metadata = tomllib.loads("".join(line[2:] + "\n" for line in block.splitlines()))
    pins = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    only_for_tests = {"opencv-python-headless", "pytest", "pytest-xdist"}
    not_classic = {"ale-py"} if name == "sdsac_classic" else set()
    needed = {pin for pin in pins if pin.split("==")[0] not in only_for_tests | not_classic}
    assert set(metadata["dependencies"]) == needed
    assert all("==" in pin for pin in pins)
    assert metadata["requires-python"] == ">=3.11"


def test_commands_of_the_readme_have_flags_that_exist():
    commands = re.findall(r"python (sdsac_\w+)\.py([^\n`#]*)", README)
    assert {name for name, _ in commands} == set(SCRIPTS)
    for name, rest in commands:
        assert set(re.findall(r"--[\w-]+", rest)) - {"--help"} <= flags(SCRIPTS[name]), rest


def commands_of(script):
    """The arguments of the script's commands in code blocks of the documents, as far as a shell would split them."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README + BENCHMARKS, re.S)).replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)
        for line in re.findall(rf"python {re.escape(script)}\.py ([^\n&;]*)", blocks)
        if "$" not in line
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_take_the_commands_of_the_documents(name):
    commands = commands_of(name)
    assert len(commands) > 4
    for arguments in commands:
        if not {"--help", "--resume", "--evaluate"} & set(arguments):
            SCRIPTS[name].check_args(SCRIPTS[name].read_args(arguments))


def test_sweeps_have_what_the_commands_of_the_documents_ask_for(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = commands_of("benchmark/run")
    assert len(commands) > 8
    for arguments in commands:
        assert run.read_sweep(tyro.cli(run.Args, args=arguments))


def test_committed_data_has_the_variants_that_the_commands_of_the_documents_draw():
    commands = commands_of("benchmark/plot")
    assert len(commands) > 12
    for arguments in commands:
        args = tyro.cli(plot.Args, args=arguments)
        if args.name != "mine":
            data = pd.read_csv(plot.RESULTS / f"{args.name}.csv")
            plot.select(data, {"env_id": args.environments, "variant": args.variants})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", (ROOT / document).read_text())
    assert len(links) > 4
    for file, anchor in links:
        path = (ROOT / document).parent / file if file else ROOT / document
        assert path.exists(), file
        if anchor:
            assert anchor in anchors(path.read_text()), (file, anchor)


def anchors(text):
    """GitHub's for the headings of a document: lower case, spaces as hyphens, no other signs."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_flags_that_the_readme_mentions_exist_in_both_scripts():
    mentioned = set(re.findall(r"`(--[\w-]+)`", README))
    assert len(mentioned) > 8
    assert mentioned <= flags(sdsac_atari) & flags(sdsac_classic)


def test_tags_of_the_readme_are_those_that_the_scripts_write():
    table = README.split("## What is logged")[1].split("\n## ")[0]
    documented = {tag for line in table.splitlines() if re.match(r"\| `\w+/", line) for tag in tags(line.split("|")[1])}
    assert tags(README) <= documented
    for name in SCRIPTS:
        assert tags((ROOT / f"{name}.py").read_text()) == documented


def tags(text):
    return set(re.findall(r"[`\"]((?:charts|losses|policy|diagnostics|eval)/\w+)[`\"]", text))


def test_functions_and_tests_that_the_readme_names_exist():
    ledger = README.split("## The algorithm")[1].split("\n## ")[0]
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").glob("*.py")))
    named = set(re.findall(r"`(test_\w+)`", ledger)) - {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert len(named) > 8
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
    functions = {
        name for row in re.findall(r"^\|.*\|$", ledger, re.M) for name in re.findall(r"`(\w+)`", row.split("|")[3])
    }
    assert {"soft_value", "critic_loss", "update"} <= functions
    assert [name for name in sorted(functions) if not hasattr(sdsac_classic, name)] == []
