"""One table model, printed for a terminal, as Markdown, LaTeX or CSV."""
