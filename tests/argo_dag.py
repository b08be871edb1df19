"""A small Argo: runs the DAG of a WorkflowTemplate here, task by task, as Argo's controller would in pods.

It substitutes references, decides by `depends` and `when`, tries again by `retryStrategy`, takes outputs from the files
that `valueFrom` names, and calls the exit handler at the end. What is not understood is an error. Looked up in Argo
v3.7.0 and v4.1.2: workflow/controller/operator.go (processNodeRetries, buildRetryStrategyLocalScope), dag.go,
util/template, docs/enhanced-depends-logic.md and docs/variables.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Json = dict[str, Any]
SUCCEEDED, FAILED, SKIPPED, OMITTED = "Succeeded", "Failed", "Skipped", "Omitted"
REFERENCE = re.compile(r"\{\{([^{}]*)\}\}")
"""A name, or after `=` an expression of expr-lang with names in it."""
_NAME = re.compile(r"\b(?:workflow|inputs|tasks)(?:\.\w+)+")
_FUNCTIONS = {
    "join": lambda parts, by: by.join(parts),
    "split": lambda text, by: text.split(by),
    "trimSuffix": lambda text, end: text.removesuffix(end),
}
"""Those of expr-lang that our templates use."""


@dataclass(frozen=True)
class Ended:
    """The end of one try: the exit code of its main container, if it has one, and Argo's word and message on it."""

    code: int | None = 0
    status: str = FAILED
    message: str = ""

    @property
    def well(self) -> bool:
        return self.code == 0 and self.status != "Error"


@dataclass
class Node:
    """A task after its time: its phase, its outputs, and how often it was tried."""

    phase: str
    outputs: dict[str, str] = field(default_factory=dict)
    tries: int = 0


Execute = Callable[[str, Json], Ended]
"""(name of the template, the template with everything substituted) → how the try ended."""


def retried(expression: str, ended: Ended) -> bool:
    """Evaluate a retry expression as expr-lang does; values are text, an unknown exit code is -1."""
    text = re.sub(r'([\w.]+) matches ("[^"]*")', r"found(\2, \1)", expression)
    text = text.replace("&&", " and ").replace("||", " or ").replace("!(", " not (").strip()
    last = SimpleNamespace(
        exitCode=str(-1 if ended.code is None else ended.code), status=ended.status, message=ended.message
    )
    names = {"lastRetry": last, "found": lambda pattern, value: re.search(pattern, value) is not None}
    result = eval(text, {"__builtins__": {}}, names)
    assert isinstance(result, bool), (expression, result)
    return result


