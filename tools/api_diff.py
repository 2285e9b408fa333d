"""What of Ray's public API is missing or different here.

    python tools/api_diff.py --peer PYTHON [--json]

Describes the modules below in both interpreters (tools/api_inspect.py) and compares: names, parameters (name,
kind, default), members of classes. A name that raises NotImplementedError, or a parameter that a function
never looks at, counts as missing.

docs/differences.md says which differences are meant, and which names come later: every row of a table there
begins with the names that it explains, in backticks, with `*` for any text, as this tool prints them:

    ray.util.metrics.Counter           a name of a module
    ray.actor.ActorMethod.bind         a member of a class
    ray.init(cgroup_path)              a parameter of a function, method or constructor
    ray.exceptions.RpcError[OSError]   what a class should be a kind of

The exit status is 1 while something is left that no row explains.
"""

from __future__ import annotations

import argparse
import builtins
import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parent.parent
DIFFERENCES = ROOT / "docs" / "differences.md"
INSPECTOR = Path(__file__).with_name("api_inspect.py")
INSPECT_TIMEOUT_S = 120.0

MODULES = (
    "",
    "actor",
    "cluster_utils",
    "dag",
    "exceptions",
    "experimental.internal_kv",
    "experimental.tqdm_ray",
    "job_config",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "types",
    "util",
    "util.accelerators",
    "util.actor_pool",
    "util.check_serialize",
    "util.inspect",
    "util.joblib",
    "util.metrics",
    "util.multiprocessing",
    "util.placement_group",
    "util.queue",
    "util.scheduling_strategies",
    "util.serialization",
    "util.state",
    "util.tpu",
)

Description = Mapping[str, Any]
MISSING = "missing"
DIFFERENT = "different"
VARIADIC = ("VAR_POSITIONAL", "VAR_KEYWORD")


@dataclass(frozen=True)
class Finding:
    """One thing that a program could trip over."""

    module: str
    subject: str
    kind: str
    """MISSING or DIFFERENT."""
    detail: str
    explanation: str = ""
    """The section and reason in differences.md; "" where nothing explains it."""


@dataclass(frozen=True)
class Row:
    """A line of a table in differences.md."""

    patterns: tuple[str, ...]
    explanation: str

    def explains(self, subject: str) -> bool:
        return any(fnmatch.fnmatchcase(subject, pattern) for pattern in self.patterns)


