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
    "icl": Entry(
        "clbench.methods.icl:ICL",
        "a few training examples before each question; nothing is trained",
        "Brown et al. 2020",
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
    "inclora": Entry(
        "clbench.methods.inclora:IncLoRA",
        "a new LoRA for each task on the merged past ones",
        "Wang et al. 2023 (IncLoRA)",
    ),
    "inflora": Entry(
        "clbench.methods.inflora:InfLoRA",
        "a LoRA for each task whose fixed input side lies outside past tasks' inputs",
        "Liang and Li 2024",
    ),
    "sd-lora": Entry(
        "clbench.methods.sd_lora:SDLoRA", "past LoRAs as frozen directions with trained magnitudes", "Wu et al. 2025"
    ),
    "sapt": Entry(
        "clbench.methods.sapt:SAPT",
        "all tasks' LoRAs at once, weighted for each sample by attention",
        "Zhao et al. 2024",
    ),
    "tasl": Entry(
        "clbench.methods.tasl:TaSL", "one LoRA, merged with its past unit by unit as each mattered", "Feng et al. 2024"
    ),
    "pertask": Entry(
        "clbench.methods.pertask:PerTask",
        "a LoRA for each task, chosen by the true task: an upper reference",
        "Hu et al. 2022 (LoRA)",
    ),
    "l2p": Entry(
        "clbench.methods.l2p:L2P", "prompts from a pool, chosen for each sample by its features", "Wang et al. 2022"
    ),
    "l2pp": Entry(
        "clbench.methods.l2pp:L2PPlusPlus",
        "prefixes from a pool, chosen for each sample by its features",
        "Smith et al. 2023 (L2P++)",
    ),
    "dualprompt": Entry(
        "clbench.methods.dualprompt:DualPrompt",
        "prefixes for all tasks, and prefixes of each task found again by a key",
        "Wang et al. 2022 (DualPrompt)",
    ),
    "coda-prompt": Entry(
        "clbench.methods.coda_prompt:CodaPrompt",
        "prefixes made of weighted components, some new ones for each task",
        "Smith et al. 2023",
    ),
    "s-prompt": Entry(
        "clbench.methods.s_prompt:SPrompt",
        "a prompt and a classifier for each task, chosen by the nearest centroid",
        "Wang et al. 2022 (S-Prompts)",
    ),
    "hide-prompt": Entry(
        "clbench.methods.hide_prompt:HiDePrompt",
        "a prefix for each task, chosen by the inferred task, and a head aligned on class statistics",
        "Wang et al. 2023 (HiDe-Prompt)",
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
    "gem": Entry(
        "clbench.methods.gem:GEM",
        "a LoRA whose steps must not raise the loss on any past task's samples",
        "Lopez-Paz & Ranzato 2017",
    ),
    "agem": Entry(
        "clbench.methods.agem:AGEM",
        "a LoRA whose steps must not raise the loss on a batch of past samples",
        "Chaudhry et al. 2019 (A-GEM)",
    ),
    "ogd": Entry(
        "clbench.methods.ogd:OGD",
        "a LoRA whose steps are orthogonal to the gradients of past answers",
        "Farajtabar et al. 2020",
    ),
    "lwf": Entry("clbench.methods.lwf:LwF", "a LoRA that distils what it answered before the task", "Li & Hoiem 2016"),
    "derpp": Entry(
        "clbench.methods.derpp:DERpp", "a LoRA that replays samples with their logits", "Buzzega et al. 2020 (DER++)"
    ),
    "er-ace": Entry(
        "clbench.methods.er_ace:ERACE",
        "replay in which new samples compete among the new classes only",
        "Caccia et al. 2022",
    ),
    "si": Entry("clbench.methods.si:SI", "a LoRA held back where training gained the most", "Zenke et al. 2017"),
    "mas": Entry("clbench.methods.mas:MAS", "a LoRA held back where answers are sensitive", "Aljundi et al. 2018"),
    "aper-adapter": Entry(
        "clbench.methods.aper_adapter:APERAdapter",
        "class means of plain and first-task-adapted features",
        "Zhou et al. 2024 (APER)",
    ),
    "ranpac": Entry(
        "clbench.methods.ranpac:RanPAC",
        "ridge regression on random features of a network adapted in the first task",
        "McDonnell et al. 2023",
    ),
    "ease": Entry(
        "clbench.methods.ease:EASE",
        "an adapter a task, and class means in the subspaces of all",
        "Zhou et al. 2024 (EASE)",
    ),
    "slca": Entry(
        "clbench.methods.slca:SLCA",
        "a slow backbone, and a head aligned on Gaussians of all classes",
        "Zhang et al. 2023",
    ),
}
