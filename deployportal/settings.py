"""All settings. Each value comes from the environment variable NAME, or from the file that NAME_FILE names.

Only DEMO relaxes defaults and checks. It is true without DOKPLOY_URL: `manage.py serve` then starts the simulator.
FAULT also works in fault tests that use a Dokploy server on this machine (deployments/worker/failpoints.py).
"""

import os
import secrets
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dj_database_url
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION: str = tomllib.loads((BASE_DIR / "pyproject.toml").read_text())["project"]["version"]


def text(name: str, default: str = "") -> str:
    """Return the value of NAME, or the stripped content of the file that NAME_FILE names."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE: {path} can't be read ({error.strerror}).") from None
    return os.environ.get(name, default).strip()


def number(name: str, default: float) -> float:
    raw = text(name)
    try:
        return float(raw) if raw else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {raw!r}: it must be a number.") from None


def flag(name: str, default: bool) -> bool:
    raw = text(name).lower()
    if raw not in ("", "0", "1", "true", "false", "yes", "no", "on", "off"):
        raise ImproperlyConfigured(f"{name} is {raw!r}: it must be 1 or 0.")
    return raw in ("1", "true", "yes", "on") if raw else default


def words(name: str, default: str = "") -> list[str]:
    return [word for word in text(name, default).replace(",", " ").split() if word]


DATA_DIR = Path(text("DATA_DIR", str(BASE_DIR / "var")))
DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)


def key(name: str, file: str, make: Callable[[], str]) -> str:
    """Return the value of NAME, or a key that is created once in the data directory with mode 0600."""
    if given := text(name):
        return given
    path = DATA_DIR / file
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    value = make()
    with os.fdopen(descriptor, "w") as handle:
        handle.write(value)
    return value


# -- Dokploy, the demo and the simulator -------------------------------------------------------------------------------

PORT = int(number("PORT", 3000))
DOKPLOY_URL = text("DOKPLOY_URL")
DEMO = not DOKPLOY_URL
SIMULATOR_PORT, ROUTER_PORT = PORT + 1, PORT + 2

if DEMO:
    DOKPLOY_URL = f"http://127.0.0.1:{SIMULATOR_PORT}"
    DOKPLOY_API_KEY = key("SIMULATOR_API_KEY", "simulator-key", lambda: secrets.token_urlsafe(32))
else:
    DOKPLOY_API_KEY = text("DOKPLOY_API_KEY")
DOKPLOY_CALLS_PER_SECOND = number("DOKPLOY_CALLS_PER_SECOND", 0 if DEMO else 50)  # per API key and process; 0: no limit
DOKPLOY_PATIENCE_SECONDS = number("DOKPLOY_PATIENCE_SECONDS", 300)  # a phase waits so long for an unreachable Dokploy
DOKPLOY_DEPLOY_SECONDS = number("DOKPLOY_DEPLOY_SECONDS", 1800)  # limit of one deploy at Dokploy, with its queue

# How long the simulator takes (demo only). With a switch key, tests can control it.
SIMULATOR_PULL_SECONDS = number("SIMULATOR_PULL_SECONDS", 6)
SIMULATOR_START_SECONDS = number("SIMULATOR_START_SECONDS", 3)
SIMULATOR_LATENCY_SECONDS = number("SIMULATOR_LATENCY_SECONDS", 0.03)
SIMULATOR_MONITOR_SECONDS = number("SIMULATOR_MONITOR_SECONDS", 5)
SIMULATOR_SWITCH_KEY = text("SIMULATOR_SWITCH_KEY")
FAULT = text("FAULT")  # the failpoint at which the process ends (deployments/worker/failpoints.py; fault tests only)

# -- stacks: the first template, and every stack's URL -----------------------------------------------------------------

STACK_IMAGE = text("STACK_IMAGE", "git.app.flexinit.nl/oussamadouhou/oh-my-opencode-free:latest")
STACK_PORT = int(number("STACK_PORT", 8080))
STACK_DOMAIN_SUFFIX = text("STACK_DOMAIN_SUFFIX", "localhost" if DEMO else "ai.flexinit.nl")
STACK_URL = text(
    "STACK_URL",
    f"http://{{name}}.{STACK_DOMAIN_SUFFIX}:{ROUTER_PORT}" if DEMO else f"https://{{name}}.{STACK_DOMAIN_SUFFIX}",
)
STACK_CERTIFICATE = text("STACK_CERTIFICATE", "none" if DEMO else "letsencrypt")
STACK_ROUTER_ADDRESS = text("STACK_ROUTER_ADDRESS", f"127.0.0.1:{ROUTER_PORT}" if DEMO else "")
STACK_HEALTH_PATH = text("STACK_HEALTH_PATH", "/")
STACK_HEALTH_INTERVAL_SECONDS = number("STACK_HEALTH_INTERVAL_SECONDS", 5)
STACK_HEALTH_TIMEOUT_SECONDS = number("STACK_HEALTH_TIMEOUT_SECONDS", 60)
STACK_PROOF_SECONDS = number("STACK_PROOF_SECONDS", 2 if DEMO else 10)  # a new container must stay up so long
STACK_REGISTRIES = words("STACK_REGISTRIES")
STACK_RESERVED_NAMES = words("STACK_RESERVED_NAMES")

# -- access and limits -------------------------------------------------------------------------------------------------

PORTAL_OPEN = flag("PORTAL_OPEN", DEMO)
OPEN_USERNAME = "open"  # the user that owns the stacks of anonymous users
DEMO_USERNAME = "visitor"  # the user that every local client of the demo acts as
PORTAL_QUOTA = int(number("PORTAL_QUOTA", 50 if DEMO else 10))  # stacks per user, or per address of anonymous users
PORTAL_OPEN_QUOTA = int(number("PORTAL_OPEN_QUOTA", 200 if DEMO else 20))  # stacks of all anonymous users together
PORTAL_WAITING = int(number("PORTAL_WAITING", 500))  # deployments that are queued or in progress
PORTAL_VIEWERS = int(number("PORTAL_VIEWERS", 5000))  # open WebSockets, streams and long polls per process
PORTAL_VIEWERS_EACH = int(number("PORTAL_VIEWERS_EACH", 2000 if DEMO else 100))  # the same, per user or address
TRUSTED_PROXIES = int(number("TRUSTED_PROXIES", 0))  # number of proxies in front that set X-Forwarded-For

# -- the runner --------------------------------------------------------------------------------------------------------

RUNNER_LIMIT = int(number("RUNNER_LIMIT", 100))  # concurrent deployments per worker
SWEEPER_SECONDS = number("SWEEPER_SECONDS", 30)  # between scans for expired stacks and leftovers; 0: never
ORPHANS_SECONDS = number("ORPHANS_SECONDS", 600)  # between scans for orphans at Dokploy
RUNNER_SWEEP_SECONDS = number(
    "RUNNER_SWEEP_SECONDS", 1
)  # between scans for queued deployments; 0: never, only messages start them

# -- Django ------------------------------------------------------------------------------------------------------------

DEBUG = False
SECRET_KEY = key("SECRET_KEY", "secret-key", lambda: secrets.token_urlsafe(50))
ENCRYPTION_KEYS = key("ENCRYPTION_KEYS", "encryption-key", lambda: Fernet.generate_key().decode()).split(",")
LOOPBACK_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
ALLOWED_HOSTS = words("ALLOWED_HOSTS") or list(LOOPBACK_HOSTS)
CSRF_TRUSTED_ORIGINS = words("CSRF_TRUSTED_ORIGINS")
TLS = flag(
    "PORTAL_TLS", not DEMO and not set(ALLOWED_HOSTS) <= set(LOOPBACK_HOSTS)
)  # whether users reach the portal by HTTPS

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "django_htmx",
    "deployments",
]

MIDDLEWARE = [
    "deployportal.middleware.portal_middleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "deployportal.middleware.demo_user_middleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "deployportal.urls"
ASGI_APPLICATION = "deployportal.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "deployments.identity.portal_context",
            ]
        },
    }
]

DATABASE_URL = text("DATABASE_URL")
DATABASES: dict[str, dict[str, Any]]
if DATABASE_URL:
    DATABASES = {"default": dict(dj_database_url.parse(DATABASE_URL))}
    if "postgresql" in DATABASES["default"]["ENGINE"]:
        pool = {"min_size": 1, "max_size": int(number("DATABASE_POOL", 10)), "timeout": 10}
        options = DATABASES["default"].setdefault("OPTIONS", {})
        # PostgreSQL ends a transaction that a frozen process leaves idle, and so releases its locks.
        limits = "-c idle_in_transaction_session_timeout=10s -c lock_timeout=5s"
        options |= {"pool": pool, "options": f"{options.get('options', '')} {limits}".strip()}
        options.setdefault("connect_timeout", 5)  # seconds
        options.setdefault("tcp_user_timeout", 10_000)  # milliseconds
        DATABASES["default"]["CONN_HEALTH_CHECKS"] = True  # else each broken connection in the pool fails one request
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATA_DIR / "portal.sqlite3",
            "OPTIONS": {
                # With Django's defaults, 237 of 360 concurrent write transactions failed; with these, none.
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
            "TEST": {"NAME": text("TEST_DATABASE") or None},
        }
    }
ON_SQLITE = "sqlite" in DATABASES["default"]["ENGINE"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = text("REDIS_URL")
CHANNEL_PREFIX = text("CHANNEL_PREFIX", "deployportal")
if REDIS_URL:
    CHANNEL_LAYERS = {
        "default": {
            # channels_redis.core drops messages when a channel is full, and keeps members of dead processes for a day.
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {
                # How long a send to a frozen Redis blocks, in seconds.
                "hosts": [{"address": REDIS_URL, "socket_timeout": 2, "socket_connect_timeout": 2}],
                "prefix": CHANNEL_PREFIX,
            },
        }
    }
else:
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 10_000}}}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL, LOGIN_REDIRECT_URL, LOGOUT_REDIRECT_URL = "login", "home", "home"

LANGUAGE_CODE, TIME_ZONE, USE_I18N, USE_TZ = "en", "UTC", False, True
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]

DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = TLS
SESSION_COOKIE_NAME = "__Host-session" if TLS else "portal_session"
CSRF_COOKIE_NAME = "__Host-csrf" if TLS else "portal_csrf"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = 31_536_000 if TLS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = False  # subdomains may be stacks, with certificates of their own
SECURE_HSTS_PRELOAD = False
# portal_middleware sets this header from X-Forwarded-Proto of trusted proxies, and removes a client's own.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_PORTAL_SCHEME", "https")
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# W002: portal_middleware sets X-Frame-Options. W005, W021: see SECURE_HSTS_* above.
SILENCED_SYSTEM_CHECKS = ["security.W002", "security.W005", "security.W021"]

# Counts wrong passwords. With Django's limit of 300 entries, logins with random names would evict real counters.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 100_000}}}

MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"redacted": {"()": "deployportal.log_redaction.RedactingFilter"}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["redacted"]}},
    "root": {"handlers": ["stderr"], "level": text("LOG_LEVEL", "WARNING")},
    "loggers": {
        "django.security.DisallowedHost": {"level": "CRITICAL"},  # caused by clients, not by the portal
        "django.request": {"level": "ERROR"},  # 4xx responses are not errors of the portal
        "httpx": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "django.channels.server": {"level": "WARNING"},
    },
}
