"""Reports: tables as text, CSV, Markdown, LaTeX and JSON."""
