"""Crawls a web site: actors fetch pages, several at a time each; the driver follows the links that come back.

    python web_crawler.py [--pages N] [--fetchers N] [--seed N]

The site is made for the occasion: a folder of pages that link to each other at random, to pages that are not
there, and to other hosts, served on a free port of this machine. Pages arrive in any order, so the report is
made, and sorted, after the last of them.
"""

from __future__ import annotations

import argparse
import collections
import functools
import html.parser
import http.server
import itertools
import random
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray

FETCH_TIMEOUT_S = 30.0
FETCHES_PER_ACTOR = 4


class BrokenLink(Exception):
    """The server has no such page."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(url, status)
        self.url = url
        self.status = status


@dataclass
class Page:
    """What is known of a page that was fetched."""

    url: str
    title: str = ""
    size_bytes: int = 0
    links: list[str] = field(default_factory=list)
    """Whole URLs without fragments, in the order of the page."""


class PageParser(html.parser.HTMLParser):
    """Title and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.links: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


@ray.remote(max_concurrency=FETCHES_PER_ACTOR)
class Fetcher:
    """Fetches pages, each call in a thread of its own."""

    def __init__(self) -> None:
        # The site is on this machine: no proxy that the environment may name.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(self, url: str) -> Page:
        """Raises BrokenLink."""
        try:
            with self._opener.open(url, timeout=FETCH_TIMEOUT_S) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise BrokenLink(url, error.code) from None
        parser = PageParser()
        parser.feed(data.decode())
        links = [urllib.parse.urldefrag(urllib.parse.urljoin(url, link)).url for link in parser.links]
        return Page(url, parser.title, len(data), links)


def crawl(start: str, num_fetchers: int) -> tuple[dict[str, Page], list[BrokenLink]]:
    """Every page of the site that can be reached from `start`, by URL, and the links that lead nowhere."""
    fetchers = itertools.cycle([Fetcher.remote() for _ in range(num_fetchers)])
    site = urllib.parse.urlsplit(start).netloc
    pages: dict[str, Page] = {}
    broken: list[BrokenLink] = []
    seen = {start}
    pending = [next(fetchers).fetch.remote(start)]
    while pending:
        [done], pending = ray.wait(pending)
        try:
            page = ray.get(done)
        except BrokenLink as error:
            broken.append(error)
            continue
        pages[page.url] = page
        for link in page.links:
            if link not in seen and urllib.parse.urlsplit(link).netloc == site:
                seen.add(link)
                pending.append(next(fetchers).fetch.remote(link))
    return pages, broken


def depths(pages: dict[str, Page], start: str) -> dict[str, int]:
    """How many links each page is away from the start."""
    found = {start: 0}
    queue = collections.deque([start])
    while queue:
        url = queue.popleft()
        for link in pages[url].links:
            if link in pages and link not in found:
                found[link] = found[url] + 1
                queue.append(link)
    return found


def write_site(folder: Path, num_pages: int, seed: int) -> None:
    """index.html and num_pages others in subfolders, of which a few are linked by nobody."""
    rng = random.Random(seed)
    paths = ["index.html"] + [f"part{number % 3}/page{number:02}.html" for number in range(num_pages)]
    for number, path in enumerate(paths):
        targets = ["/" + target for target in rng.sample(paths, k=min(3, len(paths)))]
        if number % 7 == 3:
            targets += [f"gone{number}.html", "http://elsewhere.invalid/index.html"]
        if number % 5 == 1:
            targets += ["/index.html#top", "#here"]
        links = "".join(f'<li><a href="{target}">{target}</a></li>' for target in targets)
        head = f"<head><title>Page {number} of {len(paths)}</title></head>"
        text = f"<html>{head}<body><ul>{links}</ul></body></html>\n"
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line of log for each request."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL under which the folder is served meanwhile."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=30, help="of the site (default: %(default)s)")
    parser.add_argument("--fetchers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=11, help="of the links (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.pages < 1 or arguments.fetchers < 1:
        parser.error("--pages and --fetchers must be at least 1")

    ray.init(num_cpus=4)
    with tempfile.TemporaryDirectory() as folder:
        write_site(Path(folder), arguments.pages, arguments.seed)
        with serving(Path(folder)) as root:
            pages, broken = crawl(root + "index.html", arguments.fetchers)
    ray.shutdown()

    links_to = collections.Counter(link for page in pages.values() for link in page.links)
    by_depth = sorted((depth, url) for url, depth in depths(pages, root + "index.html").items())
    for depth, url in by_depth:
        page = pages[url]
        print(
            f"{depth}  {url.removeprefix(root):<18}  {page.title:<14}  {page.size_bytes:>4} bytes"
            f"  linked {links_to[url]} times"
        )
    for error in sorted(broken, key=lambda error: error.url):
        print(f"{error.status} for {error.url.removeprefix(root)}")
    print(
        f"{len(pages)} pages and {len(broken)} broken links;"
        f" {arguments.pages + 1 - len(pages)} pages that no link leads to"
    )


if __name__ == "__main__":
    main()
