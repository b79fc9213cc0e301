from pathlib import Path
from typing import Any

from django import template

from demo_project.ideas import IDEAS, Idea
from demo_project.sources import highlight, read

register = template.Library()


@register.simple_tag
def all_ideas() -> tuple[Idea, ...]:
    """Return the pages of the showcase."""
    return IDEAS


@register.inclusion_tag("demo_project/source.html")
def source(path: str, *, is_open: bool = False) -> dict[str, Any]:
    """Show a file of the demo, given its path in the demo's directory."""
    path = f"demo_project/{path}"
    text = read(path)
    return {
        "path": path,
        "lines": text.count("\n") + 1,
        "code": highlight(text, Path(path).suffix),
        "is_open": is_open,
    }
