"""A cell whose parent failed: counted once, blamed on nothing of its own, compared with nothing, without a log."""

from collections.abc import Mapping
from typing import Any

import pytest
from synthetic import write_sweep

from egobench.records.outcome import OutcomeName
from egobench.report.collect import collect
from egobench.report.effects import effects
from egobench.report.markdown import markdown_page
from egobench.report.page import SIGNS, html_page
from egobench.report.rows import SweepRows
from egobench.report.scrub import scrub_rows
from egobench.report.tables import summary_csv
from egobench.report.verdict import decide

BECAUSE = "its parent tiny-4 did not end ok: oom"


def fate(axes: Mapping[str, Any], trial: int) -> tuple[OutcomeName, str]:
    """On 8 GPUs one trial of three, in bf16 all of them, wait in vain."""
    if axes["precision"] == "bf16" and axes["gpus"] == 4:
        return "oom", "CUDA out of memory"
    if axes["gpus"] == 8 and (axes["precision"] == "bf16" or trial == 1):
        return "parent_failed", BECAUSE
    return "ok", ""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> SweepRows:
    varied = {"precision": ["fp32", "bf16"], "gpus": [1, 4, 8]}
    return scrub_rows(collect(write_sweep(tmp_path_factory.mktemp("runs"), varied, fate=fate)))


def test_the_ledger_of_cells_and_of_trials(rows: SweepRows) -> None:
    assert (rows.ledger["parent_failed"], rows.ledger["oom"], rows.ledger["ok"]) == (2, 1, 3)
    assert (rows.trial_ledger["parent_failed"], rows.trial_ledger["oom"], rows.trial_ledger["ok"]) == (4, 3, 11)
    assert rows.ledger["planned"] == 6 and rows.trial_ledger["planned"] == 18


def test_it_is_not_met_and_not_called_unfinished(rows: SweepRows) -> None:
    judged = {cell.cell.cell_id: cell for one in decide(rows).workloads for cell in one.cells}
    waiting = [one for one in judged.values() if one.cell.outcome == "parent_failed"]
    assert [(one.reached, one.because) for one in waiting] == [(False, "not run: parent_failed")] * 2


def test_no_number_of_it_is_compared(rows: SweepRows) -> None:
    assert not any(8 in (*effect.before, *effect.after) for effect in effects(rows))


def test_page_and_tables_show_the_reason_and_no_log(rows: SweepRows) -> None:
    page = html_page(rows)
    failures = page[page.index('id="failures"') : page.index("</section>", page.index('id="failures"'))]
    lines = [line for line in failures.split("<tr>") if "parent_failed" in line]
    assert len(lines) == 2 and all(BECAUSE in line and "/log/" not in line for line in lines)
    assert "1 of 3" in lines[0] and "3 of 3" in lines[1]
    assert f'o-parent_failed">{SIGNS["parent_failed"]}</span> parent_failed' in page
    assert BECAUSE in markdown_page(rows)
    assert ",parent_failed," in summary_csv(rows)
