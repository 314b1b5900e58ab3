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
    "trace-tiny": Entry("clbench.suites.trace_tiny:trace_tiny", "eight small text tasks in TRACE's form, a small LM"),
    "trace": Entry("clbench.suites.trace:trace", "TRACE's eight text tasks, 5,000 rows each, or any folder like it"),
    "trace-500": Entry("clbench.suites.trace:trace_500", "TRACE's eight text tasks, 500 rows each"),
    "trace-15": Entry("clbench.suites.trace:trace_15", "TRACE's eight and seven of O-LoRA's, 500 rows each"),
    "trace-compat": Entry("clbench.suites.trace:trace_compat", "trace as TRACE's code does it"),
    "trace-500-compat": Entry("clbench.suites.trace:trace_500_compat", "trace-500 as TreeLoRA's code does it"),
    "olora-order1": Entry("clbench.suites.olora:order1", "4 classification tasks, the O-LoRA benchmark's order 1"),
    "olora-order2": Entry("clbench.suites.olora:order2", "4 classification tasks, the O-LoRA benchmark's order 2"),
    "olora-order3": Entry("clbench.suites.olora:order3", "4 classification tasks, the O-LoRA benchmark's order 3"),
    "olora-order4": Entry("clbench.suites.olora:order4", "15 classification tasks, the O-LoRA benchmark's order 4"),
    "olora-order5": Entry("clbench.suites.olora:order5", "15 classification tasks, the O-LoRA benchmark's order 5"),
    "olora-order6": Entry("clbench.suites.olora:order6", "15 classification tasks, the O-LoRA benchmark's order 6"),
    "cifar100": Entry(
        "clbench.suites.vision:cifar100", "Split CIFAR-100, 10 tasks x 10 classes, ViT-B/16, equal recipe"
    ),
    "cifar100-20x5": Entry("clbench.suites.vision:cifar100_20x5", "Split CIFAR-100, 20 tasks x 5 classes"),
    "cifar100-5x20": Entry("clbench.suites.vision:cifar100_5x20", "Split CIFAR-100, 5 tasks x 20 classes"),
    "cifar100-b50": Entry("clbench.suites.vision:cifar100_b50", "Split CIFAR-100, 50 classes at once, then 5 x 10"),
    "imagenet-r": Entry(
        "clbench.suites.vision:imagenet_r", "Split ImageNet-R, 10 tasks x 20 classes, ViT-B/16, equal recipe"
    ),
    "imagenet-r-5": Entry("clbench.suites.vision:imagenet_r_5", "Split ImageNet-R, 5 tasks x 40 classes"),
    "imagenet-r-20": Entry("clbench.suites.vision:imagenet_r_20", "Split ImageNet-R, 20 tasks x 10 classes"),
    "cub200": Entry("clbench.suites.vision:cub200", "Split CUB-200, 10 tasks x 20 birds, ViT-B/16, equal recipe"),
    "imagenet-a": Entry(
        "clbench.suites.vision:imagenet_a", "Split ImageNet-A, 10 tasks x 20 classes, ViT-B/16, equal recipe"
    ),
    "tiny-imagenet": Entry("clbench.suites.vision:tiny_imagenet", "Split Tiny ImageNet, 10 tasks x 20 classes"),
    "pacs": Entry("clbench.suites.vision:pacs", "PACS, 4 domains, the same 7 classes in each"),
    "cifar100-subset": Entry("clbench.suites.vision:cifar100_subset", "a part of CIFAR-100 at 32 pixels, on a CPU"),
    "cifar100-subset-b50": Entry("clbench.suites.vision:cifar100_subset_b50", "the same, 50 classes, then 5 x 10"),
    "cifar100-parity-hide": Entry("clbench.suites.vision_parity:cifar100_hide", "as TreeLoRA and HiDe-Prompt"),
    "imagenet-r-parity-hide": Entry("clbench.suites.vision_parity:imagenet_r_hide", "as TreeLoRA and HiDe-Prompt"),
    "cub200-parity-hide": Entry("clbench.suites.vision_parity:cub200_hide", "as TreeLoRA and HiDe-Prompt"),
    "cifar100-parity-pilot": Entry("clbench.suites.vision_parity:cifar100_pilot", "as PILOT, SD-LoRA and SLCA"),
    "imagenet-r-parity-pilot": Entry("clbench.suites.vision_parity:imagenet_r_pilot", "as PILOT, SD-LoRA and SLCA"),
    "cub200-parity-pilot": Entry("clbench.suites.vision_parity:cub200_pilot", "as PILOT, SD-LoRA and SLCA"),
    "cifar100-parity-coda": Entry("clbench.suites.vision_parity:cifar100_coda", "as CODA-Prompt and InfLoRA"),
    "imagenet-r-parity-coda": Entry("clbench.suites.vision_parity:imagenet_r_coda", "as CODA-Prompt and InfLoRA"),
}