def inspect_package(
    python: str, package: str, modules: Sequence[str], path: Sequence[str] = ()
) -> Description:
    """What api_inspect.py prints there. path: where that interpreter looks for modules first.

    Raises RuntimeError with its output where it fails, and TimeoutExpired.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [python, str(INSPECTOR), package, *modules],
        env=environment,
        capture_output=True,
        text=True,
        timeout=INSPECT_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{python} could not describe {package}:\n{done.stderr}")
    described: dict[str, Any] = json.loads(done.stdout)
    return described


# ---- comparing


def compare(ours: Description, theirs: Description) -> list[Finding]:
    """What `theirs` has and `ours` lacks, by module."""
    found: list[Finding] = []
    for name, their_module in theirs["modules"].items():
        module = f"{theirs['package']}.{name}" if name else theirs["package"]
        our_names = ours["modules"][name].get("names", {})
        their_names = their_module.get("names", {})
        for each, described in their_names.items():
            if described["kind"] == "broken":
                continue
            found += _compare_name(module, f"{module}.{each}", our_names.get(each), described)
            if _both_classes(our_names.get(each), described):
                found += _compare_members(module, f"{module}.{each}", our_names[each], described, their_names)
    return found


def _both_classes(ours: Description | None, theirs: Description) -> bool:
    return ours is not None and "members" in ours and "members" in theirs


def _compare_members(
    module: str, subject: str, ours: Description, theirs: Description, their_names: Mapping[str, Any]
) -> Iterator[Finding]:
    """What a class inherits from another of the same module is a finding of that one only. So that `except`
    and isinstance find what they did, it is also compared what the class is a kind of: among the names of the
    module and of Python."""
    for base in theirs["bases"]:
        if base not in ours["bases"] and (base in their_names or hasattr(builtins, base)):
            yield Finding(module, f"{subject}[{base}]", DIFFERENT, f"is no {base}")
    for name, member in theirs["members"].items():
        if member.get("inherited") not in their_names:
            yield from _compare_name(module, f"{subject}.{name}", ours["members"].get(name), member)


def _compare_name(
    module: str, subject: str, ours: Description | None, theirs: Description
) -> Iterator[Finding]:
    def finding(kind: str, detail: str, part: str = "") -> Finding:
        return Finding(module, subject + part, kind, detail)

    if ours is None:
        yield finding(MISSING, theirs["kind"])
        return
    if ours["kind"] == "broken":
        yield finding(MISSING, ours["error"])
        return
    if ours.get("stub"):
        yield finding(MISSING, "raises NotImplementedError")
        return
    for name in ours.get("unused", ()):
        if any(parameter["name"] == name for parameter in theirs.get("parameters", ())):
            yield finding(MISSING, "accepted, but never looked at", f"({name})")
    if _is_called(ours) != _is_called(theirs) and theirs["kind"] != "value":
        yield finding(DIFFERENT, f"{ours['kind']}, in Ray {theirs['kind']}")
        return
    if "parameters" in ours and "parameters" in theirs:
        for kind, name, detail in compare_parameters(ours["parameters"], theirs["parameters"]):
            yield finding(kind, detail, f"({name})")


def _is_called(described: Description) -> bool:
    return described["kind"] in ("class", "function", "method")


def compare_parameters(
    ours: Sequence[Description], theirs: Sequence[Description]
) -> Iterator[tuple[str, str, str]]:
    """(MISSING or DIFFERENT, parameter, detail). What is accepted here and not there is no difference."""
    by_name = {each["name"]: each for each in ours}
    our_kinds = {each["kind"] for each in ours}
    for their in theirs:
        name, kind = their["name"], their["kind"]
        if kind in VARIADIC:
            if kind not in our_kinds:
                yield MISSING, ("*" if kind == "VAR_POSITIONAL" else "**") + name, "parameter"
            continue
        our = by_name.get(name)
        if our is None:
            yield MISSING, name, f"parameter, {_default(their)}"
            continue
        if our["kind"] != kind and our["kind"] != "POSITIONAL_OR_KEYWORD":
            yield DIFFERENT, name, f"{our['kind']}, in Ray {kind}"
        elif our["default"] != their["default"] and their["default"] is not None:
            yield DIFFERENT, name, f"{_default(our)}, in Ray {_default(their)}"
    required = {each["name"] for each in ours if each["default"] is None and each["kind"] not in VARIADIC}
    for name in sorted(required - {each["name"] for each in theirs}):
        yield DIFFERENT, name, "required, and unknown in Ray"
    our_order, their_order = (_positional(each, by_name) for each in (ours, theirs))
    common = [name for name in their_order if name in our_order]
    if our_order[: len(common)] != common:
        yield DIFFERENT, ", ".join(common), f"order ({', '.join(our_order)})"


def _default(parameter: Description) -> str:
    return "required" if parameter["default"] is None else f"default {parameter['default']}"


def _positional(parameters: Sequence[Description], known: Mapping[str, Any]) -> list[str]:
    return [
        each["name"] for each in parameters if each["kind"].startswith("POSITIONAL") and each["name"] in known
    ]


# ---- what is explained


def read_rows(text: str) -> list[Row]:
    """The rows of every table in differences.md, with the heading above them."""
    rows, heading = [], ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("| `") or len(cells) < 2:
            continue
        rows.append(Row(tuple(re.findall(r"`([^`]+)`", cells[0])), f"{heading}: {cells[1]}"))
    return rows


def explain(findings: Sequence[Finding], rows: Sequence[Row]) -> list[Finding]:
    """The findings, with the explanation of the first row that knows them."""
    explained = []
    for finding in findings:
        row = next((row for row in rows if row.explains(finding.subject)), None)
        explained.append(replace(finding, explanation=row.explanation if row else ""))
    return explained


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What of Ray's public API is missing or different here.")
    parser.add_argument(
        "--peer", required=True, metavar="PYTHON", help="an interpreter that has ray installed"
    )
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON, also what is explained"
    )
    parser.add_argument("--all", action="store_true", help="print what is explained, too")
    given = parser.parse_args(arguments)
    theirs = inspect_package(given.peer, "ray", MODULES)
    ours = inspect_package(sys.executable, "ray_mono", MODULES, [str(ROOT / "python")])
    rows = read_rows(DIFFERENCES.read_text())
    findings = explain(compare(ours, theirs), rows)
    open_findings = [finding for finding in findings if not finding.explanation]
    counts = {
        MISSING: sum(finding.kind == MISSING for finding in open_findings),
        DIFFERENT: sum(finding.kind == DIFFERENT for finding in open_findings),
        "explained": len(findings) - len(open_findings),
    }
    notes = [*_not_compared(theirs), *_idle_patterns(rows, findings)]
    if given.json:
        found = [asdict(each) for each in findings]
        print(json.dumps({"counts": counts, "findings": found, "notes": notes}, indent=1))
    else:
        _print(findings if given.all else open_findings)
        print(*notes, sep="\n")
        print(f"Ray {theirs['version']}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if open_findings else 0


def _not_compared(theirs: Description) -> Iterator[str]:
    for name, module in theirs["modules"].items():
        if "error" in module:
            yield f"not compared: ray.{name}, which that Ray cannot import: {module['error']}"


def _idle_patterns(rows: Sequence[Row], findings: Sequence[Finding]) -> Iterator[str]:
    """What could go from differences.md: the name has come, or this Ray has it no more."""
    for row in rows:
        for pattern in row.patterns:
            if not any(fnmatch.fnmatchcase(finding.subject, pattern) for finding in findings):
                yield f"{DIFFERENCES.name}: `{pattern}` explains nothing"


def _print(findings: Sequence[Finding]) -> None:
    module = ""
    for finding in findings:
        if finding.module != module:
            module = finding.module
            print(module)
        why = f"   [{finding.explanation}]" if finding.explanation else ""
        print(f"  {finding.kind:9} {finding.subject}: {finding.detail}{why}")


if __name__ == "__main__":
    sys.exit(main())
