"""The pages of the showcase, in the order of the navigation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Idea:
    """One page. ``name`` is the name of its URL."""

    name: str
    title: str
    summary: str


IDEAS = (
    Idea("metrics", "Live metrics", "The load of this machine, drawn once a second."),
    Idea(
        "headlines",
        "Headlines",
        "HTML over the wire: a list that grows, and no JavaScript.",
    ),
    Idea("job", "Job progress", "An async generator that ends, and is not run again."),
    Idea("long-job", "A long job", "In a process of its own: follow it, stop it, retry it."),
    Idea("chat", "Chat", "A group for each room. Open it in two browsers."),
    Idea("text", "Text, word by word", "An answer that appears while it is written."),
    Idea(
        "lasting-answer",
        "An answer that survives",
        "Reload it, open it elsewhere, stop it, kill its server.",
    ),
    Idea("last-word", "The last word", "Cancel a group, reopen it, or kick one user."),
    Idea("tabs", "Twenty tabs", "As many tabs as you like, on one connection."),
)
