"""Kubeflow Pipelines' pages in a browser: the form is filled, Start is pressed, and the run's page is looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from imagemill.components.store.config import STEPS
from imagemill.pipelines.parameters import choose

from .. import kfp
from ..access import chromium
from ..access.chromium import Page
from ..access.mirror import say
from ..options import SMALL
from ..runs import KFP, Run
from ..scenario import Failed, Skip
from ..session import Session, Trial
from .common import add, check_complete, source

START = "#startNewRunBtn"
SHOWN = ("confusion", "report")
"""Artifacts that a reader of a run looks at: the confusion matrix, and the page with everything."""
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
        page.wait_for(f"document.querySelector('{START}') && document.getElementById('workspace')", "the form of a run")
        filled = _fill(trial, page)
        page.screenshot(folder / "form.png")
        page.click(START)
        run = _started(trial, links["experimentId"])
    run.succeed(trial.deadline)
    check_complete(trial, run)
    with chromium.opened(chromium.find_chromium(), trial.deadline) as page:
        seen = _look_at_run(page, f"{base}/#/runs/details/{run.service_id}", folder)
    return f"{filled} fields filled, {run.workflow} succeeded, its page shows {seen} (pictures in {folder})"


def _fill(trial: Trial, page: Page) -> int:
    """Fill the form as the small run is; the number of fields that had to be touched."""
    values = choose(
        {**SMALL, "source": source(trial), "workspace": trial.workspace(trial.scenario), "seed": 31}
    ).arguments()  # fmt: skip
    touched = 0
    for name, value in values.items():
        if value in ("", None):
            continue
        field = f"#{name}"
        page.wait_for(f"document.querySelector({json.dumps(field)})", f"the parameter {name}")
        if page.evaluate(f"document.querySelector({json.dumps(field)}).getAttribute('role') === 'combobox'"):
            _choose(page, field, str(value))
        else:
            page.fill(field, str(value))
            shown = page.evaluate(f"document.querySelector({json.dumps(field)}).value")
            if shown != str(value):
                raise Failed(f"the form's field {name} holds {shown!r}, expected {value!r}")
        touched += 1
    return touched


def _choose(page: Page, field: str, value: str) -> None:
    """Take an entry of a drop-down list."""
    page.click(field)
    entry = f'li[data-value="{value}"]'
    page.click(entry)
    page.wait_for(f"!document.querySelector({json.dumps(entry)})", f"the list of {field} to close")


def _started(trial: Trial, experiment: str) -> Run:
    def made() -> Any:
        found = kfp.runs_in(trial, experiment)
        return found[0].run_id if found else None

    run_id = trial.mirror.wait(made, "the run that the form starts", trial.within(120), every=3)
    return kfp.find_run(trial, str(run_id), trial.workspace(trial.scenario), trial.deadline)


def _look_at_run(page: Page, url: str, folder: Path) -> str:
    """Open a run's page, all of its steps, and what it shows of the model."""
    page.open(url)
    page.wait_for("document.querySelector('.react-flow__node')", "the graph of the run")
    while page.evaluate("!!document.querySelector('[data-testid=expand-button]')") and not _titles(page, "Train"):
        page.click("[data-testid=expand-button]")
        time.sleep(_SETTLE_S)
    for step in STEPS:
        page.wait_for(f"document.querySelector('[title={json.dumps(step.capitalize())}]')", f"the step {step}")
    time.sleep(_SETTLE_S)
    page.screenshot(folder / "graph.png")
    shown = []
    for artifact in SHOWN:
        if not _titles(page, artifact):
            continue
        page.click(f'[title="{artifact}"] button')
        page.wait_for("[...document.querySelectorAll('button')].some(b => b.innerText.trim() === 'Visualization')",
                      f"the artifact {artifact}")  # fmt: skip
        page.evaluate(
            "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Visualization').click()"
        )
        time.sleep(2 * _SETTLE_S)
        page.screenshot(folder / f"{artifact}.png")
        if "fail" in page.text().lower() and "error" in page.text().lower():
            raise Failed(f"the page can't show {artifact}: {page.text()[:300]}")
        shown.append(artifact)
        say(f"{folder}/{artifact}.png")
    if not shown:
        raise Failed(f"the run's page has none of {', '.join(SHOWN)}: {page.text()[:300]}")
    return ", ".join(("the graph", *shown))


def _titles(page: Page, title: str) -> bool:
    return bool(page.evaluate(f"!!document.querySelector('[title={json.dumps(title)}]')"))


def _lacks(session: Session) -> str:
    return "" if chromium.find_chromium() else "no Chromium here: apt-get install chromium, or CHROMIUM names it"


def register() -> None:
    about = "the form of KFP's pages filled in a browser, started, and the run's page looked at"
    add(KFP, "pages", about, _form, lacks=_lacks)
