"""Writes `questions.ipynb`, which answers six questions from a store: `python docs/notebook.py`."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CELLS = [
    ("text", "# Six questions about a study\n\n"
             "Run a sweep first (`make demo`). Set `SHAPING_STORE` to read another store."),
    ("code", "import os\n\nimport analysis\n\nSTORE = os.environ.get('SHAPING_STORE', '../store')\n"
             "frame = analysis.load(STORE)\nframe.groupby(['model', 'objective', 'stage'], observed=True).size()"),
    ("text", "## 1. Does shaping change entropy but not perplexity?"),
    ("code", "text = frame.query(\"stage == 'pretrain' and group == 'text' and variant == ''\")\n"
             "last = text[text['step'] == text['step'].max()]\n"
             "last.pivot_table(index='objective', columns='metric', values='value', observed=True)"),
    ("text", "## 2. How much does each setting gain in RL?"),
    ("code", "rl = frame.query(\"stage == 'grpo' and group == 'math' and variant == ''\")\n"
             "rl = rl[rl['metric'].str.startswith('avg@')]\n"
             "gain = rl.pivot_table(index='objective', columns='step', values='value', observed=True) * 100\n"
             "gain.assign(gain=gain.iloc[:, -1] - gain.iloc[:, 0]).round(1)"),
    ("text", "## 3. Is a difference real? Paired by seed, with the number of seeds needed to tell"),
    ("code", "import pandas as pd\n\nfrom analysis.statistics import holm, permutation_test, seeds_needed\n\n"
             "end = rl[rl['step'] == rl['step'].max()]\n"
             "by_seed = end.pivot_table(index='seed', columns='objective', values='value', observed=True)\n"
             "others = [name for name in by_seed if name != 'ce']\n"
             "differences = by_seed[others].sub(by_seed['ce'], axis=0)\n"
             "tests = {'mean': pd.Series.mean, 'p': permutation_test, 'seeds needed': seeds_needed}\n"
             "answers = pd.DataFrame({name: {column: test(d) for column, test in tests.items()}\n"
             "                        for name, d in differences.items()}).T.astype(float)\n"
             "answers.assign(**{'p, corrected': holm(answers['p'].to_numpy())})"),
    ("text", "## 4. Does entropy collapse in RL?"),
    ("code", "curves = analysis.ledger(STORE, 'grpo')\n"
             "ends = curves.sort_values('step').groupby(['objective', 'seed'])[['entropy', 'response_length']]\n"
             "ends.agg(['first', 'last'])"),
    ("text", "## 5. What are the verdicts on the claims?"),
    ("code", "from analysis.claim_sources import StudySource\n"
             "from analysis.claims import applicable, judge, read_claims, sentences\n"
             "from analysis.study import read_stored\nfrom sweeps.store.stage_runs import Store\n\n"
             "study = read_stored(Store.open(STORE))\nsource = StudySource(study)\n"
             "print('\\n'.join(sentences(judge(applicable(read_claims(), source), source))))"),
    ("text", "## 6. Who learns sooner in RL, and what does it cost in entropy?\n\n"
             "`area` is the mean reward on held-out problems over the course of RL, in percent."),
    ("code", "runs = analysis.rl_runs(STORE)\n"
             "runs['setting'] = (runs['objective'] + ' ' + runs['variant']).str.strip()\n"
             "runs.groupby('setting')[['area', 'gain', 'entropy_spent', 'entropy_price']].agg(['mean', 'std'])"),
]  # fmt: skip


def notebook() -> nbformat.NotebookNode:
    """Returns the notebook, not executed; cell ids are counted, so that the same cells give the same file."""
    make = {"text": new_markdown_cell, "code": new_code_cell}
    cells = [make[cell_type](source, id=f"cell-{number}") for number, (cell_type, source) in enumerate(CELLS)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    nbformat.write(notebook(), Path(__file__).with_name("questions.ipynb"))
