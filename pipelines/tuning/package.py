"""Inputs of a search as a package for a cluster, and the parameters of its form."""

from __future__ import annotations

from dataclasses import dataclass

from ..parameters import Parameter, RunParameters, list_form_parameters
from .rungs import MAX_TRIALS

NAME = "imagemill-tuning"


@dataclass(frozen=True)
class SearchPackage:
    """Inputs of a package. `parameters`: of the base, which become the package's defaults, as do `trials`,
    `seeds` and `space`, a JSON text; `parallelism`: trials at a time."""

    parameters: RunParameters
    trials: int
    seeds: int
    space: str
    pruner: str
    parallelism: int

    def list_form(self) -> dict[str, Parameter]:
        """Return the parameters of the package's form by name: those of the training, and those of the search."""
        own = {
            "trials": (str(self.trials), f"trials beside the base, all runs together: 1 to {MAX_TRIALS}"),
            "seeds": (str(self.seeds), "new seeds with which base and best values are compared: 2 to 100"),
            "space": (self.space, "the search space as JSON; blank: the one that is built in"),
        }
        search = {name: Parameter(name, default, str, text, (), ()) for name, (default, text) in own.items()}
        return list_form_parameters() | search
