"""The page as one HTML file, and the Content-Security-Policy that lets only its own parts in."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path

_STATIC = Path(__file__).with_name("static")
# Nothing of a job's text can become a part that runs: what may run is named by its sha256.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def live() -> str:
    """The page that asks its server."""
    return _page("", "")


def export(data: str) -> str:
    """The page with all it shows in itself; `data` is JSON."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy("none"))}">'
    # JSON may say `<` in another way; `</script>` and `<!--` cannot stand in it then.
    inside = data.replace("<", "\\u003c")
    return _page(meta, f'<script type="application/json" id="data">{inside}</script>')


def policy() -> str:
    """The header for the page of `live`; no other page may show it in a frame."""
    return f"{_policy('self')}; frame-ancestors 'none'"


def _page(meta: str, data: str) -> str:
    return (
        _static("page.html")
        .replace("<!-- meta -->", meta)
        .replace("<!-- style -->", f"<style>{_static('page.css')}</style>")
        .replace("<!-- script -->", f"{data}<script>{_static('page.js')}</script>")
    )


def _policy(connect: str) -> str:
    return _POLICY.format(script=_hash("page.js"), style=_hash("page.css"), connect=f"'{connect}'")


def _hash(name: str) -> str:
    digest = hashlib.sha256(_static(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
