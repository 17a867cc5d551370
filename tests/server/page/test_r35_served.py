"""R35, T-S16, T-S17: the page is an exact map of files from memory, under headers that let nothing foreign in."""

import re
from importlib.resources import files

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from llamita.server.page.page import HEADERS, NAMES, PATHS, page_routes

FOLDER = files("llamita.server.page")
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.router.routes.extend(page_routes())
    return TestClient(app)


def text_of(name: str) -> str:
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_r35_each_file_comes_whole_and_with_every_header(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content == FOLDER.joinpath(NAMES[path]).read_bytes()
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert answer.headers["content-security-policy"] == POLICY
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
def test_r35_media_types_are_those_that_nosniff_asks_for(path: str, media_type: str, client: TestClient) -> None:
    assert client.get(path).headers["content-type"] == media_type


@pytest.mark.parametrize(
    "path",
    [
        "/page", "/page/", "/page/page.py", "/page/__init__.py", "/page/../page.py", "/page/%2e%2e/__init__.py",
        "/page/..%2f..%2f..%2fetc%2fpasswd", "/page/app.js%00", "/page//app.js", "/index.html", "/page/index.html",
    ],
)  # fmt: skip
def test_ts16_no_other_path_is_served(path: str, client: TestClient) -> None:
    assert client.get(path, follow_redirects=False).status_code == 404


def test_r35_only_reading_is_allowed(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


def test_r35_the_page_stands_in_no_api_schema() -> None:
    app = FastAPI()
    app.router.routes.extend(page_routes())
    assert app.openapi()["paths"] == {}


def test_r35_every_file_of_the_folder_is_served() -> None:
    stored = {entry.name for entry in FOLDER.iterdir() if entry.name.rpartition(".")[2] in ("html", "css", "js", "svg")}
    assert stored == set(NAMES.values())


def test_ts17_the_document_has_no_inline_script_or_style_and_nothing_remote() -> None:
    html = text_of("index.html")
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html) == []
    for name in NAMES.values():
        remote = re.findall(r"""["'(](https?:)?//[\w.]""", text_of(name).replace("http://www.w3.org/2000/svg", ""))
        assert remote == [], name


@pytest.mark.parametrize("name", sorted(name for name in NAMES.values() if name.endswith(".js")))
def test_ts18_no_script_parses_html_or_code(name: str) -> None:
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser", text_of(name))
        == []
    )
