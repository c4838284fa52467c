"""For MkDocs: links that leave docs/ work in the repository, and lead there from the pages."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:]+)\)")  # a colon begins an address


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Points [text](../path) at the repository; without its address the text alone stays."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if posixpath.commonpath(["docs", target]) == "docs":
            return link[0]
        address = config.extra["repository"]
        return f"[{link[1]}]({address.rstrip('/')}/{target})" if address else link[1]

    return LINK.sub(moved, markdown)
