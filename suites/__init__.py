"""The contents page of the suites: one line each, imported only when used."""

if __name__ == "suites":
    raise ImportError(
        "this folder is installed as 'clbench.suites'. Run 'pip install -e .' in the repository "
        "and import clbench.suites instead of suites."
    )

from clbench.contents import Entry

CONTENTS: dict[str, Entry] = {
    "quick": Entry("clbench.suites.digits:quick", "real handwritten digits, 5 tasks x 2 classes, two minutes"),
    "glyphs": Entry("clbench.suites.glyphs:glyphs", "letters of four unseen scripts, 10 tasks x 10 classes"),
    "treelora-ablation": Entry("clbench.suites.treelora:ablation", "which part of TreeLoRA does what, on letters"),
    "treelora-depth": Entry("clbench.suites.treelora:depth", "TreeLoRA in the first so many blocks, on letters"),
    "treelora-epochs": Entry("clbench.suites.treelora:epochs", "TreeLoRA for so many epochs a task, on letters"),
    "treelora-sensitivity": Entry("clbench.suites.treelora:sensitivity", "TreeLoRA's λ and step size, on letters"),
}
