"""The system checks of the portal's settings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import ERROR, CheckMessage, run_checks

from ..processes import ROOT

# Settings for a real Dokploy, with which every check passes.
VALID = {
    "DEMO": False,
    "DOKPLOY_URL": "https://dokploy.example.org",
    "DOKPLOY_API_KEY": "a-key-for-the-checks",
    "STACK_IMAGE": "ghcr.io/example/stack:1",
    "STACK_DOMAIN_SUFFIX": "apps.example.net",
    "STACK_URL": "https://{name}.apps.example.net",
    "STACK_CERTIFICATE": "letsencrypt",
    "STACK_ROUTER_ADDRESS": "",
    "STACK_REGISTRIES": [],
    "ALLOWED_HOSTS": ["portal.example.org"],
    "PORTAL_OPEN": False,
    "SIMULATOR_SWITCH_KEY": "",
    "FAULT": "",
    "DATABASE_URL": "",
    "REDIS_URL": "",
}

FAULT_TEST = {
    "DOKPLOY_URL": "http://127.0.0.1:3000",
    "ALLOWED_HOSTS": ["localhost"],
    "STACK_DOMAIN_SUFFIX": "apps.test",
}


@pytest.fixture
def run_portal_checks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the checks with these settings changed and returns the messages by their id."""
    monkeypatch.setenv("STACK_IMAGE", "set")
    monkeypatch.setenv("STACK_DOMAIN_SUFFIX", "set")

    def run(**changed: Any) -> dict[str, CheckMessage]:
        for name, value in {**VALID, **changed}.items():
            setattr(settings, name, value)
        messages = [message for message in run_checks() if message.id.startswith("deployportal.")]
        return {message.id.removeprefix("deployportal."): message for message in messages}

    return run


def test_valid_settings_pass(run_portal_checks: Any) -> None:
    assert run_portal_checks() == {}


def test_the_demo_passes() -> None:
    assert [message for message in run_checks() if message.id.startswith("deployportal.")] == []


@pytest.mark.parametrize(
    ("changed", "id", "text"),
    [
        ({"DOKPLOY_API_KEY": ""}, "E001", "DOKPLOY_API_KEY"),
        ({"DOKPLOY_API_KEY": "canary-schl\u00fcssel"}, "E015", "plain letters"),
        ({"DOKPLOY_API_KEY": "canary\ncanary"}, "E015", "one line"),
        ({"DOKPLOY_URL": "dokploy.example.org"}, "E002", "DOKPLOY_URL"),
        ({"DOKPLOY_URL": "ftp://dokploy.example.org"}, "E002", "DOKPLOY_URL"),
        ({"DOKPLOY_URL": "https://dokploy.example.org/api"}, "E002", "no path"),
        ({"DOKPLOY_URL": "https://dokploy.example.org?x=1"}, "E002", "DOKPLOY_URL"),
        ({"DOKPLOY_URL": "https://user:canary@dokploy.example.org"}, "E002", "no password"),
        ({"DOKPLOY_URL": "https://dokploy.example.org:99999"}, "E002", "DOKPLOY_URL"),
        ({"DOKPLOY_URL": "https://[::1"}, "E002", "DOKPLOY_URL"),
        ({"DOKPLOY_URL": "http://dokploy.example.org"}, "W001", "https"),
        ({"STACK_DOMAIN_SUFFIX": ".apps.example.net"}, "E003", "without a dot in front"),
        ({"STACK_DOMAIN_SUFFIX": "apps example"}, "E003", "not a host name"),
        ({"STACK_DOMAIN_SUFFIX": ""}, "E003", "not a host name"),
        ({"STACK_DOMAIN_SUFFIX": "apps.example.net\n"}, "E003", "not a host name"),
        ({"STACK_URL": "https://stack.apps.example.net"}, "E004", "its own address"),
        ({"STACK_URL": "https://apps.{name}.apps.example.net"}, "E004", "first label"),
        ({"STACK_URL": "https://apps.example.net/{name}"}, "E004", "first label"),
        ({"STACK_URL": "https://{name}.apps.example.net/{name}"}, "E004", "first label"),
        ({"STACK_URL": "ftp://{name}.apps.example.net"}, "E004", "STACK_URL"),
        ({"STACK_URL": "{name}.apps.example.net"}, "E004", "STACK_URL"),
        ({"STACK_CERTIFICATE": "LetsEncrypt"}, "E005", "letsencrypt, wildcard, none"),
        ({"STACK_CERTIFICATE": ""}, "E005", "letsencrypt, wildcard, none"),
        ({"STACK_CERTIFICATE": "none"}, "W002", "https"),
        ({"STACK_URL": "http://{name}.apps.example.net"}, "W002", "not used"),
        ({"STACK_IMAGE": "Not An Image"}, "E006", "[registry/]name[:tag]"),
        ({"STACK_IMAGE": "image; rm -rf /"}, "E006", "[registry/]name[:tag]"),
        ({"STACK_REGISTRIES": ["registry.example.org"]}, "E006", "registry.example.org"),
        ({"STACK_PORT": 0}, "E007", "1 to 65535"),
        ({"STACK_PORT": 65536}, "E007", "1 to 65535"),
        ({"STACK_ROUTER_ADDRESS": "192.0.2.7"}, "E008", "host:port"),
        ({"STACK_ROUTER_ADDRESS": "192.0.2.7:0"}, "E008", "host:port"),
        ({"STACK_ROUTER_ADDRESS": ":443"}, "E008", "host:port"),
        ({"STACK_ROUTER_ADDRESS": "http://192.0.2.7:443"}, "E008", "host:port"),
        ({"STACK_ROUTER_ADDRESS": "::1:443"}, "E008", "host:port"),
        ({"PORTAL_OPEN": True}, "W005", "without signing in"),
        ({"ALLOWED_HOSTS": ["portal.apps.example.net"]}, "W006", "share a site"),
        ({"ALLOWED_HOSTS": ["APPS.example.net"]}, "W006", "share a site"),
        ({"ALLOWED_HOSTS": ["*"]}, "E009", "ALLOWED_HOSTS"),
        ({"ALLOWED_HOSTS": [".example.org"]}, "E009", "ALLOWED_HOSTS"),
        ({"SECRET_KEY": "k" * 39}, "E010", "40"),
        ({"SIMULATOR_SWITCH_KEY": "canary"}, "E011", "Remove"),
        ({"FAULT": "creating_project:project.create:answered"}, "E016", "Remove"),
        ({"FAULT": "record:canary", **FAULT_TEST, "ALLOWED_HOSTS": ["portal.example.org"]}, "E016", "Remove"),
        ({"FAULT": "record:canary", **FAULT_TEST, "DOKPLOY_URL": "https://dokploy.example.org"}, "E016", "Remove"),
        ({"FAULT": "record:canary", **FAULT_TEST, "STACK_DOMAIN_SUFFIX": "apps.example.net"}, "E016", "Remove"),
        ({"FAULT": "record:canary", "DEMO": True}, "E016", "Remove"),
        ({"PORT": 0}, "E012", "PORT"),
        ({"PORT": 65536}, "E012", "PORT"),
        ({"PORT": 65534, "DEMO": True}, "E012", "65533"),
        ({"ENCRYPTION_KEYS": ["canary"]}, "E013", "ENCRYPTION_KEYS"),
        ({"ENCRYPTION_KEYS": [""]}, "E013", "ENCRYPTION_KEYS"),
        ({"TRUSTED_PROXIES": -1}, "E014", "TRUSTED_PROXIES"),
        ({"STACK_URL": "https://{name}.elsewhere.example"}, "W009", "STACK_DOMAIN_SUFFIX"),
    ],
)
def test_a_wrong_setting_is_reported_in_a_sentence(
    run_portal_checks: Any, changed: dict[str, Any], id: str, text: str
) -> None:
    message = run_portal_checks(**changed)[id]
    assert text in f"{message.msg} {message.hint}"
    assert (message.msg[-1], message.hint[-1]) == (".", "."), "not a sentence"
    assert any(name in message.msg for name in [*changed, "portal", "STACK_IMAGE"]), "does not name the setting"
    assert (message.level >= ERROR) == id.startswith("E")
    assert "canary" not in f"{message.msg} {message.hint}"


