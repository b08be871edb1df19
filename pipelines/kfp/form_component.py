"""KFP components whose inputs are the form's parameters, as the steps' options declare them.

KFP ships a component as the source text of a function with its signature, which the pod's executor reads: what is
declared elsewhere has to be written into that text.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from typing import Any

from kfp import dsl

from ...components.dataset.manifest import code_version
from ..parameters import FORM_PARAMETERS, list_parameters

IMAGES = {target: f"imagemill-{target}:{code_version()}" for target in ("cpu", "ray", "gpu")}
"""The images by target of the Dockerfile; nothing is installed when a step starts."""
Form = dict[str, str]
"""Parameters of the form by name, as texts."""


def form_component(target: str, *, whole: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a KFP component of the function of a step, to run in the image `target`.

    In place of its argument `form` the component has an input for each parameter of the form that the step of its name
    has, or with `whole` for all.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        step = function.__name__
        steps = {name: parameter.steps for name, parameter in list_parameters().items()}
        names = [name for name in FORM_PARAMETERS if whole or step in steps[name]]
        return dsl.component(base_image=IMAGES[target], install_kfp_package=False)(_write_inputs(function, names))

    return decorate


def _write_inputs(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return the function with arguments `names` in place of `form`, which its body makes of them, and its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list.clear()
    inputs = [ast.arg(name, ast.Name("str", ast.Load())) for name in names]
    definition.args.args = inputs + [argument for argument in definition.args.args if argument.arg != "form"]
    form = "form = {" + ", ".join(f"{name!r}: {name}" for name in names) + "}"
    definition.body.insert(1, ast.parse(form).body[0])  # below the docstring
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    file = f"<component {function.__name__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # where KFP looks for it
    namespace = dict(function.__globals__)
    exec(compile(source, file, "exec", dont_inherit=True), namespace)
    component: Callable[..., Any] = namespace[function.__name__]
    return component
