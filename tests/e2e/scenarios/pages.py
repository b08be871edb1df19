"""Kubeflow Pipelines' pages in a browser: the form is filled, Start is pressed, and the run's page is looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from imagemill.components.dataset.workspace import STEPS
from imagemill.pipelines.parameters import resolve_parameters

from .. import kfp
from ..access import chromium
from ..access.chromium import Page
from ..options import SMALL
from ..runs import KFP, Run
from ..scenario import Failed, Skip
from ..session import Session, Trial
from .common import add, check_complete, source

START = "#startNewRunBtn"
SHOWN = {
    "confusion": "document.body.innerText.includes('Confusion Matrix: confusion')",
    "report": "[...document.querySelectorAll('iframe')].some(frame => frame.srcdoc || frame.src)",
}
"""Artifacts that a reader of a run looks at, and by what it is told that the page shows them."""
_EXPAND, _FIT, _CLOSE = "[data-testid=expand-button]", ".react-flow__controls-fitview", "[aria-label=close]"
_VISUALIZATION = "[...document.querySelectorAll('button')].find(tab => tab.innerText.trim() === 'Visualization')"
MOST_LAYERS = 5
"""Parts of a pipeline in parts of it that are looked into."""
_SETTLE_S = 2.0
"""What the pages take to draw a graph after it is in the document."""


def _form(trial: Trial) -> str:
    base = kfp.host_of_pages(trial)
    if not base:
        raise Skip("the address of Kubeflow Pipelines' pages is not known: --pages http://localhost:8080")
    links = kfp.upload(trial, "pages")
    folder = trial.session.folder / trial.scenario
    folder.mkdir(parents=True, exist_ok=True)
    with chromium.opened(chromium.find_chromium(), trial.deadline) as page:
        page.open(f"{base}/#/runs/new?{urlencode(links)}")
        page.wait_for_element(START, "the form of a run")
        num_fields = _fill(trial, page)
        page.screenshot(folder / "form.png")
        page.click(START)
        run = _started(trial, links["experimentId"])
    run.succeed(trial.deadline)
    check_complete(trial, run)
    with chromium.opened(chromium.find_chromium(), trial.deadline) as page:
        artifacts = _look_at_run(page, f"{base}/#/runs/details/{run.service_id}", folder)
    return f"{num_fields} fields filled, {run.workflow} succeeded, its page shows {artifacts} (pictures in {folder})"


def _fill(trial: Trial, page: Page) -> int:
    """Fill the form as the small run is; the number of fields that had to be touched."""
    values = resolve_parameters(
        {**SMALL, "source": source(trial), "workspace": trial.workspace(trial.scenario), "seed": 31}
    ).arguments()  # fmt: skip
    touched = 0
    for name, value in values.items():
        if value in ("", None):
            continue
        field = f"#{name}"
        page.wait_for_element(field, f"the parameter {name}")
        if page.evaluate(f"document.querySelector({json.dumps(field)}).getAttribute('role') === 'combobox'"):
            _choose(page, field, str(value))
        else:
            page.fill(field, str(value))
            displayed = page.evaluate(f"document.querySelector({json.dumps(field)}).value")
            if displayed != str(value):
                raise Failed(f"the form's field {name} holds {displayed!r}, expected {value!r}")
        touched += 1
    return touched


def _choose(page: Page, field: str, value: str) -> None:
    """Take an entry of a drop-down list, which grows as it opens: a click in its first moments may miss the entry."""
    page.click(field)
    entry = f'li[data-value="{value}"]'
    page.wait_for_element(entry, f"the entry {value} of {field}")
    closed = f"""(() => {{
        const entry = document.querySelector({json.dumps(entry)});
        if (entry) entry.click();
        return !entry;
    }})()"""
    page.wait_for(closed, f"the list of {field} to close")


def _started(trial: Trial, experiment: str) -> Run:
    def find_started() -> Any:
        runs = kfp.list_runs(trial, experiment)
        return runs[0].run_id if runs else None

    run_id = trial.mirror.wait(find_started, "the run that the form starts", trial.within(120), every=3)
    return kfp.find_run(trial, str(run_id), trial.workspace(trial.scenario), trial.deadline)


def _look_at_run(page: Page, url: str, folder: Path) -> str:
    """Open a run's page, all of its steps, and what it shows of the model."""
    page.resize(1300, 900)
    page.open(url)
    _look_at_steps(page, folder)
    for artifact, shown in SHOWN.items():
        page.wait_for_element(_titled(artifact), f"the artifact {artifact}")
        page.evaluate(f"document.querySelector({json.dumps(_titled(artifact))}).click()")
        page.wait_for(f"{_VISUALIZATION} !== undefined", f"what there is of {artifact}")
        page.evaluate(f"{_VISUALIZATION}.click()")
        page.wait_for(shown, f"the {artifact}")
        time.sleep(_SETTLE_S)
        page.screenshot(folder / f"{artifact}.png")
        page.click(_CLOSE)
        page.wait_for(f"{_VISUALIZATION} === undefined", "the side panel to close")
    return ", ".join(("the graph", *SHOWN))


def _look_at_steps(page: Page, folder: Path) -> None:
    """Go down the layers of the graph: the run with its exit step, download and what is left out where nothing has
    changed, the other steps. A node of the graph is clicked by script: it may lie outside of the view."""
    missing = set(STEPS)
    for layer in range(MOST_LAYERS):
        page.wait_for_element(".react-flow__node", "the graph of the run")
        page.click(_FIT)
        time.sleep(_SETTLE_S)
        page.screenshot(folder / f"graph-{layer}.png")
        missing = {step for step in missing if not page.has(_titled(step.capitalize()))}
        if not missing or not page.has(_EXPAND):
            break
        page.evaluate(f"document.querySelector({json.dumps(_EXPAND)}).click()")
        time.sleep(_SETTLE_S)
    if missing:
        raise Failed(f"the run's page does not show {', '.join(sorted(missing))} (pictures in {folder})")


def _titled(title: str) -> str:
    """The selector of a node of the graph."""
    return f'[title="{title}"]'


def _lacks(session: Session) -> str:
    return "" if chromium.find_chromium() else "no Chromium here: apt-get install chromium, or CHROMIUM names it"


def register() -> None:
    description = "the form of KFP's pages filled in a browser, started, and the run's page looked at"
    add(KFP, "pages", description, _form, lacks=_lacks)
