"""The simulated edge router (Traefik in Dokploy): answers a host name with a stack's page, 404 or 502."""

from datetime import UTC, datetime
from html import escape

from .container_engine import ContainerEngine
from .http_server import Request, Response
from .responses import sized_response, text_response
from .store import Row, Store


class Router:
    """A router with a table of its own: a route remains after the rows from which it was made are deleted."""

    def __init__(self, store: Store, engine: ContainerEngine) -> None:
        self._store = store
        self._engine = engine

    async def answer(self, request: Request) -> Response:
        route = self._find_route(host_name(request.headers.get("host", "")), request.path)
        if route is None:
            return text_response("404 page not found\n", 404, {"X-Content-Type-Options": "nosniff"})
        task = self._engine.serving_task(route["appName"])
        if task is None or not self._engine.listens(route["appName"]):
            return text_response("Bad Gateway", 502)
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "Cache-Control": "no-store",
        }
        html = page(self._store.services[route["appName"]], task, route)
        return sized_response("text/html", html, headers=headers)

    def _find_route(self, host: str, path: str) -> Row | None:
        """Return the matching route with the longest path, as Traefik does; of equally long ones the oldest."""
        matching = [
            route
            for route in self._store.routes.values()
            if route["host"].lower() == host and path.startswith(route["path"])
        ]
        return max(matching, key=lambda route: len(route["path"]), default=None)


def host_name(header: str) -> str:
    """Return the host in a Host header, without the port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower().rstrip(".")


def page(service: Row, task: Row, route: Row) -> str:
    started = datetime.fromtimestamp(task["startedAt"], UTC).replace(microsecond=0)
    values = {
        "name": service["application"],
        "image": task["image"],
        "host": route["host"],
        "iso": started.isoformat(),
        "started": f"{started:%d %B %Y, %H:%M:%S} UTC",
    }
    return PAGE.format_map({name: escape(value) for name, value in values.items()})


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>
:root {{ color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16181d; --soft: #5b6270;
  --line: #e3e6eb; --good: #14804a; --glow: #dff3e8 }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #101216; --card: #181b21; --ink: #eceef2;
  --soft: #9aa2b1; --line: #2a2f38; --good: #55cf92; --glow: #17301f }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }}
main {{ width: 100%; max-width: 34rem; padding: 2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 1rem }}
.state {{ display: inline-block; margin: 0; padding: .15rem .75rem; border-radius: 1rem;
  background: var(--glow); color: var(--good); font-size: .875rem; font-weight: 600 }}
h1 {{ margin: 1rem 0 .25rem; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere }}
.host {{ margin: 0 0 1.5rem; color: var(--soft); overflow-wrap: anywhere }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .5rem 1.5rem; margin: 0;
  padding-top: 1.25rem; border-top: 1px solid var(--line) }}
dt {{ color: var(--soft) }}
dd {{ margin: 0; overflow-wrap: anywhere }}
code {{ font: .9375rem ui-monospace, monospace }}
</style>
</head>
<body>
<main>
<p class="state">Running</p>
<h1>{name}</h1>
<p class="host">{host}</p>
<dl>
<dt>Image</dt><dd><code>{image}</code></dd>
<dt>Started</dt><dd><time datetime="{iso}">{started}</time></dd>
</dl>
</main>
</body>
</html>
"""
