"""One self-contained HTML page of a run, of a comparison or of an evaluation.

`gather` reads a folder into typed facts, `charts` and `settings` make of them what is shown, `page` puts it into
`assets/`. The page asks nothing of any network: plotly.js, the style and the pictures are inside.
"""

from augury_lab.report.page import REPORT as REPORT
from augury_lab.report.page import write_report as write_report
