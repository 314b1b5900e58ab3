"""TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355): a tree of tasks, a bandit on it, a penalty."""
