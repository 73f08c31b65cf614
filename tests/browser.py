"""Opens a page in a browser, and finds what is cut off in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOLD = 800  # height of the window
CLIPPED = """
() => {
  const found = [], width = document.documentElement.clientWidth;
  const isShown = each => each.checkVisibility() && each.getClientRects().length > 0;
  for (const each of document.querySelectorAll("h1,h2,p,td,th,dt,dd,summary,figcaption,strong,svg text")) {
    if (!isShown(each) || each.closest("title")) continue;
    const box = each.getBoundingClientRect(), inside = each.closest("svg")?.getBoundingClientRect();
    const edge = inside ?? {left: 0, right: width};
    if (box.left < edge.left - 1 || box.right > edge.right + 1 || each.scrollWidth > each.clientWidth + 1 && !inside)
      found.push(`${each.tagName} ${each.textContent.slice(0, 40)}`);
  }
  for (const each of document.querySelectorAll(".wide"))
    if (isShown(each) && each.scrollWidth > each.clientWidth + 1) found.push(`a table in ${each.parentElement.id}`);
  return found;
}
"""
"""What is cut off or runs over, of all text that is shown."""


@contextmanager
def shown(path: Path, width: int, scheme: str) -> Iterator[Any]:
    """The page of a file in a window so wide, light or dark; it must complain of nothing and fetch nothing."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    complaints, requests = list[str](), list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": FOLD}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