@pytest.mark.parametrize(
    "changed",
    [
        {"DOKPLOY_URL": "https://dokploy.example.org/"},
        {"DOKPLOY_URL": "http://127.0.0.1:3000"},
        {"FAULT": "record:points", **FAULT_TEST, "STACK_URL": "https://{name}.apps.test"},
        {"DOKPLOY_URL": "http://[::1]:3000"},
        {"DOKPLOY_URL": "http://localhost:3000"},
        {"STACK_ROUTER_ADDRESS": "router.example.org:443"},
        {"STACK_ROUTER_ADDRESS": "[::1]:443"},
        {"STACK_URL": "https://{name}-stack.apps.example.net"},
        {"STACK_CERTIFICATE": "wildcard"},
        {"STACK_REGISTRIES": ["ghcr.io"]},
        {"ALLOWED_HOSTS": ["portal-apps.example.net"]},
        {"PORT": 65535},
    ],
)
def test_other_valid_settings_pass(run_portal_checks: Any, changed: dict[str, Any]) -> None:
    assert run_portal_checks(**changed) == {}


@pytest.mark.parametrize(("name", "id"), [("STACK_IMAGE", "W003"), ("STACK_DOMAIN_SUFFIX", "W004")])
def test_a_default_of_the_former_service_is_a_warning_with_a_real_dokploy(
    run_portal_checks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, id: str
) -> None:
    monkeypatch.delenv(name)
    assert VALID[name] in run_portal_checks()[id].msg
    assert id not in run_portal_checks(DEMO=True)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "value"))
    assert run_portal_checks() == {}


def test_an_untested_database_and_missing_redis_are_warnings(run_portal_checks: Any, settings: Any) -> None:
    database = {"DATABASE_URL": "sqlite:////tmp/portal.sqlite3"}
    assert set(run_portal_checks(**database)) == {"W007", "W008"}
    assert set(run_portal_checks(**database, REDIS_URL="redis://localhost")) == {"W008"}


def manage(data_dir: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return subprocess.run(
        [sys.executable, "manage.py", *command.split()],
        cwd=ROOT,
        env={**inherited, "DATA_DIR": str(data_dir), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_portal_does_not_start_with_fault_switches_and_a_real_dokploy(tmp_path: Path) -> None:
    real = {"DOKPLOY_URL": "https://dokploy.example.org", "DOKPLOY_API_KEY": "a-key"}
    process = manage(tmp_path, "serve", **real, SIMULATOR_SWITCH_KEY="switch-canary")
    assert process.returncode != 0
    assert "fault switches are for the demo only" in process.stderr
    assert "canary" not in process.stdout + process.stderr
    assert not (tmp_path / "portal.sqlite3").exists()


def test_the_scaled_out_settings_pass_the_deployment_checks(tmp_path: Path) -> None:
    paragraph = next(text for text in (ROOT / "Makefile").read_text().split("\n\n") if "SCALED_OUT :=" in text)
    words = paragraph.partition(":=")[2].replace("\\\n", " ").split()
    env = dict(word.split("=", 1) for word in words if not word.startswith(("DATA_DIR", "-d)")))
    process = manage(tmp_path, "check --deploy --fail-level WARNING", **env)
    assert process.returncode == 0, process.stderr