@dataclass
class Workflow:
    """A run of a WorkflowTemplate: `scratch` stands for the /scratch of each pod in turn."""

    document: Json
    given: Mapping[str, str]
    execute: Execute
    scratch: Path
    name: str = "imagemill-training-x7k2p"
    nodes: dict[str, Node] = field(default_factory=dict)

    def run(self) -> str:
        """The phase that the workflow ends with."""
        spec = self.document["spec"]
        parameters = {parameter["name"]: parameter["value"] for parameter in spec["arguments"]["parameters"]}
        undefined = set(self.given) - set(parameters)
        assert not undefined, f"no parameters of the workflow: {undefined}"
        self._global = {f"workflow.parameters.{name}": value for name, value in {**parameters, **self.given}.items()}
        self._global["workflow.name"] = self.name
        self._templates = {template["name"]: template for template in spec["templates"]}
        for task in self._templates[spec["entrypoint"]]["dag"]["tasks"]:
            self.nodes[task["name"]] = self._task(task)
        ended = {node.phase for node in self.nodes.values()}
        phase = FAILED if FAILED in ended else SUCCEEDED
        self._global["workflow.status"] = phase
        self.nodes["onExit"] = self._node(self._templates[spec["onExit"]], {})
        return phase

    def _task(self, task: Json) -> Node:
        if not self._depends(task.get("depends", "")):
            return Node(OMITTED)
        values = self._global | {
            f"tasks.{name}.outputs.parameters.{output}": value
            for name, node in self.nodes.items()
            for output, value in node.outputs.items()
        }
        if "when" in task and not _when(resolve(task["when"], values)):
            return Node(SKIPPED, self._defaults(self._templates[task["template"]]))
        if "withParam" in task:
            return self._repeat(task, values)
        arguments = resolve(task.get("arguments", {}), values)
        inputs = {parameter["name"]: parameter["value"] for parameter in arguments.get("parameters", ())}
        return self._node(self._templates[task["template"]], inputs)

    def _repeat(self, task: Json, values: Mapping[str, str]) -> Node:
        """Run the nodes of a task over the items of a list, of which there are never more at a time than the workflow's
        `parallelism`: here one. A task over an empty list is skipped (dag.go: "Skipped, empty params")."""
        items = json.loads(resolve(task["withParam"], values))
        for number, item in enumerate(items):
            arguments = resolve(task["arguments"], {**values, "item": item})
            inputs = {parameter["name"]: parameter["value"] for parameter in arguments["parameters"]}
            node = self._node(self._templates[task["template"]], inputs)
            self.nodes[f"{task['name']}({number}:{item})"] = node
            if node.phase != SUCCEEDED:
                return Node(FAILED)
        return Node(SUCCEEDED if items else SKIPPED)

    def _depends(self, expression: str) -> bool:
        """Evaluate `depends` by docs/enhanced-depends-logic.md: a name alone is (Succeeded || Skipped || Daemoned)."""

        def truth(match: re.Match[str]) -> str:
            name, _, phase = match.group().partition(".")
            return str(self.nodes[name].phase in ((phase,) if phase else (SUCCEEDED, SKIPPED)))

        text = re.sub(r"[A-Za-z][-\w]*(\.[A-Z]\w*)?", truth, expression)
        return not text or bool(eval(text.replace("&&", " and ").replace("||", " or "), {"__builtins__": {}}))

    def _node(self, template: Json, inputs: Mapping[str, str]) -> Node:
        input_names = [parameter["name"] for parameter in template.get("inputs", {}).get("parameters", ())]
        assert sorted(inputs) == sorted(input_names), (template["name"], inputs, input_names)
        values = self._global | {f"inputs.parameters.{name}": value for name, value in inputs.items()}
        resolved, retry = resolve(template, values), template["retryStrategy"]
        for tries in range(1, retry["limit"] + 2):
            end = self.execute(template["name"], resolved)
            if end.well:
                return Node(SUCCEEDED, self._outputs(template), tries)
            if not retried(retry["expression"], end):
                break
        return Node(FAILED, {}, tries)

    def _outputs(self, template: Json) -> dict[str, str]:
        outputs = self._defaults(template)
        for parameter in template.get("outputs", {}).get("parameters", ()):
            path = self.at(parameter["valueFrom"]["path"])
            if path.is_file():
                outputs[parameter["name"]] = path.read_text()
        return outputs

    def _defaults(self, template: Json) -> dict[str, str]:
        outputs = template.get("outputs", {}).get("parameters", ())
        return {parameter["name"]: parameter["valueFrom"]["default"] for parameter in outputs}

    def at(self, path: str) -> Path:
        """Map a path of the pod to this machine: only its scratch can be written."""
        assert path.startswith("/scratch/"), path
        return self.scratch / path.removeprefix("/scratch/")


def _when(text: str) -> bool:
    match = re.fullmatch(r"'([^']*)' == '([^']*)'", text)
    assert match, text
    return match.group(1) == match.group(2)


def names_in(reference: str) -> set[str]:
    """Yield the variable names between the braces of a reference."""
    return set(_NAME.findall(reference)) if reference.startswith("=") else {reference}


def _resolved(reference: str, values: Mapping[str, str]) -> str:
    if not reference.startswith("="):
        return values[reference]
    expression = _NAME.sub(lambda match: repr(values[match.group()]), reference[1:])
    return str(eval(expression, {"__builtins__": {}}, _FUNCTIONS))


def resolve(value: Any, values: Mapping[str, str]) -> Any:
    """Every reference replaced; one that is not known is an error, as it is for Argo's linter."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda match: _resolved(match.group(1), values), value)
    if isinstance(value, list):
        return [resolve(item, values) for item in value]
    return {key: resolve(item, values) for key, item in value.items()} if isinstance(value, dict) else value
