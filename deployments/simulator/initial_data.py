"""The data of a Dokploy server after its installation: its owner, its one organization and its settings."""

import uuid

from .store import Row, Store, now

OWNER_ID = "the-owner-of-the-simulated-dokpl"
ORGANIZATION_ID = "simulated-organizatio"
SERVER_SETTINGS: Row = {
    "serverIp": None,
    "certificateType": "none",
    "https": False,
    "host": None,
    "letsEncryptEmail": None,
    "sshPrivateKey": None,
    "enableDockerCleanup": True,
    "logCleanupCron": "0 0 * * *",
    "metricsConfig": {
        "server": {
            "port": 4500,
            "type": "Dokploy",
            "token": "",
            "cronJob": "",
            "thresholds": {"cpu": 0, "memory": 0},
            "refreshRate": 60,
            "urlCallback": "",
            "retentionDays": 2,
        },
        "containers": {"services": {"exclude": [], "include": []}, "refreshRate": 60},
    },
    "whitelabelingConfig": dict.fromkeys(
        (
            "appName docsUrl logoUrl customCss metaTitle faviconUrl footerText supportUrl loginLogoUrl appDescription "
            "errorPageTitle errorPageDescription"
        ).split()
    ),
    "remoteServersOnly": False,
    "buildsConcurrency": 1,
    "enforceSSO": False,
    "cleanupCacheApplications": False,
    "cleanupCacheOnPreviews": False,
    "cleanupCacheOnCompose": False,
}


def create_initial_rows(store: Store) -> None:
    """Create the server's settings in an empty database."""
    if "server" not in store.settings:
        row = {"id": str(uuid.uuid4()), **SERVER_SETTINGS, "createdAt": now(), "updatedAt": now()}
        store.settings.put("server", row)
