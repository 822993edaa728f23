"""Tables of report rows: the text of each format, and what is escaped."""

from __future__ import annotations

import csv
import io

import pytest

from tests.support.results import distilled, full, real
from textdistill.reporting.rows import report_rows
from textdistill.reporting.tables import comma_separated, latex, markdown


def test_markdown() -> None:
    results = [distilled(0.81, 0.83), real("random", 0.5, 0.52), full(), distilled(0.4, task="other")]
    assert (
        markdown(report_rows(results))
        == """\
### other, tiny, protocol clean

100 rows of test.

| method | samples per class | steps | labels | attention labels | positions | accuracy | learners | outer steps | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| distilled | 1 | 1 | soft | cls | 8 | 0.4000 | 1 | 10 | 1.5 |

### toy, tiny, protocol clean

100 rows of test.

| method | samples per class | steps | labels | attention labels | positions | accuracy | of full data | over random | learners | outer steps | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| distilled | 1 | 1 | soft | cls | 8 | 0.8200 ± 0.0141 | 91.1% | +0.3100 | 2 | 10 | 1.5 |
| random, inner loop | 1 | 1 |  |  |  | 0.5100 ± 0.0141 | 56.7% | +0.0000 | 2 |  |  |
| full data |  |  |  |  |  | 0.9000 | 100.0% |  | 1 |  |  |
"""  # noqa: E501
    )


def test_csv_has_every_number_in_full() -> None:
    results = [distilled(0.81, 0.83), real("random", 0.5), full(task='a,"b"\nc')]
    rows = list(csv.DictReader(io.StringIO(comma_separated(report_rows(results)))))
    assert [row["task"] for row in rows] == ['a,"b"\nc', "toy", "toy"]
    assert [row["method"] for row in rows] == ["full data", "distilled", "random, inner loop"]
    assert float(rows[1]["accuracy_std"]) == pytest.approx(0.0141421356)
    assert float(rows[1]["over_random"]) == pytest.approx(0.32)
    assert (rows[1]["seeds"], rows[1]["learners"], rows[1]["minutes"], rows[1]["of_full"]) == ("1", "2", "1.5", "")
    assert (rows[0]["positions"], rows[0]["accuracy_std"]) == ("", "")


def test_latex() -> None:
    task = "a_b & {c}"
    assert (
        latex(report_rows([distilled(0.81, 0.83, task=task), full(task=task)]))
        == r"""\begin{table}
\caption{a\_b \& \{c\}, tiny, protocol clean: 100 rows of test.}
\begin{tabular}{lrrllrrrrrr}
\toprule
method & samples per class & steps & labels & attention labels & positions & accuracy & of full data & learners & outer steps & minutes \\
\midrule
distilled & 1 & 1 & soft & cls & 8 & 0.8200 $\pm$ 0.0141 & 91.1\% & 2 & 10 & 1.5 \\
full data &  &  &  &  &  & 0.9000 & 100.0\% & 1 &  &  \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501
    )


def test_markdown_keeps_text_in_its_cell() -> None:
    table = markdown(report_rows([distilled(0.5, task="<b>|`a`\n# x", made_for="[x](y)|")]))
    heading, *_, row = table.splitlines()
    assert heading == r"### &lt;b>\|\`a\` # x, tiny, protocol clean"
    assert row.startswith(r"| distilled for \[x\](y)\| | 1 | 1 |")
