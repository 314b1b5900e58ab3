"""The contents page of the methods: one line each, imported only when used."""

if __name__ == "methods":
    raise ImportError(
        "this folder is installed as 'clbench.methods'. Run 'pip install -e .' in the repository "
        "and import clbench.methods instead of methods."
    )

from clbench.contents import Entry

CONTENTS: dict[str, Entry] = {
    "seqlora": Entry("clbench.methods.seqlora:SeqLoRA", "one LoRA trained through all tasks", "Hu et al. 2022 (LoRA)"),
    "finetune": Entry("clbench.methods.finetune:FineTune", "all weights trained through all tasks", ""),
    "joint": Entry("clbench.methods.joint:Joint", "one LoRA on the union of all tasks: the upper bound", ""),
    "ncm": Entry(
        "clbench.methods.ncm:NCM", "nearest class mean of the untouched backbone", "Zhou et al. 2024 (SimpleCIL)"
    ),
    "replay": Entry(
        "clbench.methods.replay:Replay", "a LoRA and a small buffer of past samples", "Chaudhry et al. 2019 (ER)"
    ),
    "ewc": Entry(
        "clbench.methods.ewc:EWC", "a LoRA held back where the Fisher information is large", "Kirkpatrick et al. 2017"
    ),
    "olora": Entry(
        "clbench.methods.olora:OLoRA", "a new LoRA for each task, orthogonal to the past ones", "Wang et al. 2023"
    ),
    "l2p": Entry(
        "clbench.methods.l2p:L2P", "prompts from a pool, chosen for each sample by its features", "Wang et al. 2022"
    ),
    "hidelora": Entry(
        "clbench.methods.hidelora:HiDeLoRA",
        "a LoRA for each task, chosen by the inferred task, and a head aligned on class statistics",
        "Wang et al. 2024 (HiDe-PET)",
    ),
    "treelora": Entry(
        "clbench.methods.treelora.method:TreeLoRA",
        "a LoRA drawn towards the most similar past task, found by a bandit on a tree",
        "Qian et al. 2025",
    ),
}
